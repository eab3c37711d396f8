"""Metadata fields by id: what TDH.MNG.RD and WR find in a TDR and TDCS, TDH.VP.RD and WR in a TDVPS.

A field has four masks: which bits a host may read, and write, of a production TD and of a debug TD. The tables hold the fields that the model
keeps, with Intel's ids; any other id is METADATA_FIELD_ID_INCORRECT here, also one that the real module knows. Of an id only class and
code count, and that its reserved bits are clear.

Not modelled: the TD VMCS, CPUID values and arrays of addresses; and that 1.5.01 keeps HP_LOCK_TIMEOUT as a 32-bit number of TSC ticks, so
that a few seconds wrap around (metadata_td.c:check_hp_lock_timeout_and_translate_to_tsc).
Source: TDX module 1.5.01, metadata_generic.c, metadata_td.c, metadata_vp.c, tdr_tdcs_fields_lookup.c, tdvps_fields_lookup.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sim import Cell, Steps
from tdx.module.objects import Lifecycle, Tdr, Tdvps
from tdx.module.status import SeamcallReturn, Status, require
from vcpu.addresses import PG_LEVEL_256T

T = TypeVar("T")

FIELD_ID_NA = (1 << 64) - 1
"""No field: what RDX returns when there is no next one. As an operand, with any context, it asks for the first one."""
CONTEXT = 7 << 52
RESERVED = 0xFF << 24 | 0xF << 34 | 0x1FF << 38 | 7 << 47 | 1 << 55 | 1 << 62
"""Bits of an id that must be 0 for a single element: reserved ones, and the two counts of a sequence."""
ALL = (1 << 64) - 1
HP_LOCK_TIMEOUT_US_MIN = 10_000
HP_LOCK_TIMEOUT_US_MAX = 100_000_000
LIFECYCLES = tuple(Lifecycle)


@dataclass(frozen=True, slots=True)
class Field(Generic[T]):
    """One field. `mask` of what a host may do, by production and debug; `write` changes a plain field, checks included."""

    name: str
    id: int
    read: Callable[[T], Steps[int]]
    readable: tuple[int, int] = (ALL, ALL)
    writable: tuple[int, int] = (0, 0)
    write: Callable[[T, int, int], None] | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Class and code: what the module looks an id up by."""
        return key_of(self.id)

    @property
    def element_mask(self) -> int:
        """The bits of its element, 1, 2, 4 or 8 bytes."""
        return (1 << (8 << (self.id >> 32 & 3))) - 1

    def can_read(self, *, debug: bool) -> int:
        """The bits that a host may read."""
        return self.readable[debug] & self.element_mask

    def can_write(self, *, debug: bool) -> int:
        """The bits that a host may write."""
        return self.writable[debug] & self.element_mask


def key_of(field_id: int) -> tuple[int, int]:
    """Class and code of an id."""
    return field_id >> 56 & 63, field_id & 0xFFFFFF


def is_null(field_id: int) -> bool:
    """Whether an id asks for the first field."""
    return field_id | CONTEXT == FIELD_ID_NA


def field_of(fields: Sequence[Field[T]], field_id: int) -> Field[T]:
    """The field of that id, else refuse."""
    require(not field_id & RESERVED, Status.TDX_METADATA_FIELD_ID_INCORRECT)
    key = key_of(field_id)
    found = next((field for field in fields if field.key == key), None)
    require(found is not None, Status.TDX_METADATA_FIELD_ID_INCORRECT)
    assert found is not None
    return found


def read_field(
    fields: Sequence[Field[T]], field_id: int, of: T, *, debug: bool, version: int
) -> Steps[SeamcallReturn]:
    """What RD returns: in R8 the bits of a field that the host may see; in RDX, from version 1 on, the id of the next field.

    A null id gets the first field's id and a warning.
    """
    if version and is_null(field_id):
        first = next_field(fields, field_id, debug=debug)
        return SeamcallReturn(Status.TDX_METADATA_FIRST_FIELD_ID_IN_CONTEXT, rdx=first)
    field = field_of(fields, field_id)
    value = yield from field.read(of)
    mask = field.can_read(debug=debug)
    require(mask != 0, Status.TDX_METADATA_FIELD_NOT_READABLE)
    following = next_field(fields, field_id, debug=debug) if version else 0
    return SeamcallReturn(Status.TDX_SUCCESS, rdx=following, r8=value & mask)


def write_field(
    fields: Sequence[Field[T]], field_id: int, of: T, data: int, mask: int, *, debug: bool
) -> Steps[int]:
    """Write the bits of `mask`; one that the host may not write must stay what it is. Returns what was there, as far as it may be read."""
    field = field_of(fields, field_id)
    before = yield from field.read(of)
    allowed = field.can_write(debug=debug)
    combined = allowed & mask
    require(combined != 0, Status.TDX_METADATA_FIELD_NOT_WRITABLE)
    forbidden = mask & ~allowed
    require(before & forbidden == data & forbidden, Status.TDX_METADATA_FIELD_VALUE_NOT_VALID)
    assert field.write is not None
    field.write(of, before & ~combined | data & combined, combined)
    return before & field.can_read(debug=debug)


def next_field(fields: Sequence[Field[T]], field_id: int, *, debug: bool) -> int:
    """The id of the next field that the host may read, in the tables' order; of the first one for a null id."""
    later = list(fields)
    if not is_null(field_id):
        later = later[[field.key for field in fields].index(key_of(field_id)) + 1 :]
    return next((field.id for field in later if field.can_read(debug=debug)), FIELD_ID_NA)


def _plain(look: Callable[[T], int]) -> Callable[[T], Steps[int]]:
    """A field guarded by a lock that the caller holds: no access of its own."""

    def read(of: T) -> Steps[int]:
        yield from ()
        return int(look(of))

    return read


def _cell(cell: Callable[[T], Cell[Any]]) -> Callable[[T], Steps[int]]:
    """A word that others may change meanwhile."""

    def read(of: T) -> Steps[int]:
        value = yield cell(of).read_once()
        return int(value) & ALL

    return read


def _epoch_word(index: int) -> Callable[[Tdr], Steps[int]]:
    def read(tdr: Tdr) -> Steps[int]:
        unit = yield tdr.tdcs.epoch.read_once()
        return int(unit[index])

    return read


def _write_hp_lock_timeout(tdr: Tdr, value: int, mask: int) -> None:
    require(mask == ALL, Status.TDX_METADATA_WR_MASK_NOT_VALID)
    in_range = HP_LOCK_TIMEOUT_US_MIN <= value <= HP_LOCK_TIMEOUT_US_MAX
    require(in_range, Status.TDX_METADATA_FIELD_VALUE_NOT_VALID)
    tdr.tdcs.hp_lock_timeout_ns = value * 1000


def _write_notify_enables(tdr: Tdr, value: int, _mask: int) -> None:
    tdr.tdcs.notify_enables = value


def _write_rax(vcpu: Tdvps, value: int, _mask: int) -> None:
    vcpu.guest_rax = value


DEBUG_ONLY = (0, ALL)

TD_FIELDS: tuple[Field[Tdr], ...] = (
    Field("FATAL", 0x8010000000000001, _plain(lambda tdr: tdr.fatal)),
    Field("NUM_TDCX", 0x8010000200000002, _plain(lambda tdr: len(tdr.tdcx))),
    Field("CHLDCNT", 0x8010000300000004, _cell(lambda tdr: tdr.chldcnt)),
    Field("LIFECYCLE_STATE", 0x8010000200000005, _plain(lambda tdr: LIFECYCLES.index(tdr.lifecycle))),
    Field("HKID", 0x8110000100000001, _plain(lambda tdr: tdr.hkid)),
    Field("NUM_VCPUS", 0x9010000200000001, _cell(lambda tdr: tdr.tdcs.num_vcpus)),
    Field("NUM_ASSOC_VCPUS", 0x9010000200000002, _cell(lambda tdr: tdr.tdcs.num_assoc_vcpus)),
    Field("OP_STATE", 0x9010000200000004, _plain(lambda tdr: tdr.tdcs.op_state)),
    Field("NUM_L2_VMS", 0x9010000100000005, _plain(lambda tdr: tdr.tdcs.num_l2_vms)),
    Field("ATTRIBUTES", 0x1110000300000000, _plain(lambda tdr: tdr.tdcs.attributes)),
    Field("MAX_VCPUS", 0x1110000200000002, _plain(lambda tdr: tdr.tdcs.max_vcpus)),
    Field("GPAW", 0x1110000000000003, _plain(lambda tdr: tdr.tdcs.root.level == PG_LEVEL_256T)),
    Field(
        "NOTIFY_ENABLES",
        0x9110000300000010,
        _plain(lambda tdr: tdr.tdcs.notify_enables),
        DEBUG_ONLY,
        (0, 1),
        _write_notify_enables,
    ),
    Field(
        "HP_LOCK_TIMEOUT",
        0x9110000300000011,
        _plain(lambda tdr: tdr.tdcs.hp_lock_timeout_ns // 1000),
        writable=(ALL, ALL),
        write=_write_hp_lock_timeout,
    ),
    Field("CONFIG_FLAGS", 0x1110000300000016, _plain(lambda tdr: tdr.tdcs.config_flags)),
    Field("TD_CTLS", 0x1110000300000017, _plain(lambda tdr: tdr.tdcs.td_ctls), DEBUG_ONLY),
    Field("TD_EPOCH", 0x9210000300000000, _epoch_word(0)),
    Field("REFCOUNT0", 0x9210000100000001, _epoch_word(1)),
    Field("REFCOUNT1", 0x9210000100000002, _epoch_word(2)),
    Field("MIG_DEC_KEY_SET", 0x9810000000000001, _plain(lambda tdr: tdr.tdcs.migration.dec_key_set)),
    Field("EXPORT_COUNT", 0x9810000200000002, _plain(lambda tdr: tdr.tdcs.migration.export_count)),
    Field("IMPORT_COUNT", 0x9810000200000003, _plain(lambda tdr: tdr.tdcs.migration.import_count)),
    Field("MIG_EPOCH", 0x9810000200000004, _plain(lambda tdr: tdr.tdcs.migration.mig_epoch)),
    Field("BW_EPOCH", 0x9810000300000005, _cell(lambda tdr: tdr.tdcs.migration.bw_epoch)),
    Field("TOTAL_MB_COUNT", 0x9810000300000006, _cell(lambda tdr: tdr.tdcs.migration.total_mb_count)),
    Field("DIRTY_COUNT", 0x9810000300000030, _cell(lambda tdr: tdr.tdcs.migration.dirty_count)),
    Field("MIG_COUNT", 0x9810000300000031, _cell(lambda tdr: tdr.tdcs.migration.mig_count)),
    Field("NUM_MIGS", 0x9810000100000032, _plain(lambda tdr: tdr.tdcs.migration.num_migs)),
    Field("NUM_MIGRATED_VCPUS", 0x9810000200000034, _cell(lambda tdr: tdr.tdcs.migration.num_migrated_vcpus)),
)

VP_FIELDS: tuple[Field[Tdvps], ...] = (
    Field(
        "VE_INFO.VALID",
        0x0220000200000001,
        _plain(lambda vcpu: 0 if vcpu.ve_info is None else 0xFFFFFFFF),
        DEBUG_ONLY,
    ),
    Field("RAX", 0x1020000300000000, _plain(lambda vcpu: vcpu.guest_rax), DEBUG_ONLY, DEBUG_ONLY, _write_rax),
    Field("VCPU_STATE", 0xA020000000000000, _cell(lambda vcpu: vcpu.state), DEBUG_ONLY),
    Field("VCPU_INDEX", 0xA020000200000002, _plain(lambda vcpu: vcpu.tdr.vcpus.index(vcpu))),
    Field("NUM_TDVPS_PAGES", 0xA020000000000003, _plain(lambda vcpu: 1 + len(vcpu.tdcx))),
    Field("ASSOC_LPID", 0xA020000200000004, _cell(lambda vcpu: vcpu.assoc_lpid)),
    Field("VCPU_EPOCH", 0xA020000300000006, _plain(lambda vcpu: vcpu.vcpu_epoch)),
    Field(
        "LAST_EPF_GPA_LIST_IDX",
        0xA02000000000000D,
        _plain(lambda vcpu: len(vcpu.last_epf_gpa_list)),
        DEBUG_ONLY,
    ),
    Field(
        "POSSIBLY_EPF_STEPPING",
        0xA02000000000000E,
        _plain(lambda vcpu: vcpu.possibly_epf_stepping),
        DEBUG_ONLY,
    ),
    Field("LAST_TD_EXIT", 0xA02000000000000F, _plain(lambda vcpu: vcpu.last_td_exit), DEBUG_ONLY),
    Field(
        "HP_LOCK_BUSY", 0xA020000000000031, _plain(lambda vcpu: vcpu.hp_busy_since_ns is not None), DEBUG_ONLY
    ),
)
