"""TDH.MEM.PAGE.ADD: add and measure a page with contents, while the TD is being built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.pamt import MAX_PFN, PageType
from tdx.module.seamcall import lock_new_page, lock_td, seamcall
from tdx.module.sept_states import next_state
from tdx.module.septe import make
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status, require
from tdx.module.walk import check_page_info, walk_to_level
from vcpu.addresses import PG_LEVEL_4K, Gpa, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MEM.PAGE.ADD", leaf=2, cost="tdh_mem_page_add_4k", rcx="page_info", rdx="td", r8="pfn")
def tdh_mem_page_add(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    gpa: Gpa,
    pfn: Pfn,
    source_pfn: Pfn | None = None,
    level: PgLevel = PG_LEVEL_4K,
) -> Steps[SeamcallReturn]:
    """S-EPT FREE -> MAPPED with a copy of the source page. The TDR is exclusive, which covers tree and entry.

    `source_pfn` None leaves R9 out: contents do not matter to the caller. Reference 8.4.
    """
    tdr, tdcs = yield from lock_td(held, td, "TDH.MEM.PAGE.ADD", Operand.RDX, exclusive=True)
    gfn = check_page_info(tdcs, gpa, level, highest=PG_LEVEL_4K)
    walk = yield from walk_to_level(module, tdcs, gfn, level)
    after = next_state("TDH.MEM.PAGE.ADD", walk.entry.state)
    if after is None:
        raise Refused(Status.TDX_EPT_ENTRY_STATE_INCORRECT, Operand.RCX, *walk.details())
    require(source_pfn is None or 0 <= source_pfn < MAX_PFN, Status.TDX_OPERAND_INVALID, Operand.R9)
    page = yield from lock_new_page(held, pfn, Operand.R8)
    # All checks passed.
    module.on_page_added(pfn, source_pfn)
    tdcs.measurement.update(b"MEM.PAGE.ADD%x" % gpa)
    page.assign(PageType.PT_REG, td.tdr_pfn)
    yield page.bepoch.write_once(0)
    yield tdr.chldcnt.fetch_add(1)
    yield walk.septe.write_once(make(after, pfn))
    return SUCCESS
