"""TDH.MEM.PAGE.REMOVE: take a page away that is blocked and that no LP can have cached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.l2 import free_aliases
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import IMPORT_OP_STATES, next_state
from tdx.module.septe import make, make_removed
from tdx.module.status import Operand, SeamcallReturn, Status
from tdx.module.tracking import check_blocked_and_tracked
from tdx.module.walk import check_page_info, lock_entry, wrong_state
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

    The page's PAMT entry is locked before it is asked whether the range is blocked and tracked. Its aliases in the L2 trees go
    first; the write that frees the entry also lets it go, and only then is the page no longer counted and NDA.
    Source: tdh_mem_page_remove.c; reference 8.6.
    """
    tdr, tdcs = yield from lock_td(held, td, "TDH.MEM.PAGE.REMOVE", Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=PG_LEVEL_1G)
    yield from held.tree(tdcs)
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    after = next_state("TDH.MEM.PAGE.REMOVE", entry.state)
    if after is None:
        raise wrong_state(module, "TDH.MEM.PAGE.REMOVE", walk, entry)
    pfn = entry.pfn_at(level)
    page = module.pamt.entry(pfn, level)
    yield from held.implicit_page(page, Operand.RCX, exclusive=True)
    yield from check_blocked_and_tracked(module, tdcs, walk, entry, page)
    # All checks passed.
    if level == PG_LEVEL_2M:
        held.cost = "tdh_mem_page_remove_2m"
    yield from free_aliases(module, tdcs, entry, gfn, level)
    importing = tdcs.op_state in IMPORT_OP_STATES
    yield from held.commit(walk, make_removed(tdcs.migration.mig_epoch) if importing else make(after))
    yield tdr.chldcnt.fetch_add(-level.pages)
    page.free()
    hint = yield from module.pamt.count_out(page)
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=pfn << PAGE_SHIFT | hint)
