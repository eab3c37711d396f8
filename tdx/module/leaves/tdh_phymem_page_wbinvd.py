"""TDH.PHYMEM.PAGE.WBINVD: write back the cache lines of a page that was a TD's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.pamt import PageType
from tdx.module.seamcall import seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn
from vcpu.addresses import PG_LEVEL_4K, Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule


@seamcall("TDH.PHYMEM.PAGE.WBINVD", leaf=41, cost="tdh_phymem_page_wbinvd_4k", rcx="pfn_and_hkid")
def tdh_phymem_page_wbinvd(
    module: TdxModule,
    held: Held,
    *,
    pfn: Pfn,
    hkid: int,
) -> Steps[SeamcallReturn]:
    """Write back one 4K page's lines under that key, any key; the page must be NDA. Caches are not modelled.

    With Dynamic PAMT its range need not have a page pair: the host writes back after it took the pair away, too.
    Source: tdh_phymem_page_wbinvd.c; reference 9.3.
    """
    yield from held.page(pfn, PG_LEVEL_4K, PageType.PT_NDA, Operand.RCX, exclusive=False, any_size=True)
    # All checks passed.
    if module.overwritten.get(pfn) == hkid:
        module.note_overwritten(pfn, None)
    return SUCCESS
