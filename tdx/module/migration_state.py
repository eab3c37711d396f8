"""Metadata on their way: what the STATE calls export and import, page by page, and how they are interrupted.

The fields are those that the model keeps, in the classes that Intel's tables give them: immutable ones of the TD (MB), mutable
ones of the TD and of a vCPU (ME). Host-dependent ones are not sent; the destination sets them anew. Not modelled: values that the
destination finds unacceptable although their MAC is right (an older module, another platform).
Source: TDX module 1.5.01, tdh_export_state_*.c, tdh_import_state_*.c, tdr_tdcs_fields_lookup.c, tdvps_fields_lookup.c,
helpers.c:check_and_init_imported_td_state_immutable; reference 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sim import Steps
from tdx.module.migration import Interrupted
from tdx.module.migration_data import COMMAND_RESUME, Mbmd, MbType, StateBundle
from tdx.module.migration_steps import fail_import, interrupt_test, is_shared
from tdx.module.objects import MIGRATABLE, SEPT_ROOT_INDEX, SEPT_VE_DISABLE, Epoch
from tdx.module.sept import SeptPage
from tdx.module.status import Operand, Refused, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SIZE, PG_LEVEL_256T, PG_LEVEL_512G

if TYPE_CHECKING:
    from tdx.module.migration import MigStream
    from tdx.module.module import TdxModule
    from tdx.module.objects import LogicalProcessor, Tdcs, Tdr, Tdvps

PAGES = {MbType.IMMUTABLE_TD_STATE: 3, MbType.MUTABLE_TD_STATE: 2, MbType.MUTABLE_VCPU_STATE: 5}
"""Pages that an export fills: the least that it demands of the host's list. The first immutable one is about the module itself."""
PAGES_IMPORTED_MIN = {MbType.IMMUTABLE_TD_STATE: 2, MbType.MUTABLE_TD_STATE: 1, MbType.MUTABLE_VCPU_STATE: 4}
LAST_ENTRY_SHIFT = 55
PAGE_LIST_RESERVED = PAGE_SIZE - 1 | 7 << 52


@dataclass(slots=True)
class StateCall:
    """One STATE call: its leaf, what it carries, and the operands that a resumption must repeat."""

    leaf: str
    kind: MbType
    module: TdxModule
    tdcs: Tdcs
    migsc: MigStream
    bundle: StateBundle
    page_list: int
    stream: int
    lp: LogicalProcessor | None
    rcx: int
    """The register, which an import that is interrupted puts back."""
    vcpu: Tdvps | None = None

    @property
    def is_resumed(self) -> bool:
        """Whether R10 says so."""
        return self.stream & COMMAND_RESUME != 0

    @property
    def operands(self) -> tuple[object, ...]:
        """What a resumption must repeat."""
        return (self.page_list, None if self.vcpu is None else self.vcpu.pfn)

    @property
    def listed_pages(self) -> int:
        """How many pages the host's list has."""
        return (self.page_list >> LAST_ENTRY_SHIFT) + 1

    def is_list_sound(self, pages_min: int) -> bool:
        """Whether R9 has no reserved bits and enough pages."""
        return self.listed_pages >= pages_min and not self.page_list & PAGE_LIST_RESERVED

    @property
    def is_list_shared(self) -> bool:
        """Whether R9 names shared memory."""
        return is_shared(self.module, self.page_list & (1 << 52) - PAGE_SIZE, PAGE_SIZE)

    def stop(self, pages: int) -> None:
        """Remember that an interrupt came."""
        self.migsc.interrupted = Interrupted(self.leaf, self.operands, pages)

    def resume(self, *, importing: bool = False) -> int:
        """Go on where an interrupt came; other operands than then end an import. Returns the pages done."""
        stopped, self.migsc.interrupted = self.migsc.interrupted, None
        require(stopped is not None, Status.TDX_INVALID_RESUMPTION)
        assert stopped is not None
        if (stopped.leaf, stopped.operands) != (self.leaf, self.operands):
            if importing:
                raise fail_import(self.tdcs, Status.TDX_INVALID_RESUMPTION)
            raise Refused(Status.TDX_INVALID_RESUMPTION)
        return stopped.pages

    def refuse_import(self, refused: Status, operand: Operand | None = None) -> Refused:
        """What an import refuses with that has begun: it ends."""
        return fail_import(self.tdcs, refused, operand)


# Export.


def begin_export(call: StateCall, value: int) -> None:
    """A new export: write the MBMD. Args: value: what it says beside the counters."""
    migsc = call.migsc
    migsc.interrupted = None
    migration = call.tdcs.migration
    index = call.stream & 0xFFFF
    migsc.mbmd = Mbmd(call.kind, index, migsc.next_mb_counter, migration.mig_epoch, migsc.next_iv(), value)


def export_pages(call: StateCall, done: int, metadata: Mapping[str, Any]) -> Steps[SeamcallReturn | None]:
    """Fill page after page; between two a pending interrupt ends the call. Returns: how it ends then, else None."""
    pages = PAGES[call.kind]
    while True:
        done += 1
        if done == pages:
            break
        require(done < call.listed_pages, Status.TDX_OPERAND_INVALID, Operand.R9)
        if (yield interrupt_test(call.lp)):
            call.stop(done)
            return SeamcallReturn(Status.TDX_INTERRUPTED_RESUMABLE, rdx=done)
    call.bundle.metadata = metadata
    call.bundle.pages = pages
    return None


def finish_export(call: StateCall) -> SeamcallReturn:
    """All metadata are out: the MBMD gets its MAC."""
    migsc, bundle = call.migsc, call.bundle
    mbmd = migsc.mbmd
    assert mbmd is not None
    mbmd.mac = mbmd.mac_with(migsc.key, bundle.payload(bundle.pages))
    bundle.mbmd, migsc.mbmd = mbmd, None
    migsc.next_mb_counter += 1
    return SeamcallReturn(Status.TDX_SUCCESS, rdx=bundle.pages)


# Import.


def check_import_list(call: StateCall) -> None:
    """R9, new call or not: a list that cannot be right ends the import."""
    if not call.is_list_sound(PAGES_IMPORTED_MIN[call.kind]) or not call.is_list_shared:
        raise call.refuse_import(Status.TDX_OPERAND_INVALID, Operand.R9)


def take_mbmd(call: StateCall, *, mb_counter: int, mig_epoch: int) -> Mbmd:
    """The bundle's MBMD, if it is the one that must come now; else the import ends."""
    mbmd = call.bundle.mbmd
    expected = (call.kind, call.stream & 0xFFFF, mb_counter, mig_epoch)
    if mbmd is None or (mbmd.kind, mbmd.migs_index, mbmd.mb_counter, mbmd.mig_epoch) != expected:
        raise call.refuse_import(Status.TDX_INVALID_MBMD)
    call.migsc.mbmd = mbmd
    return mbmd


def import_pages(call: StateCall, done: int) -> Steps[SeamcallReturn | None]:
    """Read page after page of the list, all of them; between two a pending interrupt ends the call. Then compare the MAC."""
    while True:
        done += 1
        if done == call.listed_pages:
            break
        if (yield interrupt_test(call.lp)):
            call.stop(done)
            return SeamcallReturn(Status.TDX_INTERRUPTED_RESUMABLE, rcx=call.rcx)
    mbmd = call.migsc.mbmd
    assert mbmd is not None
    if mbmd.mac != mbmd.mac_with(call.migsc.key, call.bundle.payload(done)):
        raise call.refuse_import(Status.TDX_INCORRECT_MBMD_MAC)
    return None


# The fields.


def immutable_of(tdcs: Tdcs) -> Steps[dict[str, Any]]:
    """Fields of the TD that never change."""
    num_vcpus = yield tdcs.num_vcpus.read_once()
    return {
        "ATTRIBUTES": tdcs.attributes,
        "CONFIG_FLAGS": tdcs.config_flags,
        "EXPORT_COUNT": tdcs.migration.export_count,
        "GPAW": tdcs.root.level == PG_LEVEL_256T,
        "MAX_VCPUS": tdcs.max_vcpus,
        "MRTD": tdcs.measurement.copy(),
        "NUM_L2_VMS": tdcs.num_l2_vms,
        "NUM_VCPUS": num_vcpus,
    }


def set_immutable(tdr: Tdr, metadata: Mapping[str, Any]) -> Steps[bool]:
    """Make the TDCS that of the imported TD: epoch 1, nobody inside. Returns whether the fields fit each other."""
    tdcs = tdr.tdcs
    set_root(tdr, gpaw=metadata["GPAW"])
    tdcs.attributes = metadata["ATTRIBUTES"]
    tdcs.config_flags = metadata["CONFIG_FLAGS"]
    tdcs.migration.export_count = metadata["EXPORT_COUNT"]
    tdcs.max_vcpus = metadata["MAX_VCPUS"]
    tdcs.measurement = metadata["MRTD"].copy()
    tdcs.num_l2_vms = metadata["NUM_L2_VMS"]
    yield tdcs.num_vcpus.write_once(metadata["NUM_VCPUS"])
    yield tdcs.num_assoc_vcpus.write_once(0)
    yield tdcs.migration.num_migrated_vcpus.write_once(0)
    yield tdcs.epoch.write_once(Epoch(1, 0, 0))
    tdcs.pending_ve_disable = tdcs.attributes & SEPT_VE_DISABLE != 0
    partitioned = bool(tdcs.attributes & MIGRATABLE and tdcs.num_l2_vms)
    return not partitioned and 0 < metadata["NUM_VCPUS"] <= tdcs.max_vcpus


def set_root(tdr: Tdr, *, gpaw: bool = False) -> None:
    """The S-EPT root page is there since ADDCX; how many levels it heads the metadata say."""
    tdr.tdcs.root = SeptPage(tdr.tdcx[SEPT_ROOT_INDEX], PG_LEVEL_256T if gpaw else PG_LEVEL_512G, 0)
    tdr.tdcs.private_end = 1 << (51 if gpaw else 47)


def mutable_of(tdcs: Tdcs) -> dict[str, Any]:
    """Fields of the TD that change while it lives."""
    return {
        "HP_LOCK_TIMEOUT": tdcs.hp_lock_timeout_ns,
        "IMPORT_COUNT": tdcs.migration.import_count,
        "NOTIFY_ENABLES": tdcs.notify_enables,
        "TD_CTLS": tdcs.td_ctls,
    }


def set_mutable(tdcs: Tdcs, metadata: Mapping[str, Any]) -> None:
    """Take them over."""
    tdcs.hp_lock_timeout_ns = metadata["HP_LOCK_TIMEOUT"]
    tdcs.migration.import_count = metadata["IMPORT_COUNT"]
    tdcs.notify_enables = metadata["NOTIFY_ENABLES"]
    tdcs.td_ctls = metadata["TD_CTLS"]


def vcpu_state_of(vcpu: Tdvps) -> dict[str, Any]:
    """Fields of a vCPU; registers are the embedding's, but for where the guest stands."""
    return {
        "GUEST_RAX": vcpu.guest_rax,
        "GUEST_RIP": vcpu.rip,
        "LAST_TD_EXIT": vcpu.last_td_exit,
        "VE_INFO": vcpu.ve_info,
    }


def set_vcpu_state(vcpu: Tdvps, metadata: Mapping[str, Any]) -> None:
    """Take them over."""
    vcpu.guest_rax = metadata["GUEST_RAX"]
    vcpu.rip = metadata["GUEST_RIP"]
    vcpu.last_td_exit = metadata["LAST_TD_EXIT"]
    vcpu.ve_info = metadata["VE_INFO"]
