"""TDH.IMPORT.STATE.VP: import a vCPU, instead of TDH.VP.INIT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration_data import MBMD_BUFFER, MbType, StateBundle, page_list_info
from tdx.module.migration_state import (
    PAGES,
    StateCall,
    check_import_list,
    import_pages,
    set_vcpu_state,
    take_mbmd,
)
from tdx.module.migration_steps import check_import_mbmd_buffer, fatal, lock_forward_stream
from tdx.module.objects import LogicalProcessor, Tdvps, VcpuState
from tdx.module.seamcall import associate, check_td, lock_vcpu, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SHIFT, Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule

LEAF = "TDH.IMPORT.STATE.VP"
KIND = MbType.MUTABLE_VCPU_STATE


@seamcall(LEAF, leaf=87, rcx="tdvpr_pfn", r8="mbmd_buffer", r9="page_list", r10="stream")
def tdh_import_state_vp(
    module: TdxModule,
    held: Held,
    *,
    tdvpr_pfn: Pfn,
    lp: LogicalProcessor,
    bundle: StateBundle | None = None,
    mbmd_buffer: int = MBMD_BUFFER,
    page_list: int = page_list_info(PAGES[KIND]),
    stream: int = 0,
) -> Steps[SeamcallReturn]:
    """VCPU UNINITIALIZED -> READY, associated with this LP; IMPORT in between, if interrupted.

    What goes wrong once the stream is found ends in FAILED_IMPORT, a vCPU too many included; op_state changes although its lock is
    held shared. Other arguments: as IMPORT.STATE.IMMUTABLE. Cost: no row in the table, `seamcall_null`.
    Source: tdh_import_state_vp.c; reference 6.2, 16.
    """
    bundle = StateBundle() if bundle is None else bundle
    vcpu = yield from lock_vcpu(held, tdvpr_pfn, Operand.RCX, exclusive=True)
    tdcs = yield from check_td(held, vcpu.tdr, LEAF)
    require(1 + len(vcpu.tdcx) >= tdcs.tdvps_pages, Status.TDX_TDCX_NUM_INCORRECT)
    migsc = yield from lock_forward_stream(held, tdcs, stream)
    call = StateCall(
        LEAF, KIND, module, tdcs, migsc, bundle, page_list, stream, lp, tdvpr_pfn << PAGE_SHIFT, vcpu
    )
    if call.is_resumed:
        done = call.resume(importing=True)
        yield from _resume(call, vcpu, lp)
    else:
        done = 0
        yield from _begin(call, vcpu, lp, mbmd_buffer)
    check_import_list(call)
    stopped = yield from import_pages(call, done)
    if stopped is not None:
        yield vcpu.state.write_once(VcpuState.IMPORT)
        return stopped
    set_vcpu_state(vcpu, bundle.metadata)
    migration = tdcs.migration
    arrived = yield migration.num_migrated_vcpus.fetch_add(1)
    expected = yield tdcs.num_vcpus.read_once()
    if arrived >= expected:
        raise call.refuse_import(Status.TDX_ALL_VCPUS_IMPORTED)
    # All checks passed.
    yield vcpu.state.write_once(VcpuState.READY)
    yield migration.total_mb_count.fetch_add(1)
    return SUCCESS


def _begin(call: StateCall, vcpu: Tdvps, lp: LogicalProcessor, mbmd_buffer: int) -> Steps[None]:
    """A new vCPU comes into being on this LP."""
    migsc, migration = call.migsc, call.tdcs.migration
    if not migsc.initialized:
        migsc.start(migration.dec_working_key)
    migsc.interrupted = None
    state = yield vcpu.state.read_once()
    if state is not VcpuState.UNINITIALIZED:
        raise call.refuse_import(Status.TDX_VCPU_STATE_INCORRECT)
    check_import_mbmd_buffer(call.module, call.tdcs, mbmd_buffer)
    take_mbmd(call, mb_counter=migsc.expected_mb_counter, mig_epoch=migration.mig_epoch)
    yield vcpu.assoc_lpid.write_once(lp.lpid)
    yield call.tdcs.num_assoc_vcpus.fetch_add(1)
    migsc.expected_mb_counter += 1


def _resume(call: StateCall, vcpu: Tdvps, lp: LogicalProcessor) -> Steps[None]:
    """The vCPU may have been flushed meanwhile; another LP must not have it."""
    state = yield vcpu.state.read_once()
    if state not in (VcpuState.IMPORT, VcpuState.DISABLED):
        raise call.refuse_import(Status.TDX_VCPU_STATE_INCORRECT)
    try:
        yield from associate(vcpu, lp)
    except Refused as refused:
        call.tdcs.op_state = OpState.FAILED_IMPORT
        raise fatal(refused) from None
