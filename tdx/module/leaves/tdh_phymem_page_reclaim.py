"""TDH.PHYMEM.PAGE.RECLAIM: take a page back from a TD whose key is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import Lifecycle
from tdx.module.pamt import PageType
from tdx.module.seamcall import seamcall
from tdx.module.status import Operand, Refused, SeamcallReturn, Status
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_2M, PG_LEVEL_4K, Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule


@seamcall("TDH.PHYMEM.PAGE.RECLAIM", leaf=28, cost="tdh_phymem_page_reclaim_4k", rcx="pfn")
def tdh_phymem_page_reclaim(module: TdxModule, held: Held, *, pfn: Pfn) -> Steps[SeamcallReturn]:
    """Page of any size and type -> NDA; the TDR last. RCX returns the type, RDX the owner, R8 the size.

    The owner's TDR is only shared, so many pages of one TD are reclaimed in parallel. Reference 9.1.
    """
    page = yield from held.any_page(pfn, Operand.RCX)
    if page.kind in (PageType.PT_NDA, PageType.PT_RSVD):
        raise Refused(Status.TDX_PAGE_METADATA_INCORRECT, Operand.RCX)
    kind, owner, size = page.kind, page.owner or 0, page.level
    shown = (kind, owner << PAGE_SHIFT, size.tdx)
    if pfn != page.pfn:
        raise Refused(Status.TDX_OPERAND_INVALID, Operand.RCX, *shown)
    tdr_page = page
    if kind is not PageType.PT_TDR:
        tdr_page = module.pamt.entry(owner, PG_LEVEL_4K)
        yield from held.implicit_page(tdr_page, Operand.TDR, exclusive=False)
    tdr = tdr_page.holds
    if tdr.lifecycle is not Lifecycle.TEARDOWN:
        raise Refused(Status.TDX_LIFECYCLE_STATE_INCORRECT, None, *shown)
    if kind is PageType.PT_TDR:
        children = yield tdr.chldcnt.read_once()
        if children:
            raise Refused(Status.TDX_TD_ASSOCIATED_PAGES_EXIST, None, *shown)
    # All checks passed.
    if kind is PageType.PT_EPT:
        del module.sept_pages[pfn]
    page.free()
    if kind is not PageType.PT_TDR:
        yield tdr.chldcnt.fetch_add(-size.pages)
    if size == PG_LEVEL_2M:
        held.cost = "tdh_phymem_page_reclaim_2m"
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=shown[0], rdx=shown[1], r8=shown[2])
