"""Keys of metadata fields: which one TDH.MNG.RD, WR and TDH.VP.RD, WR are asked for, and what is written."""

from __future__ import annotations

from tests.conformance.keys_more import only, put
from tests.conformance.situation import Situation
from tests.conformance.vocabulary import key

FIELDS = {
    "FATAL": 0x8010000000000001,
    "NUM_TDCX": 0x8010000200000002,
    "CHLDCNT": 0x8010000300000004,
    "LIFECYCLE_STATE": 0x8010000200000005,
    "HKID": 0x8110000100000001,
    "NUM_VCPUS": 0x9010000200000001,
    "NUM_ASSOC_VCPUS": 0x9010000200000002,
    "OP_STATE": 0x9010000200000004,
    "NUM_L2_VMS": 0x9010000100000005,
    "ATTRIBUTES": 0x1110000300000000,
    "MAX_VCPUS": 0x1110000200000002,
    "GPAW": 0x1110000000000003,
    "NOTIFY_ENABLES": 0x9110000300000010,
    "HP_LOCK_TIMEOUT": 0x9110000300000011,
    "CONFIG_FLAGS": 0x1110000300000016,
    "TD_CTLS": 0x1110000300000017,
    "TD_EPOCH": 0x9210000300000000,
    "REFCOUNT0": 0x9210000100000001,
    "REFCOUNT1": 0x9210000100000002,
    "MIG_DEC_KEY_SET": 0x9810000000000001,
    "EXPORT_COUNT": 0x9810000200000002,
    "IMPORT_COUNT": 0x9810000200000003,
    "MIG_EPOCH": 0x9810000200000004,
    "BW_EPOCH": 0x9810000300000005,
    "TOTAL_MB_COUNT": 0x9810000300000006,
    "DIRTY_COUNT": 0x9810000300000030,
    "MIG_COUNT": 0x9810000300000031,
    "NUM_MIGS": 0x9810000100000032,
    "NUM_MIGRATED_VCPUS": 0x9810000200000034,
    "VE_INFO_VALID": 0x0220000200000001,
    "RAX": 0x1020000300000000,
    "VCPU_STATE": 0xA020000000000000,
    "VCPU_INDEX": 0xA020000200000002,
    "NUM_TDVPS_PAGES": 0xA020000000000003,
    "ASSOC_LPID": 0xA020000200000004,
    "VCPU_EPOCH": 0xA020000300000006,
    "LAST_EPF_GPA_LIST_IDX": 0xA02000000000000D,
    "POSSIBLY_EPF_STEPPING": 0xA02000000000000E,
    "LAST_TD_EXIT": 0xA02000000000000F,
    "HP_LOCK_BUSY": 0xA020000000000031,
}
"""Field ids, from tdr_tdcs_fields_lookup.c and tdvps_fields_lookup.c."""
NO_FIELDS = {
    "unknown": 0x9010000200000FFF,
    "unknown_class": 0x3F10000200000004,
    "reserved": 0x9010000200000004 | 1 << 55,
    "sequence": 0x9010000200000004 | 1 << 38,
    "null": (1 << 64) - 1,
}
METADATA = ("TDH.MNG.RD", "TDH.MNG.WR", "TDH.VP.RD", "TDH.VP.WR")


@key("field", none="unknown unknown_class reserved sequence", null="", **dict.fromkeys(FIELDS, ""))
def field(want: Situation, value: str, how: str) -> None:
    """The field in RDX, by name; or an id that is none."""
    only(want, *METADATA)
    want.patch(put("rdx", FIELDS.get(value) or NO_FIELDS[how or value]))


@key("data", zero="", small="", large="", timeout="", one="", same="")
def data(want: Situation, value: str, how: str) -> None:
    """R8 of MNG.WR and VP.WR; a timeout of HP_LOCK_TIMEOUT is between 10 ms and 100 s."""
    only(want, "TDH.MNG.WR", "TDH.VP.WR")
    word = {"zero": 0, "small": 9_999, "large": 100_000_001, "timeout": 10_000, "one": 1, "same": 0x123456}
    want.patch(put("r8", word[value]))


@key("write_mask", all="", none="", low_half="", bit_0="")
def write_mask(want: Situation, value: str, how: str) -> None:
    """R9 of MNG.WR and VP.WR."""
    only(want, "TDH.MNG.WR", "TDH.VP.WR")
    word = {"all": (1 << 64) - 1, "none": 0, "low_half": 0xFFFFFFFF, "bit_0": 1}
    want.patch(put("r9", word[value]))


@key("guest_rax", zero="", set="")
def guest_rax(want: Situation, value: str, how: str) -> None:
    """What the guest has in RAX."""
    want.then(lambda world: setattr(world.vcpu, "guest_rax", 0x123456 if value == "set" else 0))
