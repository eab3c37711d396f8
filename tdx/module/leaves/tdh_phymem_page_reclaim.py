"""TDH.PHYMEM.PAGE.RECLAIM: take a page back from a TD whose key is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import Lifecycle, Tdr
from tdx.module.pamt import PageType, PamtEntry
from tdx.module.seamcall import seamcall
from tdx.module.status import Operand, Refused, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_2M, PG_LEVEL_4K, Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule


@seamcall("TDH.PHYMEM.PAGE.RECLAIM", leaf=28, cost="tdh_phymem_page_reclaim_4k", rcx="pfn")
def tdh_phymem_page_reclaim(module: TdxModule, held: Held, *, pfn: Pfn) -> Steps[SeamcallReturn]:
    """Page of any size and type -> NDA; the TDR last.

    The owner's TDR is only shared, so many pages of one TD are reclaimed in parallel.
    Returns: RCX the type, RDX the owner, R8 the size, also of a page whose owner then refuses; R9 the hint of Dynamic PAMT.
    Source: tdh_phymem_page_reclaim.c; reference 9.1.
    """
    page = yield from held.any_page(pfn, Operand.RCX)
    kind, owner, size = page.kind, page.owner or Pfn(0), page.level
    require(kind not in (PageType.PT_NDA, PageType.PT_RSVD), Status.TDX_PAGE_METADATA_INCORRECT, Operand.RCX)
    try:
        yield from _take_from_td(module, held, pfn, page)
    except Refused as refused:
        refused.rcx, refused.rdx, refused.r8 = kind, owner << PAGE_SHIFT, size.tdx
        raise
    if kind is PageType.PT_EPT:
        del module.sept_pages[pfn]
    page.free()
    hint = yield from module.pamt.count_out(page)
    if size == PG_LEVEL_2M:
        held.cost = "tdh_phymem_page_reclaim_2m"
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=kind, rdx=owner << PAGE_SHIFT, r8=size.tdx, r9=hint)


def _take_from_td(module: TdxModule, held: Held, pfn: Pfn, page: PamtEntry) -> Steps[None]:
    """The checks beside the page's own; then the owner counts it no more. A TDR must have nothing left to count."""
    require(pfn == page.pfn, Status.TDX_OPERAND_INVALID, Operand.RCX)
    if page.kind is PageType.PT_TDR:
        _check_teardown(page.holds)
        children = yield page.holds.chldcnt.read_once()
        require(children == 0, Status.TDX_TD_ASSOCIATED_PAGES_EXIST)
        return
    assert page.owner is not None
    tdr_page = module.pamt.entry(page.owner, PG_LEVEL_4K)
    yield from held.implicit_page(tdr_page, Operand.TDR, exclusive=False)
    _check_teardown(tdr_page.holds)
    # All checks passed.
    yield tdr_page.holds.chldcnt.fetch_add(-page.level.pages)


def _check_teardown(tdr: Tdr) -> None:
    require(tdr.lifecycle is Lifecycle.TEARDOWN, Status.TDX_LIFECYCLE_STATE_INCORRECT)
