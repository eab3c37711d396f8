"""TDH.PHYMEM.PAMT.REMOVE: take a page pair back from a 2M range whose 4K pages are nobody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.dynamic_pamt import PAGES_IN_PAIR, dynamic_table, lock_range
from tdx.module.pamt import FirstAssigned, PageType
from tdx.module.seamcall import seamcall
from tdx.module.status import Operand, Refused, SeamcallReturn, Status, require
from vcpu.addresses import ENTRIES, PG_LEVEL_2M, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule


@seamcall("TDH.PHYMEM.PAMT.REMOVE", leaf=59, rcx="hpa_info")
def tdh_phymem_pamt_remove(
    module: TdxModule, held: Held, *, pfn: Pfn, level: PgLevel
) -> Steps[SeamcallReturn]:
    """2M range PT_PAMT -> NDA; RDX and R8 return the addresses of the pair's pages.

    No pair: NO_PAMT_PAGE_PAIR|RCX. A page in use: PAMT_PAGE_NOT_EMPTY with the number (0 or 1) of the pair's page that holds its
    entry. That all types are NDA while a call has yet to count its page out shuts the module down, and is a finding:
    `dynamic_pamt` says why. Without Dynamic PAMT: OPERAND_INVALID|RAX.
    Source: TDX module 1.5.25, tdh_phymem_pamt_remove.c.
    Cost: `seamcall_null`, no row of the table; 2 us on average (1 to 11) were measured for it (kvm@, 2025).
    """
    pamt = dynamic_table(module)
    require(level == PG_LEVEL_2M, Status.TDX_OPERAND_INVALID, Operand.RCX)
    pamt.check_address(pfn, PG_LEVEL_2M, Operand.RCX)
    entry = yield from lock_range(held, pfn)
    require(
        entry.level == PG_LEVEL_2M and entry.kind is PageType.PT_PAMT,
        Status.TDX_NO_PAMT_PAGE_PAIR,
        Operand.RCX,
    )
    per_page = ENTRIES // PAGES_IN_PAIR
    for number in range(PAGES_IN_PAIR):
        used = yield FirstAssigned(pamt, Pfn(pfn + number * per_page), per_page)
        if used is not None:
            raise Refused(Status.TDX_PAMT_PAGE_NOT_EMPTY, number)
    count = yield pamt.pair_of(pfn).count.read_once()
    if count:
        title = "PAMT.REMOVE shut the module down: a call had yet to count its page out"
        module.kernel.find("td-dead", title, range=hex(pfn))
        yield module.state.write_once("SHUTDOWN")
        raise Refused(Status.TDX_SYS_SHUTDOWN)
    # All checks passed.
    rdx, r8 = pamt.pair_addresses(entry)
    yield from pamt.release(pamt.pair_of(pfn).pfns)
    pamt.withdraw(entry)
    return SeamcallReturn(Status.TDX_SUCCESS, rdx=rdx, r8=r8)
