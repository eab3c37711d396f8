"""TDH.MEM.SEPT.REMOVE: take an empty S-EPT page away, and its twins in the L2 trees."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sim import Cell, Steps
from sim.access import Access
from sim.dependence import READ, Touch
from sim.thread import Thread
from tdx.module.l2 import L2_FREE, aliases, l2_entry
from tdx.module.pamt import PamtEntry
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept import SeptPage
from tdx.module.sept_states import next_state
from tdx.module.septe import STATE_BITS, Septe, SeptState, make
from tdx.module.status import NULL_PA, Operand, Refused, SeamcallReturn, Status
from tdx.module.tracking import check_blocked_and_tracked
from tdx.module.walk import check_page_info, lock_entry, named_page, wrong_state
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_2M, PG_LEVEL_4K, Gfn, Gpa, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdcs, Tdr
    from tdx.module.operands import Td
    from tdx.module.walk import Walk

LEAF = "TDH.MEM.SEPT.REMOVE"


@seamcall(LEAF, leaf=30, cost="tdh_mem_sept_remove", rcx="page_info", rdx="td")
def tdh_mem_sept_remove(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel, version: int = 0
) -> Steps[SeamcallReturn]:
    """S-EPT NL_BLOCKED (or NL_MAPPED, while nothing need be tracked) -> FREE, the page below it -> NDA.

    All 512 entries of the page must be FREE; REMOVED is not. The pages of L2 VMs that have an alias go too: with the TD's own page
    empty they are. They are taken away before it, the last VM's first.

    Returns: RCX the page's address; of version 1, also of a refusal, R9 to R11: those of the L2 pages, NULL_PA where there was none.
    Source: tdh_mem_sept_remove.c; reference 8.2.
    """
    l2_pages = [NULL_PA] * 3 if version else [0] * 3
    try:
        tdr, tdcs = yield from lock_td(held, td, LEAF, Operand.RDX)
        gfn = check_page_info(tdcs, gpa, level, highest=tdcs.root.level, lowest=PG_LEVEL_2M)
        yield from held.tree(tdcs, exclusive=True)
        walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
        page = yield from _check_page(held, tdcs, walk, entry)
        twins = yield from _lock_twins(held, tdcs, entry, gfn, level)
    except Refused as refused:
        refused.r9, refused.r10, refused.r11 = l2_pages
        raise
    # All checks passed.
    for twin in reversed(twins):
        yield twin.septe.write_once(L2_FREE)
        address = yield from _give_away(module, tdr, twin.page)
        if version:
            l2_pages[twin.vm - 1] = address
    yield from held.commit(walk, make(SeptState.FREE))
    address = yield from _give_away(module, tdr, page)
    r9, r10, r11 = l2_pages
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=address, r9=r9, r10=r10, r11=r11)


def _check_page(held: Held, tdcs: Tdcs, walk: Walk, entry: Septe) -> Steps[PamtEntry]:
    """The entry's state, and the page below it: locked, tracked, empty."""
    module = held.module
    if next_state(LEAF, entry.state) is None:
        raise wrong_state(held.module, LEAF, walk, entry)
    page = named_page(module, entry, walk.level)
    yield from held.implicit_page(page, Operand.RCX, exclusive=True)
    yield from check_blocked_and_tracked(module, tdcs, walk, entry, page)
    if not (yield _FreeScan(module.sept_pages[page.pfn])):
        raise Refused(Status.TDX_EPT_PAGE_NOT_FREE, Operand.RCX, *walk.details(entry))
    return page


class _Twin(NamedTuple):
    """The S-EPT page of the same range in an L2 tree, and the entry that points to it."""

    vm: int
    septe: Cell[int]
    page: PamtEntry


def _lock_twins(held: Held, tdcs: Tdcs, entry: Septe, gfn: Gfn, level: PgLevel) -> Steps[list[_Twin]]:
    """The L2 pages of an aliased range, the first VM's first."""
    twins = []
    for vm in aliases(tdcs, entry):
        walk = yield from l2_entry(held.module, tdcs, vm, gfn, level)
        page = held.module.pamt.entry(walk.entry.pfn, PG_LEVEL_4K)
        yield from held.implicit_page(page, Operand.RCX, exclusive=True)
        twins.append(_Twin(vm, walk.septe, page))
    return twins


class _FreeScan(Access):
    """Look at all 512 entries of an S-EPT page; the thread gets whether all are FREE.

    One access, since nobody else can change one: the tree is held exclusive, and no guest has a way to them any more. Locks and
    host priority do not count (sept_manager.h:is_sept_free).
    """

    __slots__ = ()
    verb = "scan S-EPT page"
    reads = True
    target: SeptPage

    def perform(self, thread: Thread) -> bool:
        free = SeptState.FREE.bits
        return all(cell.v & STATE_BITS == free for cell in self.target.entries.values())

    def touches(self) -> tuple[Touch, ...]:
        return tuple((cell.name, READ) for cell in self.target.entries.values())


def _give_away(module: TdxModule, tdr: Tdr, page: PamtEntry) -> Steps[int]:
    """The page is no S-EPT page any more. Returns: its address, with the hint of Dynamic PAMT."""
    yield tdr.chldcnt.fetch_add(-1)
    page.free()
    del module.sept_pages[page.pfn]
    hint = yield from module.pamt.count_out(page)
    return page.pfn << PAGE_SHIFT | hint
