"""TDH.MEM.PAGE.ADD: add and measure a page with contents, while the TD is being built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import measured
from tdx.module.pamt import MAX_PFN, PageType
from tdx.module.seamcall import lock_new_page, lock_td, seamcall
from tdx.module.sept_states import next_state
from tdx.module.septe import make
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from tdx.module.walk import check_page_info, walk_to_level, wrong_state
from vcpu.addresses import PG_LEVEL_4K, Gpa, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall(
    "TDH.MEM.PAGE.ADD",
    leaf=2,
    cost="tdh_mem_page_add_4k",
    rcx="page_info",
    rdx="td",
    r8="pfn",
    r9="source_pfn",
)
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

    Args:
        source_pfn: a shared page; None, where contents do not matter to the caller, copies nothing. The page itself is copied
            in place: the real module reads it by the shared key and writes it by the TD's.
    Source: tdh_mem_page_add.c; reference 8.4.
    """
    tdr, tdcs = yield from lock_td(held, td, "TDH.MEM.PAGE.ADD", Operand.RDX, exclusive=True)
    gfn = check_page_info(tdcs, gpa, level, highest=PG_LEVEL_4K)
    walk = yield from walk_to_level(module, tdcs, gfn, level)
    after = next_state("TDH.MEM.PAGE.ADD", walk.entry.state)
    if after is None:
        raise wrong_state(module, "TDH.MEM.PAGE.ADD", walk, walk.entry)
    require(source_pfn is None or module.kot.is_shared(source_pfn), Status.TDX_OPERAND_INVALID, Operand.R9)
    page = yield from lock_new_page(held, pfn, Operand.R8)
    # All checks passed.
    if source_pfn is not None and source_pfn % MAX_PFN != pfn:
        module.memory.copy(source_pfn % MAX_PFN, pfn)
    module.on_page_added(pfn, source_pfn)
    yield walk.septe.write_once(make(after, pfn))
    tdcs.measurement.update(measured(b"MEM.PAGE.ADD", gpa))
    yield tdr.chldcnt.fetch_add(1)
    page.assign(PageType.PT_REG, td.tdr_pfn)
    yield page.bepoch.write_once(0)
    yield from module.pamt.count_in(page)
    return SUCCESS
