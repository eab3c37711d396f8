"""TDH.MEM.PAGE.REMOVE: take a page away that is blocked and that no LP can have cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import IMPORT_OP_STATES, TRACKED_OP_STATES, next_state
from tdx.module.septe import SeptState, make
from tdx.module.status import Operand, Refused, SeamcallReturn, Status
from tdx.module.walk import check_page_info, lock_entry
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_1G, PG_LEVEL_2M, Gpa, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MEM.PAGE.REMOVE", leaf=29, cost="tdh_mem_page_remove_4k", rcx="page_info", rdx="td")
def tdh_mem_page_remove(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel
) -> Steps[SeamcallReturn]:
    """S-EPT leaf -> FREE (REMOVED during an import), page -> NDA; RCX returns the page's address.

    The page's PAMT entry is locked before it is asked whether the range is blocked and tracked. Reference 8.6.
    """
    tdr, tdcs = yield from lock_td(held, td, "TDH.MEM.PAGE.REMOVE", Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=PG_LEVEL_1G)
    yield from held.shared(tdcs.sept_tree_lock, Operand.SEPT_TREE, met="sept_tree_busy")
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    after = next_state("TDH.MEM.PAGE.REMOVE", entry.state)
    if after is None:
        raise Refused(Status.TDX_EPT_ENTRY_STATE_INCORRECT, Operand.RCX, *walk.details(entry))
    pfn = entry.pfn_at(level)
    page = module.pamt.entry(pfn, level)
    yield from held.implicit_page(page, Operand.RCX, exclusive=True)
    if tdcs.op_state in TRACKED_OP_STATES:
        if not entry.state.is_blocked:
            raise Refused(Status.TDX_GPA_RANGE_NOT_BLOCKED, Operand.RCX, *walk.details(entry))
        bepoch = yield page.bepoch.read_once()
        unit = yield tdcs.epoch.read_once()
        if not unit.is_tlb_tracked(bepoch):
            module.kernel.reached("tracking_not_done")
            raise Refused(Status.TDX_TLB_TRACKING_NOT_DONE, Operand.RCX)
    # All checks passed.
    if level == PG_LEVEL_2M:
        held.cost = "tdh_mem_page_remove_2m"
    if tdcs.op_state in IMPORT_OP_STATES:
        after = SeptState.REMOVED
    yield module.write_entry(walk.septe, make(after))
    yield tdr.chldcnt.fetch_add(-level.pages)
    page.free()
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=pfn << PAGE_SHIFT)
