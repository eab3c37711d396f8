"""TDH.PHYMEM.PAGE.RDMD: what the PAMT says of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.dynamic_pamt import PagePair
from tdx.module.pamt import PageType
from tdx.module.seamcall import seamcall
from tdx.module.status import Operand, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_1G, PG_LEVEL_4K, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule


NON_LEAF = 1 << 63
"""In the returned type: a 2M range with a page pair."""


@seamcall("TDH.PHYMEM.PAGE.RDMD", leaf=24, rcx="hpa_info")
def tdh_phymem_page_rdmd(
    module: TdxModule, held: Held, *, pfn: Pfn, level: PgLevel = PG_LEVEL_4K
) -> Steps[SeamcallReturn]:
    """Read the metadata of the leaf that covers the page: RCX type, RDX owner, R8 size; R9 BEPOCH of data and S-EPT pages.

    With Dynamic PAMT: `level` is where the walk ends at the latest, elsewhere it must be 4K; RCX has bit 63 set, and R10 and R11
    return the page pair, of a 2M range that has one; and a page that holds PAMT entries is of type PT_PAMT, size 4K.
    An owner stays in the real table when a page becomes NDA; here it reads as 0. Busy only while a call holds the entry
    or a parent exclusive. Cost: `seamcall_null`, the table has no row.
    Source: tdh_phymem_page_rdmd.c of 1.5.01, of 1.5.25 for Dynamic PAMT; reference 9.2.
    """
    pamt = module.pamt
    highest = PG_LEVEL_1G if module.profile.dynamic_pamt else PG_LEVEL_4K
    require(level <= highest, Status.TDX_OPERAND_INVALID, Operand.RCX)
    pamt.check(pfn, level, Operand.RCX)
    page = yield from held.walk(pfn, level, Operand.RCX, exclusive=False)
    if isinstance(page.holds, PagePair):
        r10, r11 = pamt.pair_addresses(page)
        rcx = PageType.PT_PAMT | NON_LEAF
        return SeamcallReturn(Status.TDX_SUCCESS, rcx=rcx, r8=page.level.tdx, r10=r10, r11=r11)
    if page.kind is PageType.PT_NDA and level == PG_LEVEL_4K and (yield from pamt.holds_metadata(pfn)):
        return SeamcallReturn(Status.TDX_SUCCESS, rcx=PageType.PT_PAMT, r8=PG_LEVEL_4K.tdx)
    bepoch = 0
    if page.kind in (PageType.PT_REG, PageType.PT_EPT):
        bepoch = yield page.bepoch.read_once()
    owner = (page.owner or 0) << PAGE_SHIFT
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=page.kind, rdx=owner, r8=page.level.tdx, r9=bepoch)
