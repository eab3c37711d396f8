"""TDH.MEM.PAGE.PROMOTE: merge 512 leaves into one of 2M or 1G, in the TD's own tree and in those of its L2 VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sim import Cell, Steps
from tdx.module.interrupts import interruption
from tdx.module.l2 import aliases, l2_entry
from tdx.module.operands import page_info
from tdx.module.resize import Children, check_l2_children, check_resizable, free_sept_page, pamt_promote
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept import SeptPage
from tdx.module.sept_states import next_state
from tdx.module.septe import TDHP
from tdx.module.status import NULL_PA, ModuleShutdown, Operand, Refused, SeamcallReturn, Status
from tdx.module.walk import check_page_info, lock_entry, wrong_state
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Gfn, Gpa, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.objects import LogicalProcessor, Tdcs, Tdr
    from tdx.module.operands import Td
    from tdx.module.septe import Septe
    from tdx.module.walk import Walk

LEAF = "TDH.MEM.PAGE.PROMOTE"


@seamcall(LEAF, leaf=23, cost="tdh_mem_page_promote", rcx="page_info", rdx="td")
def tdh_mem_page_promote(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    gpa: Gpa,
    level: PgLevel,
    lp: LogicalProcessor,
    version: int = 0,
) -> Steps[SeamcallReturn]:
    """S-EPT table entry of 2M or 1G -> a leaf, MAPPED or PENDING like its 512 children; their page -> NDA, RCX returns its address.

    The leaf is open although the table was blocked. The children keep their locks for ever: their page is gone. Where the
    tree is shared, who passed the parent earlier may still try them (reference 14, rows 4 and 11); never where the range must be
    blocked, for BLOCK takes the tree exclusive. An interrupt that waits for `lp` ends the call with INTERRUPTED_RESTARTABLE, RCX and
    RDX as they were.

    Returns: of version 1, also of a refusal, R9 to R11: the L2 pages that became free, NULL_PA where there is none. With Dynamic
    PAMT, of 2M: R12 and R13, the page pair.

    Source: tdh_mem_page_promote.c; reference 8.12.
    """
    freed = [NULL_PA if version else 0] * 3
    try:
        merge = yield from _check(module, held, td, gpa, level, lp)
    except Refused as refused:
        if refused.status in (Status.TDX_INTERRUPTED_RESTARTABLE, Status.TDX_INTERRUPTED_BUSY):
            refused.rcx, refused.rdx = page_info(gpa, level), td.tdr_pfn << PAGE_SHIFT
        refused.r9, refused.r10, refused.r11 = freed
        raise
    # All checks passed.
    tdr, walk, children, l2_tables, pair = merge
    word: int = yield children.first.read_once()
    if module.profile.promote_ignores_tdhp:
        word &= ~TDHP
    yield module.write_entry(walk.septe, word)
    yield from _free(module, tdr, children.page)
    for vm, septe, page in l2_tables:
        word = yield page.at(0).read_once()
        yield septe.write_once(word)
        yield from _free(module, tdr, page)
        address = yield from _counted_out(module, page)
        if version:
            freed[vm - 1] = address
    rcx = yield from _counted_out(module, children.page)
    r9, r10, r11 = freed
    r12, r13 = pair
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=rcx, r9=r9, r10=r10, r11=r11, r12=r12, r13=r13)


class _L2Table(NamedTuple):
    """An L2 VM's entry that becomes a leaf, or free, and the page below it."""

    vm: int
    septe: Cell[int]
    page: SeptPage


class _Merge(NamedTuple):
    """What is to be merged: all that it takes is held."""

    tdr: Tdr
    walk: Walk
    children: Children
    l2_tables: list[_L2Table]
    pair: tuple[int, int]


def _check(
    module: TdxModule, held: Held, td: Td, gpa: Gpa, level: PgLevel, lp: LogicalProcessor
) -> Steps[_Merge]:
    """All checks, the PAMT of the merged page included: that is merged when they have passed."""
    tdr, tdcs = yield from lock_td(held, td, LEAF, Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=PG_LEVEL_1G, lowest=PG_LEVEL_2M)
    yield from held.tree(tdcs, exclusive=module.profile.promote_tree_exclusive)
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    if next_state(LEAF, entry.state) is None:
        raise wrong_state(module, LEAF, walk, entry)
    page = module.pamt.entry(entry.pfn_at(level), PG_LEVEL_4K)
    yield from held.implicit_page(page, Operand.RCX, exclusive=True)
    yield from check_resizable(module, tdcs, walk, entry, page)
    children = Children(module, module.sept_pages[page.pfn], level)
    try:
        yield from children.check(walk.details(entry))
        l2_tables = yield from _check_l2_pages(held, tdcs, walk, entry, gfn, lp)
        yield from _test_interrupts(module, tdcs, lp)
        large = module.pamt.entry(children.pfn, level)
        pair = module.pamt.pair_addresses(large)
        yield from pamt_promote(module, held, large)
    except Refused:
        yield from children.release()
        raise
    return _Merge(tdr, walk, children, l2_tables, pair)


def _check_l2_pages(
    held: Held, tdcs: Tdcs, walk: Walk, entry: Septe, gfn: Gfn, lp: LogicalProcessor
) -> Steps[list[_L2Table]]:
    """Per L2 VM with a table here: a look at the interrupts, the table's page locked, its entries compared.

    Aliased means that there is such a table; anything else shuts the module down.
    """
    module, level = held.module, walk.level
    tables = []
    for vm in aliases(tdcs, entry):
        yield from _test_interrupts(module, tdcs, lp)
        l2 = yield from l2_entry(module, tdcs, vm, gfn, level)
        if l2.entry.is_leaf or l2.entry.is_free:
            raise ModuleShutdown(f"{gfn:#x} is a table with an alias in L2 VM {vm} that is none: {l2.entry}")
        page = module.pamt.entry(l2.entry.pfn, PG_LEVEL_4K)
        yield from held.implicit_page(page, Operand.RCX, exclusive=True)
        sept_page = module.sept_pages[page.pfn]
        yield from check_l2_children(module, sept_page, level, walk.details(entry))
        tables.append(_L2Table(vm, l2.septe, sept_page))
    return tables


def _test_interrupts(module: TdxModule, tdcs: Tdcs, lp: LogicalProcessor) -> Steps[None]:
    """Nothing is committed yet: an interrupt costs the caller a new start."""
    why = yield from interruption(module, tdcs, lp, Status.TDX_INTERRUPTED_RESTARTABLE)
    if why is not None:
        raise Refused(why)


def _counted_out(module: TdxModule, page: SeptPage) -> Steps[int]:
    """The address of a page that is free now, with the hint of Dynamic PAMT."""
    hint = yield from module.pamt.count_out(module.pamt.entry(page.pfn, PG_LEVEL_4K))
    return page.pfn << PAGE_SHIFT | hint


def _free(module: TdxModule, tdr: Tdr, page: SeptPage) -> Steps[None]:
    """A table's page is nobody's. It still has lines under the TD's key: the host must write them back."""
    yield tdr.chldcnt.fetch_add(-1)
    module.pamt.entry(page.pfn, PG_LEVEL_4K).free()
    free_sept_page(module, page)
