"""TDH.MEM.SEPT.ADD: put a new S-EPT page below an entry, and one below its twin in each L2 tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sim import Cell, Steps
from tdx.module.interrupts import interruption
from tdx.module.l2 import l2_sept_walk, l2_table
from tdx.module.operands import BIT_63, page_info
from tdx.module.pamt import PageType, PamtEntry
from tdx.module.seamcall import lock_new_page, lock_td, seamcall
from tdx.module.sept import SeptPage
from tdx.module.sept_states import next_state
from tdx.module.septe import Septe, SeptState, make
from tdx.module.status import NULL_PA, SUCCESS, Operand, Refused, SeamcallReturn, Status, require
from tdx.module.walk import check_page_info, lock_entry, wrong_state
from vcpu.addresses import LEVELS, PAGE_SHIFT, PG_LEVEL_2M, Gfn, Gpa, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.objects import LogicalProcessor, Tdcs, Tdr
    from tdx.module.operands import Td
    from tdx.module.walk import Walk

LEAF = "TDH.MEM.SEPT.ADD"


@seamcall(
    LEAF,
    leaf=3,
    cost="tdh_mem_sept_add",
    rcx="page_info",
    rdx="td+allow_existing",
    r8="sept_pfn?",
    r9="l2_1_pfn?",
    r10="l2_2_pfn?",
    r11="l2_3_pfn?",
)
def tdh_mem_sept_add(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    gpa: Gpa,
    level: PgLevel,
    pfn: Pfn | None,
    allow_existing: bool = False,
    version: int = 0,
    l2_1_pfn: Pfn | None = None,
    l2_2_pfn: Pfn | None = None,
    l2_3_pfn: Pfn | None = None,
    lp: LogicalProcessor | None = None,
) -> Steps[SeamcallReturn]:
    """S-EPT FREE -> NL_MAPPED: `level` is that of the entry, one above the entries of the new page.

    Version 1 also adds a page below the entry of the same range in the tree of each L2 VM for which one is given. The pages are
    added one after the other, the TD's own first; before each but the first an interrupt that waits for `lp` ends the call with
    INTERRUPTED_RESUMABLE. RCX and RDX then come back as they were and R8 to R11 hold what is left, so that the same registers
    are the next call's.

    Args:
        allow_existing: a page that is there already is no error; the one that was given stays unused.
        lp: whose interrupts are looked at; without it none ever waits.
    Returns: of version 1, also of a refusal, R8 to R11: NULL_PA for a page that was added or not given, bit 63 set in one that
    was not needed.

    Source: tdh_mem_sept_add.c; reference 8.1.
    """
    pages = _Pages((pfn, l2_1_pfn, l2_2_pfn, l2_3_pfn) if version else (pfn,))
    try:
        tdr, tdcs = yield from lock_td(held, td, LEAF, Operand.RDX)
        gfn = check_page_info(tdcs, gpa, level, highest=tdcs.root.level, lowest=PG_LEVEL_2M)
        yield from held.tree(tdcs)
        walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
        yield from _check_l1_page(held, walk, entry, pages, version=version, allow_existing=allow_existing)
        yield from _check_l2_pages(held, tdcs, gfn, level, pages, allow_existing=allow_existing)
    except Refused as refused:
        if version:
            refused.r8, refused.r9, refused.r10, refused.r11 = pages.registers
        raise
    # All checks passed.
    for n, new in enumerate(pages.new):
        if n and lp is not None:
            why = yield from interruption(module, tdcs, lp, Status.TDX_INTERRUPTED_RESUMABLE)
            if why is not None:
                rcx, rdx = page_info(gpa, level), td.tdr_pfn << PAGE_SHIFT | allow_existing
                return pages.returned_with(SeamcallReturn(why, rcx=rcx, rdx=rdx))
        yield from _make_page(module, tdr, new, SeptPage(new.page.pfn, LEVELS[level - 1], gfn, new.vm))
        yield from _link(module, walk, new)
        pages.registers[new.vm] = NULL_PA
    yield from held.unlock(walk)
    return pages.returned_with(SUCCESS) if version else SUCCESS


class _New(NamedTuple):
    """A page that will be added: to VM `vm`'s tree (0 is the TD's own), below `septe`."""

    vm: int
    septe: Cell[int]
    page: PamtEntry


class _Pages:
    """The pages that came with the call, and what their registers say in the end."""

    __slots__ = ("given", "new", "registers")

    def __init__(self, given: tuple[Pfn | None, ...]) -> None:
        self.given = given
        self.new: list[_New] = []
        self.registers = [NULL_PA if pfn is None else pfn << PAGE_SHIFT & ~BIT_63 for pfn in given]

    def stays_unused(self, vm: int) -> None:
        """There is a page already where it would go."""
        self.registers[vm] |= BIT_63

    def returned_with(self, ret: SeamcallReturn) -> SeamcallReturn:
        """The same return with R8 to R11."""
        r8, r9, r10, r11 = self.registers
        return SeamcallReturn(ret.status, rcx=ret.rcx, rdx=ret.rdx, r8=r8, r9=r9, r10=r10, r11=r11)


def _check_l1_page(
    held: Held, walk: Walk, entry: Septe, pages: _Pages, *, version: int, allow_existing: bool
) -> Steps[None]:
    """The entry's state, and the TD's own page."""
    pfn = pages.given[0]
    if next_state(LEAF, entry.state) is None:
        raise wrong_state(held.module, LEAF, walk, entry)
    if pfn is None:
        require(version > 0, Status.TDX_OPERAND_INVALID, Operand.R8)
        if entry.state is not SeptState.NL_MAPPED:
            raise wrong_state(held.module, LEAF, walk, entry)
    elif entry.state is SeptState.FREE:
        page = yield from lock_new_page(held, pfn, Operand.R8)
        pages.new.append(_New(0, walk.septe, page))
    elif allow_existing:
        pages.stays_unused(0)
    else:
        raise wrong_state(held.module, LEAF, walk, entry)


def _check_l2_pages(
    held: Held, tdcs: Tdcs, gfn: Gfn, level: PgLevel, pages: _Pages, *, allow_existing: bool
) -> Steps[None]:
    """Per L2 VM with a page: the VM, the way to its entry, and the page."""
    for vm, pfn in enumerate(pages.given[1:], 1):
        if pfn is None:
            continue
        operand = Operand(Operand.R8 + vm)
        require(vm <= tdcs.num_l2_vms, Status.TDX_OPERAND_INVALID, operand)
        walk = yield from l2_sept_walk(held.module, tdcs, vm, gfn, level)
        if walk.level != level:
            raise Refused(Status.TDX_L2_SEPT_WALK_FAILED, walk.operand, *walk.details(tdcs))
        if walk.entry.is_free:
            page = yield from lock_new_page(held, pfn, operand)
            pages.new.append(_New(vm, walk.septe, page))
        elif allow_existing:
            pages.stays_unused(vm)
        else:
            raise Refused(Status.TDX_L2_SEPT_ENTRY_NOT_FREE, walk.operand, *walk.details(tdcs))


def _make_page(module: TdxModule, tdr: Tdr, new: _New, sept_page: SeptPage) -> Steps[None]:
    """Fill the page with FREE entries and give it to the TD."""
    module.sept_pages[new.page.pfn] = sept_page
    new.page.assign(PageType.PT_EPT, tdr.pfn)
    yield new.page.bepoch.write_once(0)
    yield from module.pamt.count_in(new.page)
    yield tdr.chldcnt.fetch_add(1)


def _link(module: TdxModule, walk: Walk, new: _New) -> Steps[None]:
    """Let the entry above point to the page; for an L2 page the L1 entry, still locked, gets its alias bit first."""
    if not new.vm:
        yield module.write_entry(walk.septe, make(SeptState.NL_MAPPED, new.page.pfn))
        return
    word: int = yield walk.septe.read_once()
    yield module.write_entry(walk.septe, Septe(word).with_alias(new.vm))
    yield new.septe.write_once(l2_table(new.page.pfn))
