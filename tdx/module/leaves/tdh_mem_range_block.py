"""TDH.MEM.RANGE.BLOCK: no new translations through an entry; the old ones still have to be tracked away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import next_state
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status
from tdx.module.walk import check_page_info, lock_entry
from vcpu.addresses import PG_LEVEL_4K, Gpa, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MEM.RANGE.BLOCK", leaf=7, cost="tdh_mem_range_block", rcx="page_info", rdx="td")
def tdh_mem_range_block(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel
) -> Steps[SeamcallReturn]:
    """Any mapped or pending leaf, or table -> its blocked state. GPA_RANGE_ALREADY_BLOCKED is a warning.

    The entry is written first and TD_EPOCH sampled after it, without the epoch's lock: a TRACK in between costs the host
    one more TRACK. BEPOCH goes to the page the entry names. Reference 8.8, section 7.
    """
    _, tdcs = yield from lock_td(held, td, "TDH.MEM.RANGE.BLOCK", Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=tdcs.root.level)
    yield from held.exclusive(tdcs.sept_tree_lock, Operand.SEPT_TREE, met="sept_tree_busy")
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    if entry.state.is_blocked:
        raise Refused(Status.TDX_GPA_RANGE_ALREADY_BLOCKED, Operand.RCX, *walk.details(entry))
    after = next_state("TDH.MEM.RANGE.BLOCK", entry.state)
    if after is None:
        raise Refused(Status.TDX_EPT_ENTRY_STATE_INCORRECT, Operand.RCX, *walk.details(entry))
    # All checks passed.
    yield module.write_entry(walk.septe, entry.become(after, level))
    unit = yield tdcs.epoch.read_once()
    page = module.pamt.entry(entry.pfn_at(level), level if entry.is_leaf else PG_LEVEL_4K)
    yield page.bepoch.write_once(unit.epoch)
    return SUCCESS
