"""TDH.MEM.RANGE.UNBLOCK: undo a block, once it has been tracked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import TRACKED_OP_STATES, next_state
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status
from tdx.module.walk import check_page_info, lock_entry
from vcpu.addresses import PG_LEVEL_4K, Gpa, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MEM.RANGE.UNBLOCK", leaf=39, cost="tdh_mem_range_unblock", rcx="page_info", rdx="td")
def tdh_mem_range_unblock(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel
) -> Steps[SeamcallReturn]:
    """A blocked state -> what it was. Reference 8.9; the operand of a tracking failure is 1.5.01's (quirk 8)."""
    _, tdcs = yield from lock_td(held, td, "TDH.MEM.RANGE.UNBLOCK", Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=tdcs.root.level)
    yield from held.exclusive(tdcs.sept_tree_lock, Operand.SEPT_TREE, met="sept_tree_busy")
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    after = next_state("TDH.MEM.RANGE.UNBLOCK", entry.state)
    if after is None:
        raise Refused(Status.TDX_EPT_ENTRY_STATE_INCORRECT, Operand.RCX, *walk.details(entry))
    if tdcs.op_state in TRACKED_OP_STATES:
        page = module.pamt.entry(entry.pfn_at(level), level if entry.is_leaf else PG_LEVEL_4K)
        bepoch = yield page.bepoch.read_once()
        unit = yield tdcs.epoch.read_once()
        if not unit.is_tlb_tracked(bepoch):
            module.kernel.reached("tracking_not_done")
            raise Refused(Status.TDX_TLB_TRACKING_NOT_DONE, Operand.SEPT_TREE)
    # All checks passed.
    yield module.write_entry(walk.septe, entry.become(after, level))
    return SUCCESS
