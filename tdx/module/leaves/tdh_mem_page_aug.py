"""TDH.MEM.PAGE.AUG: add a page to a TD that may be running; the guest must accept it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.pamt import PageType, PamtScan
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import next_state
from tdx.module.septe import make
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from tdx.module.walk import check_page_info, lock_entry, wrong_state
from vcpu.addresses import PG_LEVEL_2M, Gpa, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MEM.PAGE.AUG", leaf=6, cost="tdh_mem_page_aug_4k", rcx="page_info", rdx="td", r8="pfn")
def tdh_mem_page_aug(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel, pfn: Pfn
) -> Steps[SeamcallReturn]:
    """S-EPT FREE or REMOVED -> PENDING, for a 4K or 2M page that is nobody's. Contents are left alone.

    A 2M page must be NDA as a whole: its 512 4K entries are looked at under the 2M entry's lock, in one access. The module reads one
    after the other, but all that can happen to them meanwhile is that one in use becomes NDA.
    The write that makes the entry PENDING also lets it go: a guest may accept the page before it is counted and REG.
    Source: tdh_mem_page_aug.c, helpers.c:check_and_lock_free_range_hpa; reference 8.5.
    """
    tdr, tdcs = yield from lock_td(held, td, "TDH.MEM.PAGE.AUG", Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=PG_LEVEL_2M)
    yield from held.tree(tdcs)
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    after = next_state("TDH.MEM.PAGE.AUG", entry.state)
    if after is None:
        raise wrong_state(module, "TDH.MEM.PAGE.AUG", walk, entry)
    page = yield from held.page(pfn, level, PageType.PT_NDA, Operand.R8, exclusive=True)
    if level == PG_LEVEL_2M:
        used = yield PamtScan(module.pamt, pfn)
        require(not used, Status.TDX_PAGE_METADATA_INCORRECT, Operand.R8)
        held.cost = "tdh_mem_page_aug_2m"
    # All checks passed.
    yield from held.commit(walk, make(after, pfn))
    yield tdr.chldcnt.fetch_add(level.pages)
    page.assign(PageType.PT_REG, td.tdr_pfn)
    yield page.bepoch.write_once(0)
    yield from module.pamt.count_in(page)
    return SUCCESS
