"""TDH.PHYMEM.PAMT.ADD: lend the module a page pair for the 4K PAMT entries of a 2M range."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.dynamic_pamt import dynamic_table, lock_pair_page, lock_range
from tdx.module.pamt import PageType
from tdx.module.seamcall import seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from vcpu.addresses import ENTRIES, PG_LEVEL_2M, PG_LEVEL_4K, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule


@seamcall("TDH.PHYMEM.PAMT.ADD", leaf=58, rcx="hpa_info", rdx="pamt_pfn0", r8="pamt_pfn1")
def tdh_phymem_pamt_add(
    module: TdxModule,
    held: Held,
    *,
    pfn: Pfn,
    level: PgLevel,
    pamt_pfn0: Pfn,
    pamt_pfn1: Pfn,
) -> Steps[SeamcallReturn]:
    """2M range NDA -> PT_PAMT: from now on its 4K pages can be given to TDs.

    A range that has a pair, or is a 2M page, is HPA_RANGE_NOT_FREE|RCX: so a host that loses a race with itself sees it. The pair's
    pages must be nobody's and hold no PAMT entries yet (PAGE_NOT_FREE); they may lie in the range itself, which is then
    locked already. Without Dynamic PAMT: OPERAND_INVALID|RAX.
    Source: TDX module 1.5.25, tdh_phymem_pamt_add.c.
    Cost: `seamcall_null`, no row of the table; 4 us on average (2 to 18) were measured for it (kvm@, 2025, with lock waits apart).
    """
    pamt = dynamic_table(module)
    require(level == PG_LEVEL_2M, Status.TDX_OPERAND_INVALID, Operand.RCX)
    pamt.check_address(pfn, PG_LEVEL_2M, Operand.RCX)
    pair = (pamt_pfn0, pamt_pfn1)
    operands = (Operand.RDX, Operand.R8)
    for page, operand in zip(pair, operands, strict=True):
        pamt.check(page, PG_LEVEL_4K, operand)
    entry = yield from lock_range(held, pfn)
    require(
        entry.level == PG_LEVEL_2M and entry.kind is PageType.PT_NDA,
        Status.TDX_HPA_RANGE_NOT_FREE,
        Operand.RCX,
    )
    for page, operand in zip(pair, operands, strict=True):
        if not pfn <= page < pfn + ENTRIES:
            yield from lock_pair_page(held, page, operand)
    yield from pamt.claim(pair, operands)
    # All checks passed.
    pamt.install(entry, pair)
    return SUCCESS
