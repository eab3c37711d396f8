"""The module's rules, asked of the steps that can break them, and at the end of the ones that need rest.

For exhaustive searches. A predicate that is looked at after every step makes all steps of a world dependent; here each rule looks
after the accesses to the words it speaks of, and only at what it needs, by `peek` and `note`, so that a search knows exactly which
orders matter to it. The rules, by the word that a step has changed:

- an S-EPT entry: it is locked once and let go of by who locked it, and written by nobody else; what its new word names agrees with
  the PAMT; a page is named once; a mapping is taken away or resized only if no LP can have it cached (reference 7);
- a PAMT lock that is let go of: every open entry that names the page agrees with its type, size and owner;
- the epoch's unit: REFCOUNTs are not negative, and an epoch begins with nobody counted in its parity.

Where a rule does not bind, and why: calls that hold the TDR exclusive need no entry lock (PAGE.ADD); release 1.0 has none, and
PROMOTE of 2.0 leaves children alone; a page whose PAMT entry is locked exclusive may disagree with its S-EPT entry, because
PAGE.AUG writes the entry, open, before the page's type; exported pages that are write-blocked may be relocated untracked
(reference 14, row 12), and planned non-blocking resize needs no tracking.
Source: reference 4.1, 7, 7.1, 14; TDX module 1.5.01, tdx_locks.h, tdh_mem_page_aug.c:tdh_mem_page_aug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sim import Cell, Kernel
from sim.dependence import UPDATE, WRITE, note
from tdx.module.invariants import AT_REST, named_frames
from tdx.module.objects import Epoch, Lifecycle, Tdr
from tdx.module.pamt import PageType, PamtEntry
from tdx.module.resize import Run
from tdx.module.sept_states import TRACKED_OP_STATES
from tdx.module.septe import HPA, PS, TDEL, TDHP, Septe, SeptState
from tdx.module.sharex import EXCLUSIVE, HP_EXCLUSIVE, SharexHp
from tdx.module.walk import named_page
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sim.access import Access
    from sim.thread import Thread
    from tdx.module.invariants import Verdict
    from tdx.module.module import TdxModule
    from tdx.module.sept import SeptPage

LOCK_BITS = TDEL | TDHP
UNTRACKED_EXPORTS = frozenset((SeptState.EXPORTED_BLOCKEDW, SeptState.PENDING_EXPORTED_BLOCKEDW))


class Place(NamedTuple):
    """Where an entry's word stands."""

    tdr: Tdr
    page: SeptPage
    cell: Cell[int]


def watch(kernel: Kernel, module: TdxModule, judged: set[object] | None = None) -> None:
    """Hold every execution of this world to the module's rules.

    Args:
        judged: kept by a search from execution to execution: how the module can be left. There are few ways, so that one look at
            each is much cheaper than one at the end of every execution.
    """
    kernel.check(_Watch(module))
    known: set[object] = set() if judged is None else judged
    left: object = None
    is_new = True

    def left_before() -> bool:
        nonlocal left, is_new
        left = _left(module)
        is_new = left not in known
        known.add(left)
        return True

    def once(holds: Callable[[], Verdict]) -> Callable[[], Verdict]:
        def judged() -> Verdict:
            verdict = not is_new or holds()
            if verdict is not True:
                known.discard(left)  # so that a replay finds it again
            return verdict

        return judged

    kernel.at_end("it is known how the module is left", left_before)
    for text, invariant in AT_REST.items():
        kernel.at_end(text, once(invariant(module)), kind="diverged")


def _left(module: TdxModule) -> object:
    """All that rules at rest look at, as one value."""
    tds = [
        (
            tdr.lifecycle,
            tdr.chldcnt.v,
            tdr.tdcs.epoch.v,
            *(lock.v for lock in (tdr.tdcs.sept_tree_lock, tdr.tdcs.epoch_lock, tdr.tdcs.op_state_lock)),
            *((vcpu.inside, vcpu.vcpu_epoch) for vcpu in tdr.vcpus),
        )
        for tdr in module.tds()
    ]
    roots = [
        page for tdr in module.tds() if tdr.tdcs.has_root for page in (tdr.tdcs.root, *tdr.tdcs.l2_roots)
    ]
    tables = [
        (page.pfn, page._first, tuple((index, cell.v) for index, cell in page._cells.items()))
        for page in (*roots, *module.sept_pages.values())
    ]
    pages = [(page.pfn, page.level, page.kind, page.owner, page.lock.v) for page in module.pamt.known()]
    return module.in_flight, tuple(tds), tuple(tables), tuple(pages)


class _Watch:
    """What was seen of each word, and who holds which entry."""

    def __init__(self, module: TdxModule) -> None:
        self._module = module
        self._words: dict[str, int] = {}
        """Entries by name, as they were after the last step that touched them."""
        self._holders: dict[str, Thread] = {}
        self._places: dict[int, Place] = {}
        """By identity of the cell, which the place keeps alive."""
        self._pages: dict[int, PamtEntry] = {}
        """By identity of the lock."""
        self._epochs: dict[str, Epoch] = {}

    def __call__(self, kernel: Kernel, thread: Thread, access: Access) -> None:
        cell = access.target
        seen = access._value if isinstance(access._value, int) else None
        if isinstance(cell, SharexHp):
            if access.writes and seen is not None and seen & HP_EXCLUSIVE and not cell.v & HP_EXCLUSIVE:
                self._page_released(kernel, cell)
        elif isinstance(cell, Cell):
            if cell.name.startswith("sept["):
                self._entry_touched(kernel, thread, cell, seen)
            elif isinstance(cell.v, Epoch):
                self._epoch_touched(kernel, cell)
        elif isinstance(access, Run):
            for entry, before in zip(access.cells, access.before, strict=True):
                if entry.name.startswith("sept["):
                    self._entry_touched(kernel, thread, entry, before)

    # S-EPT entries.

    def _entry_touched(self, kernel: Kernel, thread: Thread, cell: Cell[int], seen: int | None) -> None:
        """`seen` is what the access has read or replaced; a write does not say, nor does one access to many words."""
        old = Septe(self._words.get(cell.name, cell.v) if seen is None else seen)
        self._words[cell.name] = cell.v
        new = Septe(cell.v)
        if new == old:
            return
        place = self._place(cell)
        if place is None:
            return  # a page that is in no tree
        changed = (new ^ old) & ~LOCK_BITS != 0
        self._holding(kernel, thread, place, old, new, changed=changed)
        if changed:
            self._taken_away(kernel, place, old, new)
            self._named_once(kernel, place, old, new)
        if not new.is_locked:
            self._agrees(kernel, place, new)

    def _holding(
        self, kernel: Kernel, thread: Thread, place: Place, old: Septe, new: Septe, *, changed: bool
    ) -> None:
        """Who sets the lock holds it until it is clear; meanwhile nobody else changes the entry, or lets go of it."""
        name = place.cell.name
        holder = self._holders.get(name)
        if not old.is_locked and new.is_locked:
            self._holders[name] = thread
        elif old.is_locked and holder is not thread and (changed or not new.is_locked):
            kernel.find(
                "lock-rule",
                "an S-EPT entry is changed under somebody else's lock",
                entry=name,
                old=old,
                new=new,
            )
        elif not old.is_locked and changed and self._needs_lock(place.tdr):
            kernel.find(
                "lock-rule", "an S-EPT entry is changed without its lock", entry=name, old=old, new=new
            )
        if not new.is_locked:
            self._holders.pop(name, None)

    def _needs_lock(self, tdr: Tdr) -> bool:
        tdr_lock = self._module.pamt.entry(tdr.pfn, PG_LEVEL_4K).lock
        return self._module.profile.relaxed_concurrency and not tdr_lock.peek() & HP_EXCLUSIVE

    def _taken_away(self, kernel: Kernel, place: Place, old: Septe, new: Septe) -> None:
        """No LP can have a mapping cached that is removed, moved or resized; only tracked op_states promise that."""
        tdcs = place.tdr.tdcs
        level = place.page.level
        state = old.state
        if not state.is_tlb_tracking_required or named_frames(new, level) == named_frames(old, level):
            return
        if tdcs.op_state not in TRACKED_OP_STATES or state in UNTRACKED_EXPORTS:
            return
        if self._module.profile.resize_unblocked and new.state not in (SeptState.FREE, SeptState.REMOVED):
            return
        unit = tdcs.epoch.peek()
        bepoch = named_page(self._module, old, level).bepoch.peek()
        if not state.is_blocked or _may_be_cached(unit, bepoch):
            kernel.find(
                "stale-tlb",
                "a mapping that may be cached is taken away",
                old=old,
                new=new,
                bepoch=bepoch,
                unit=unit,
            )

    def _named_once(self, kernel: Kernel, place: Place, old: Septe, new: Septe) -> None:
        """The pages that the new word names are nobody else's; two words that may name one page are taken as dependent."""
        level = place.page.level
        for entry in (old, new):
            frames = named_frames(entry, level)
            if frames:
                size = level if entry.is_leaf else PG_LEVEL_4K
                for at in (PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K):
                    if at >= size:
                        key = f"named[{frames.start >> 9 * (at - 1):#x},{at.short}]"
                        note(key, WRITE if at == size else UPDATE)
        naming = list(self._naming(named_frames(new, level)))
        if len(naming) > 1:
            entries = " and ".join(other.cell.name for other in naming)
            kernel.find("overwrite", "two S-EPT entries name one page", entries=entries)

    def _agrees(self, kernel: Kernel, place: Place, entry: Septe) -> None:
        """An open entry names a page of its TD, of its size and of the right type, unless that page is in the middle of a call."""
        tdr = place.tdr
        if not named_frames(entry, place.page.level) or tdr.lifecycle is Lifecycle.TEARDOWN:
            return
        page = named_page(self._module, entry, place.page.level)
        if page.lock.peek() & HP_EXCLUSIVE:
            return
        kind = self._module.pamt.kind_of(page)
        if kind is not (PageType.PT_REG if entry.is_leaf else PageType.PT_EPT) or page.owner != tdr.pfn:
            kernel.find(
                "diverged",
                "an S-EPT entry names a page that is not its TD's",
                at=place.cell.name,
                entry=entry,
                page=kind.name,
                owner=page.owner,
            )

    # Where words stand. Nothing here says what it looked at: its callers do.

    def _place(self, cell: Cell[int]) -> Place | None:
        """Where the word stands, or None if its page is in no tree."""
        place = self._places.get(id(cell))
        if place is None:
            for tdr, page in self._pages_of_trees():
                cells = page._cells.values()
                if any(known is cell for known in cells):
                    self._places.update((id(known), Place(tdr, page, known)) for known in cells)
                    return self._places[id(cell)]
        return place

    def _naming(self, frames: range) -> Iterator[Place]:
        """All entries of living TDs that name one of the frames."""
        start, stop = frames.start, frames.stop
        for tdr, page in self._pages_of_trees():
            pages = page.level.pages
            for cell in page.entries.values():
                word = cell.v
                pfn = (word & HPA) >> PAGE_SHIFT
                if (
                    pfn < stop
                    and start < pfn + pages
                    and _overlap(frames, named_frames(Septe(word), page.level))
                ):
                    yield Place(tdr, page, cell)

    def _pages_of_trees(self) -> Iterator[tuple[Tdr, SeptPage]]:
        """Every S-EPT page of every living TD that can be reached from its root, through blocked tables too."""
        for tdr in self._module.tds():
            if tdr.tdcs.has_root and tdr.lifecycle is not Lifecycle.TEARDOWN:
                todo = [tdr.tdcs.root]
                while todo:
                    page = todo.pop()
                    yield tdr, page
                    for cell in (
                        page._cells.values() if page.level > PG_LEVEL_4K else ()
                    ):  # tables have been looked at
                        below = self._module.sept_pages.get((cell.v & HPA) >> PAGE_SHIFT)
                        if below is not None and not cell.v & PS:
                            todo.append(below)

    # PAMT entries and the epoch.

    def _page_released(self, kernel: Kernel, lock: SharexHp) -> None:
        page = self._pages.get(id(lock))
        if page is None:
            self._pages = {id(known.lock): known for known in self._module.pamt.known()}
            page = self._pages.get(id(lock))
        if page is None:
            return  # not a page's lock: OP_STATE's, or the tree's
        for place in self._naming(range(page.pfn, page.pfn + page.level.pages)):
            entry = Septe(place.cell.peek())
            if not entry.is_locked and not self._is_merged(place.tdr):
                self._agrees(kernel, place, entry)

    def _is_merged(self, tdr: Tdr) -> bool:
        """Whether a PROMOTE may be between PAMT and S-EPT that holds the tree instead of the children."""
        profile = self._module.profile
        if not profile.promote_tree_exclusive or profile.promote_locks_children:
            return False
        return tdr.tdcs.sept_tree_lock.peek() & EXCLUSIVE != 0

    def _epoch_touched(self, kernel: Kernel, cell: Cell[Epoch]) -> None:
        unit = cell.v
        before = self._epochs.get(cell.name, unit)
        self._epochs[cell.name] = unit
        if min(unit.refcount0, unit.refcount1) < 0:
            kernel.find("refcount", "a REFCOUNT is negative", unit=unit)
        if unit.epoch != before.epoch and unit.refcount(unit.epoch):
            kernel.find("refcount", "an epoch begins with vCPUs counted in its parity", unit=unit)


def _may_be_cached(unit: Epoch, bepoch: int) -> bool:
    """Whether a vCPU may still run with translations from before the end of epoch `bepoch`; said again, not asked of the leaf."""
    still_inside = unit.epoch == bepoch + 1 and unit.refcount(bepoch) > 0
    return unit.epoch <= bepoch or still_inside


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
