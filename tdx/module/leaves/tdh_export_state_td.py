"""TDH.EXPORT.STATE.TD: export what may have changed in a TD, which stands still now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration_data import MBMD_BUFFER, MbType, StateBundle, page_list_info
from tdx.module.migration_state import PAGES, StateCall, begin_export, export_pages, finish_export, mutable_of
from tdx.module.migration_steps import check_mbmd_buffer, lock_forward_stream
from tdx.module.objects import LogicalProcessor
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.status import Operand, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SHIFT

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.EXPORT.STATE.TD"
KIND = MbType.MUTABLE_TD_STATE


@seamcall(LEAF, leaf=73, rcx="td", r8="mbmd_buffer", r9="page_list", r10="stream")
def tdh_export_state_td(
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
    """Export the mutable metadata of the TD. Nothing counts how often.

    R8 is looked at when all metadata are out. Arguments and returns: as EXPORT.STATE.IMMUTABLE.
    Cost: no row in the table, `seamcall_null`. Source: tdh_export_state_td.c; reference 16.
    """
    bundle = StateBundle() if bundle is None else bundle
    _, tdcs = yield from lock_td(held, td, LEAF, Operand.RCX, op_state_exclusive=True)
    migsc = yield from lock_forward_stream(held, tdcs, stream, only_first=True)
    require(migsc.initialized, Status.TDX_MIGRATION_STREAM_STATE_INCORRECT)
    call = StateCall(LEAF, KIND, module, tdcs, migsc, bundle, page_list, stream, lp, td.tdr_pfn << PAGE_SHIFT)
    done = 0
    if call.is_resumed:
        done = call.resume()
    else:
        require(call.is_list_sound(PAGES[KIND]), Status.TDX_OPERAND_INVALID, Operand.R9)
        begin_export(call, 0)
    require(call.is_list_shared, Status.TDX_OPERAND_INVALID, Operand.R9)
    stopped = yield from export_pages(call, done, mutable_of(tdcs))
    if stopped is not None:
        return stopped
    check_mbmd_buffer(module, mbmd_buffer)
    # All checks passed.
    yield tdcs.migration.total_mb_count.fetch_add(1)
    return finish_export(call)
