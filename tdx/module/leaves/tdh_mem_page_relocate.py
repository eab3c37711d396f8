"""TDH.MEM.PAGE.RELOCATE: move a 4K page to another frame, contents and all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.l2 import relocate_aliases
from tdx.module.pamt import PageType
from tdx.module.seamcall import lock_new_page, lock_td, seamcall
from tdx.module.sept_states import next_state
from tdx.module.status import Operand, SeamcallReturn, Status, require
from tdx.module.tracking import check_blocked_and_tracked
from tdx.module.walk import check_page_info, lock_entry, wrong_state
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_4K, Gpa, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.MEM.PAGE.RELOCATE"


@seamcall(LEAF, leaf=5, rcx="page_info", rdx="td", r8="pfn")
def tdh_mem_page_relocate(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel, pfn: Pfn
) -> Steps[SeamcallReturn]:
    """S-EPT leaf -> the same page in frame `pfn`, unblocked; the old frame -> NDA; RCX returns its address.

    A pending page has no contents to copy. A state that needs no tracking (EXPORTED_BLOCKEDW) is moved while the guest may still
    read the old frame (reference 14, row 12). Write-blocking stays. Source: tdh_mem_page_relocate.c; reference 8.7.
    Cost: none is published, `seamcall_null`.
    """
    _, tdcs = yield from lock_td(held, td, LEAF, Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=PG_LEVEL_4K)
    yield from held.tree(tdcs)
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    if next_state(LEAF, entry.state) is None:
        raise wrong_state(module, LEAF, walk, entry)
    old_pfn = entry.pfn_at(level)
    require(pfn != old_pfn, Status.TDX_OPERAND_INVALID, Operand.R8)
    old_page = module.pamt.entry(old_pfn, level)
    yield from held.implicit_page(old_page, Operand.RCX, exclusive=True)
    yield from check_blocked_and_tracked(module, tdcs, walk, entry, old_page)
    page = yield from lock_new_page(held, pfn, Operand.R8)
    # All checks passed.
    if not entry.state.is_pending:
        module.memory.copy(old_pfn, pfn)
        module.on_page_relocated(old_pfn, pfn)
    old_page.free()
    page.assign(PageType.PT_REG, td.tdr_pfn)
    yield page.bepoch.write_once(0)
    yield from module.pamt.count_in(page)
    yield from relocate_aliases(module, tdcs, entry, gfn, pfn)
    yield module.write_entry(walk.septe, entry.unblocked(level).with_pfn(pfn))
    hint = yield from module.pamt.count_out(old_page)
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=old_pfn << PAGE_SHIFT | hint)
