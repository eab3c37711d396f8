"""TDH.IMPORT.STATE.TD: import what may have changed in a TD; then its vCPUs can be made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration_data import MBMD_BUFFER, MbType, StateBundle, page_list_info
from tdx.module.migration_state import (
    PAGES,
    StateCall,
    check_import_list,
    import_pages,
    set_mutable,
    take_mbmd,
)
from tdx.module.migration_steps import check_import_mbmd_buffer, lock_forward_stream
from tdx.module.objects import LogicalProcessor
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SHIFT

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.IMPORT.STATE.TD"
KIND = MbType.MUTABLE_TD_STATE


@seamcall(LEAF, leaf=86, rcx="td", r8="mbmd_buffer", r9="page_list", r10="stream")
def tdh_import_state_td(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    bundle: StateBundle | None = None,
    mbmd_buffer: int = MBMD_BUFFER,
    page_list: int = page_list_info(PAGES[KIND]),
    stream: int = 0,
    lp: LogicalProcessor | None = None,
) -> Steps[SeamcallReturn]:
    """op_state MEMORY_IMPORT -> STATE_IMPORT. What goes wrong once the stream is found ends in FAILED_IMPORT.

    Arguments: as IMPORT.STATE.IMMUTABLE. Cost: no row in the table, `seamcall_null`.
    Source: tdh_import_state_td.c; reference 6.2, 16.
    """
    bundle = StateBundle() if bundle is None else bundle
    _, tdcs = yield from lock_td(held, td, LEAF, Operand.RCX, exclusive=True)
    migsc = yield from lock_forward_stream(held, tdcs, stream, only_first=True)
    require(migsc.initialized, Status.TDX_MIGRATION_STREAM_STATE_INCORRECT)
    call = StateCall(LEAF, KIND, module, tdcs, migsc, bundle, page_list, stream, lp, td.tdr_pfn << PAGE_SHIFT)
    migration = tdcs.migration
    done = 0
    if call.is_resumed:
        done = call.resume(importing=True)
    else:
        migsc.interrupted = None
        check_import_mbmd_buffer(module, tdcs, mbmd_buffer)
        take_mbmd(call, mb_counter=migsc.expected_mb_counter, mig_epoch=migration.mig_epoch)
        migsc.expected_mb_counter += 1
    check_import_list(call)
    stopped = yield from import_pages(call, done)
    if stopped is not None:
        return stopped
    # All checks passed.
    set_mutable(tdcs, bundle.metadata)
    yield migration.total_mb_count.fetch_add(1)
    tdcs.op_state = OpState.STATE_IMPORT
    return SUCCESS
