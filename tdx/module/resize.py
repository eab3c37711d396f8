"""What splitting and merging a mapping share: the page of 512 children, their locks and their comparison, the PAMT entries.

DEMOTE computes the children of a leaf and writes them into a page that is private to it until the parent names it. PROMOTE does the
reverse with children that are there for all to see: it locks each, reads it again and compares it with the first, in order; the
first one that is held or does not fit ends it.

The PAMT follows in one go: under the exclusive lock of the large entry, but not of the 512 small ones, type and owner move from
one to the others. Nobody else can be at a small one: every explicit walk to it locks the large one shared, and whoever comes by
way of the S-EPT needs the S-EPT entry that the caller holds.

Where one access stands for several: the children are taken in runs of `module.promote_step_children`; a run is locked in one access,
and read and compared in the next. With runs of one that is the module's order. The large PAMT entry's 512 small ones are one access.
Source: TDX module 1.5.01, pamt_manager.c:pamt_promote, pamt_demote; tdh_mem_page_promote.c:is_sept_page_valid_for_merge,
is_l2_sept_page_valid_for_merge; tdh_mem_page_demote.c:sept_split_entry; reference 8.11, 8.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sim import Cell, Steps
from sim.access import Access
from sim.dependence import READ, WRITE, Touch, note
from sim.thread import Thread
from tdx.module.dynamic_pamt import DynamicPamt
from tdx.module.l2 import L2Septe
from tdx.module.pamt import PageType, PamtEntry
from tdx.module.sept import SeptPage
from tdx.module.septe import HPA, TDEL, TDHP, Septe, SeptState
from tdx.module.status import Operand, Refused, Status
from tdx.module.tracking import check_blocked_and_tracked
from vcpu.addresses import ENTRIES, LEVELS, PAGE_SHIFT, PG_LEVEL_2M, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdcs
    from tdx.module.profile import Profile
    from tdx.module.walk import Walk

MERGEABLE = frozenset((SeptState.MAPPED, SeptState.PENDING))
"""States in which 512 children may become one."""
Details = tuple[int, int]
"""RCX and RDX of a refusal."""


def check_resizable(module: TdxModule, tdcs: Tdcs, walk: Walk, entry: Septe, page: PamtEntry) -> Steps[None]:
    """Refuse unless the range is blocked and tracked, where this release wants that; see `check_blocked_and_tracked`."""
    profile = module.profile
    if not profile.resize_unblocked:
        always = profile.resize_always_blocked
        yield from check_blocked_and_tracked(module, tdcs, walk, entry, page, always=always)


def split_page(pfn: Pfn, gfn: int, level: PgLevel, word: int, data_pfn: Pfn, vm: int = 0) -> SeptPage:
    """The S-EPT page in frame `pfn` that maps what a leaf of `level` at `gfn` mapped: 512 times `word`, consecutive frames.

    Args:
        word: what every child is a copy of, its frame apart.
        data_pfn: the first frame of the mapping.
    """
    below = LEVELS[level - 1]
    first = Septe(word).with_pfn(data_pfn)
    return SeptPage(pfn, below, gfn, vm, first=first, stride=below.pages << PAGE_SHIFT)


def pamt_demote(
    module: TdxModule, held: Held, large: PamtEntry, pair: tuple[Pfn | None, Pfn | None]
) -> Steps[None]:
    """Split a page's PAMT entry: the 512 below become REG of the same owner with BEPOCH 0, it becomes NDA.

    With Dynamic PAMT the 512 below a 2M entry are those of the page `pair`, see `DynamicPamt.split`.
    Raises: Refused: OPERAND_BUSY on RCX, nothing changed; what is wrong with the pair, on R12 or R13.
    """
    pamt = module.pamt
    yield from held.implicit_page(large, Operand.RCX, exclusive=True)
    if isinstance(pamt, DynamicPamt) and large.level == PG_LEVEL_2M:
        yield from pamt.split(held, large, pair)
    else:
        yield ChangePamt(large, _children_of(module, large), split=True)
    yield from held.give_back(large.lock.release_exclusive)


def pamt_promote(module: TdxModule, held: Held, large: PamtEntry) -> Steps[None]:
    """Merge the 512 PAMT entries below `large`, which gets their type and owner; its BEPOCH stays what it was.

    Raises: Refused: OPERAND_BUSY on RCX, nothing changed.
    """
    pamt = module.pamt
    yield from held.implicit_page(large, Operand.RCX, exclusive=True)
    if isinstance(pamt, DynamicPamt) and large.level == PG_LEVEL_2M:
        yield from pamt.merge(large)
    else:
        yield ChangePamt(large, _children_of(module, large), split=False)
    yield from held.give_back(large.lock.release_exclusive)


def _children_of(module: TdxModule, large: PamtEntry) -> list[PamtEntry]:
    below = LEVELS[large.level - 1]
    frames = range(large.pfn, large.pfn + large.level.pages, below.pages)
    return [module.pamt.entry(pfn, below) for pfn in frames]


class ChangePamt(Access):
    """Move type and owner between a large PAMT entry, which the thread holds exclusive, and the 512 below it."""

    __slots__ = ("_large", "_small", "_split")
    reads = writes = True

    def __init__(self, large: PamtEntry, small: Sequence[PamtEntry], *, split: bool) -> None:
        self.target = large.lock
        self._large = large
        self._small = small
        self._split = split

    def perform(self, thread: Thread) -> None:
        large = self._large
        note(large.owned, READ)
        if self._split:
            assert large.kind is PageType.PT_REG, f"{large.owned}: {large.kind.name}"
            for entry in self._small:
                entry.assign(large.kind, large.owner)
                note(entry.bepoch.name, WRITE)
                entry.bepoch.v = 0
            large.free()
        else:
            kind, owner = self._small[0].kind, self._small[0].owner
            for entry in self._small:
                assert (entry.kind, entry.owner) == (kind, owner), f"{entry.owned}: {entry.kind.name}"
                entry.free()
            large.assign(kind, owner)

    def touches(self) -> tuple[Touch, ...]:
        return ()  # 1024 words: noted when it happens

    def __repr__(self) -> str:
        return f"{'split' if self._split else 'merge'} {self.target!s}"


class Pattern:
    """What 512 children must look like to become one leaf of `level`: the first one, each so many pages on.

    The comparison is of whole words, so that alias bits, host priority, write-blocking and what else a word may carry count; only
    the accept counter of a PENDING 2M child does not. Source: is_sept_page_valid_for_merge.
    """

    __slots__ = ("_allowed", "_below", "_ignored", "_level", "first")

    def __init__(self, level: PgLevel, profile: Profile) -> None:
        self.first = Septe(0)
        self._level = level
        self._below = LEVELS[level - 1]
        self._ignored = TDHP if profile.promote_ignores_tdhp else 0
        self._allowed = MERGEABLE if profile.promote_pending else MERGEABLE - {SeptState.PENDING}

    def fits(self, index: int, word: int) -> bool:
        """Whether the child at `index` may be what it is; the one at 0 becomes the first."""
        entry = Septe(word & ~self._ignored).without_accept_counter(self._below)
        if index == 0:
            self.first = entry
            return not entry.pfn_at(self._below) & (self._level.pages - 1) and entry.state in self._allowed
        return entry == self.first + index * self._below.size


class Children:
    """The entries of an S-EPT page that PROMOTE wants to merge into a leaf of `level`, and those among them that it holds."""

    __slots__ = ("_held", "_module", "_pattern", "page")

    def __init__(self, module: TdxModule, page: SeptPage, level: PgLevel) -> None:
        self._module = module
        self.page = page
        self._pattern = Pattern(level, module.profile)
        self._held: list[Cell[int]] = []

    def check(self, details: Details) -> Steps[None]:
        """Lock the children in order and see that each fits.

        Yields: two accesses per run of `module.promote_step_children`, one in releases that do not lock children.
        Raises: Refused: OPERAND_BUSY or EPT_INVALID_PROMOTE_CONDITIONS on RCX with `details`; what is held stays held.
        """
        module, pattern = self._module, self._pattern
        start = 0
        while start < ENTRIES:
            run = [
                self.page.at(index)
                for index in range(start, min(start + module.promote_step_children, ENTRIES))
            ]
            blocker = None
            if module.profile.promote_locks_children:
                run, blocker = yield LockRun(run, start, pattern)
                self._held += run
            words = (yield ReadRun(run)) if run else []
            if not all(pattern.fits(start + n, word) for n, word in enumerate(words)):
                raise Refused(Status.TDX_EPT_INVALID_PROMOTE_CONDITIONS, Operand.RCX, *details)
            if blocker is not None:
                module.kernel.reached("sept_entry_busy")
                raise Refused(
                    Status.TDX_OPERAND_BUSY, Operand.RCX, *details, awaited=(blocker, self.page.lets_go)
                )
            start += len(run)

    @property
    def first(self) -> Cell[int]:
        """The one at index 0, which becomes the merged leaf."""
        return self.page.at(0)

    @property
    def pfn(self) -> Pfn:
        """The first frame of what they map, once they are checked."""
        return self._pattern.first.pfn_at(self.page.level)

    def release(self) -> Steps[None]:
        """Unlock those that are held, in order. Yields: an access per run."""
        step = self._module.promote_step_children
        for start in range(0, len(self._held), step):
            yield UnlockRun(self._held[start : start + step])


def free_sept_page(module: TdxModule, page: SeptPage) -> None:
    """The page is out of the tree; its entries stay as they are, locks and all, for whoever passed its parent before.

    Part of the access that frees it in the PAMT.
    """
    page.is_freed = True
    for cell in page.entries.values():
        note(cell.name, WRITE)
        cell.notify()
    del module.sept_pages[page.pfn]


class Run(Access):
    """One access to several neighbouring entries. `before` are their words before it."""

    __slots__ = ("before", "cells")
    mode = WRITE

    def __init__(self, cells: Sequence[Cell[int]]) -> None:
        self.target = f"{cells[0].name} and {len(cells) - 1} more" if cells else "no entry"
        self.cells = cells
        self.before: list[int] = []

    def touches(self) -> tuple[Touch, ...]:
        return tuple((cell.name, self.mode) for cell in self.cells)

    def __repr__(self) -> str:
        return f"{self.verb} {self.target}"


class LockRun(Run):
    """Lock entries as the host, in order, up to one that is held (it gets TDHP) or that does not fit (it is locked).

    The thread gets the entries that it now holds, and the one in the way if any. So each child is tried only after those before it
    have been compared, as in the module, even where a run is one access.
    """

    __slots__ = ("_pattern", "_start")
    verb = "lock"
    reads = writes = acquires = True

    def __init__(self, cells: Sequence[Cell[int]], start: int, pattern: Pattern) -> None:
        super().__init__(cells)
        self._start = start
        self._pattern = pattern

    def perform(self, thread: Thread) -> tuple[list[Cell[int]], Cell[int] | None]:
        self.before = [cell.v for cell in self.cells]
        taken: list[Cell[int]] = []
        for index, cell in enumerate(self.cells, self._start):
            word = cell.v
            lost = word & TDEL
            cell.v = word | TDHP if lost else word & ~TDHP | TDEL
            cell.notify()
            if lost:
                return taken, cell
            taken.append(cell)
            if not self._pattern.fits(index, cell.v):
                break
        return taken, None


class ReadRun(Run):
    """Read entries; the thread gets their words."""

    __slots__ = ()
    verb = "read"
    mode = READ
    reads = True

    def perform(self, thread: Thread) -> list[int]:
        self.before = [cell.v for cell in self.cells]
        return self.before


class UnlockRun(Run):
    """Let entries go."""

    __slots__ = ()
    verb = "unlock"
    reads = writes = releases = True

    def perform(self, thread: Thread) -> None:
        self.before = [cell.v for cell in self.cells]
        for cell in self.cells:
            cell.v &= ~TDEL
            cell.notify()


def check_l2_children(module: TdxModule, page: SeptPage, level: PgLevel, details: Details) -> Steps[None]:
    """See that the entries of an L2 VM's page can be merged: all free, or all leaves with the same attributes.

    Their frames are those of the L1 children, which the caller holds and has compared. Yields: an access per run.
    Raises: Refused: EPT_INVALID_PROMOTE_CONDITIONS on RCX with `details`. Source: is_l2_sept_page_valid_for_merge.
    """
    step = module.promote_step_children
    first = L2Septe(0)
    for start in range(0, ENTRIES, step):
        words = yield ReadRun([page.at(index) for index in range(start, min(start + step, ENTRIES))])
        if start == 0:
            first = L2Septe(words[0])
        aligned_leaf = first.is_leaf and not first.pfn & (level.pages - 1)
        same = all(word & ~HPA == first & ~HPA for word in words)
        if not same or not (first.is_free or aligned_leaf):
            raise Refused(Status.TDX_EPT_INVALID_PROMOTE_CONDITIONS, Operand.RCX, *details)
