"""TDH.EXPORT.STATE.VP: export a vCPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration_data import MBMD_BUFFER, MbType, StateBundle, page_list_info
from tdx.module.migration_state import (
    PAGES,
    StateCall,
    begin_export,
    export_pages,
    finish_export,
    vcpu_state_of,
)
from tdx.module.migration_steps import check_mbmd_buffer, lock_forward_stream
from tdx.module.objects import LogicalProcessor, VcpuState
from tdx.module.seamcall import associate, check_td, lock_vcpu, seamcall
from tdx.module.status import Operand, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SHIFT, Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule

LEAF = "TDH.EXPORT.STATE.VP"
KIND = MbType.MUTABLE_VCPU_STATE


@seamcall(LEAF, leaf=74, rcx="tdvpr_pfn", r8="mbmd_buffer", r9="page_list", r10="stream")
def tdh_export_state_vp(
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
    """Export the vCPU's metadata, once in a session. It is associated with this LP by it, and stays so whatever happens next.

    Any forward stream may carry it. R8 is looked at when all metadata are out. Other arguments and returns: as
    EXPORT.STATE.IMMUTABLE. Cost: no row in the table, `seamcall_null`. Source: tdh_export_state_vp.c; reference 16.
    """
    bundle = StateBundle() if bundle is None else bundle
    vcpu = yield from lock_vcpu(held, tdvpr_pfn, Operand.RCX, exclusive=True)
    tdcs = yield from check_td(held, vcpu.tdr, LEAF)
    require(1 + len(vcpu.tdcx) >= tdcs.tdvps_pages, Status.TDX_TDCX_NUM_INCORRECT)
    state = yield vcpu.state.read_once()
    require(state is VcpuState.READY, Status.TDX_VCPU_STATE_INCORRECT)
    yield from associate(vcpu, lp)
    migration = tdcs.migration
    require(vcpu.export_count != migration.export_count, Status.TDX_VCPU_ALREADY_EXPORTED)
    migsc = yield from lock_forward_stream(held, tdcs, stream)
    call = StateCall(
        LEAF, KIND, module, tdcs, migsc, bundle, page_list, stream, lp, tdvpr_pfn << PAGE_SHIFT, vcpu
    )
    done = 0
    if call.is_resumed:
        require(migsc.initialized, Status.TDX_MIGRATION_STREAM_STATE_INCORRECT)
        done = call.resume()
    else:
        require(call.is_list_sound(PAGES[KIND]), Status.TDX_OPERAND_INVALID, Operand.R9)
        if not migsc.initialized:
            migsc.start(migration.enc_working_key)
        begin_export(call, vcpu.tdr.vcpus.index(vcpu))
    require(call.is_list_shared, Status.TDX_OPERAND_INVALID, Operand.R9)
    stopped = yield from export_pages(call, done, vcpu_state_of(vcpu))
    if stopped is not None:
        return stopped
    check_mbmd_buffer(module, mbmd_buffer)
    # All checks passed.
    vcpu.export_count = migration.export_count
    yield migration.total_mb_count.fetch_add(1)
    return finish_export(call)
