"""TDH.MEM.SEPT.ADD: put a new S-EPT page below an entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.pamt import PageType
from tdx.module.seamcall import lock_new_page, lock_td, seamcall
from tdx.module.sept import SeptPage
from tdx.module.sept_states import next_state
from tdx.module.septe import SeptState, make
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status, require
from tdx.module.walk import check_page_info, lock_entry
from vcpu.addresses import LEVELS, PG_LEVEL_2M, Gpa, Pfn, PgLevel, align_down

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MEM.SEPT.ADD", leaf=3, cost="tdh_mem_sept_add", rcx="page_info", rdx="td", r8="pfn")
def tdh_mem_sept_add(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel, pfn: Pfn | None
) -> Steps[SeamcallReturn]:
    """S-EPT FREE -> NL_MAPPED: `level` is that of the entry, one above the entries of the new page.

    Version 0 without ALLOW_EXISTING: no L2 pages, no interruption. Reference 8.1.
    """
    tdr, tdcs = yield from lock_td(held, td, "TDH.MEM.SEPT.ADD", Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=tdcs.root.level, lowest=PG_LEVEL_2M)
    yield from held.shared(tdcs.sept_tree_lock, Operand.SEPT_TREE, met="sept_tree_busy")
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    after = next_state("TDH.MEM.SEPT.ADD", entry.state)
    if after is None:
        raise Refused(Status.TDX_EPT_ENTRY_STATE_INCORRECT, Operand.RCX, *walk.details(entry))
    require(pfn is not None, Status.TDX_OPERAND_INVALID, Operand.R8)
    assert pfn is not None
    if entry.state is SeptState.NL_MAPPED:
        raise Refused(Status.TDX_EPT_ENTRY_STATE_INCORRECT, Operand.RCX, *walk.details(entry))
    page = yield from lock_new_page(held, pfn, Operand.R8)
    # All checks passed.
    module.sept_pages[pfn] = SeptPage(pfn, LEVELS[level - 1], align_down(gfn, level))
    page.assign(PageType.PT_EPT, td.tdr_pfn)
    yield page.bepoch.write_once(0)
    yield tdr.chldcnt.fetch_add(1)
    yield module.write_entry(walk.septe, make(after, pfn))
    return SUCCESS
