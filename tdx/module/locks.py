"""The module's locks: words that are tried, never waited for.

A loser returns TDX_OPERAND_BUSY at once; there is no queue. Three kinds, each one word:

- `Sharex`: exclusive bit and reader count. SEPT tree, epoch, KOT, migration.
- `SharexHp`: the same with a host-priority bit. A host call that fails leaves the bit, the next host call that succeeds
  takes it away, and guests keep off in between. PAMT entries, OP_STATE; from 1.5.20 on the SEPT tree.
- the S-EPT entry's own bits TDEL and TDHP, with the same rule (`Held.entry`; guests: `guest_lock`). 1.0 has none for hosts.

A failed shared attempt leaves the reader count too high; that is harmless because the exclusive holder wipes the word when
it lets go. Every attempt on a `Sharex` or `SharexHp` is one atomic access. In the real module one that fails needs a second
instruction to leave its priority bit, and one that wins another to take it away. With one access the winners are the same and the
words but for that bit: tests/tdx/module/test_lock_words.py compares all interleavings, and names the three cases.

`Held` remembers what a call holds; the `seamcall` decorator gives it back, whatever happened. Guests take entry locks only.
Source: TDX module 1.5.01, tdx_locks.h; reference 4.1. The comment there on what a busy host call returns contradicts its
code: it returns OPERAND_BUSY, never OPERAND_BUSY_HOST_PRIORITY.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim import Cell, Steps
from sim.access import Access, Update
from tdx.module.pamt import PageType, PamtEntry
from tdx.module.septe import TDEL, TDHP, Septe
from tdx.module.sharex import Lock
from tdx.module.status import ModuleShutdown, Operand, Refused, Status
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdcs
    from tdx.module.walk import Walk


def locks(word: int) -> int:
    """Set TDEL; won if it was clear."""
    return word | TDEL


def asks_priority(word: int) -> int:
    """Set TDHP: a host call has lost."""
    return word | TDHP


def drops_priority(word: int) -> int:
    """Clear TDHP: a host call has won."""
    return word & ~TDHP


def unlocks(word: int) -> int:
    """What letting go makes of an entry. Raises: ModuleShutdown: nobody holds it (Intel's sanity check in the release)."""
    if not word & TDEL:
        raise ModuleShutdown("an S-EPT entry is released that is not locked")
    return word & ~TDEL


class Held:
    """What one call holds, in the order it was taken; every method that takes raises `Refused` if it cannot.

    `cost` is charged before anything is given back, an entry by its commit included; a leaf changes it when its price depends on
    operands, and before that.
    """

    __slots__ = ("_taken", "cost", "module")

    def __init__(self, module: TdxModule, cost: str) -> None:
        self.module = module
        self.cost = cost
        self._taken: list[Callable[[], Access]] = []

    def shared(self, lock: Lock, operand: Operand, *, met: str = "") -> Steps[None]:
        """Take a lock shared. `met` names what is reached on failure."""
        if not lock.is_shareable((yield lock.try_shared())):
            self._lost(operand, met, lock, lock.is_shareable)
        self._taken.append(lock.release_shared)

    def exclusive(self, lock: Lock, operand: Operand, *, met: str = "") -> Steps[None]:
        """Take a lock exclusive."""
        if not lock.is_free((yield lock.try_exclusive())):
            self._lost(operand, met, lock, lock.is_free)
        self._taken.append(lock.release_exclusive)

    def tree(self, tdcs: Tdcs, *, exclusive: bool = False) -> Steps[None]:
        """Take a TD's S-EPT tree, for a call that changes something: exclusive in releases without relaxed concurrency."""
        alone = exclusive or not self.module.profile.relaxed_concurrency
        take = self.exclusive if alone else self.shared
        yield from take(tdcs.sept_tree_lock, Operand.SEPT_TREE, met="sept_tree_busy")

    def page(
        self,
        pfn: Pfn,
        level: PgLevel,
        kind: PageType,
        operand: Operand,
        *,
        exclusive: bool,
        any_size: bool = False,
    ) -> Steps[PamtEntry]:
        """Check a page operand, walk the PAMT to it, lock it, and see that it is what it should be (reference 2.1).

        `any_size`: the walk may end at a larger entry of that type (TDH.PHYMEM.PAGE.WBINVD).
        """
        pamt = self.module.pamt
        pamt.check(pfn, level, operand)
        entry = yield from self.walk(pfn, level, operand, exclusive=exclusive)
        if entry.level != level and not any_size:
            raise Refused(pamt.wrong_size(entry, kind), operand)
        if entry.kind is not kind:
            raise Refused(Status.TDX_PAGE_METADATA_INCORRECT, operand)
        if kind is PageType.PT_NDA and (yield from pamt.holds_metadata(pfn)):
            raise Refused(Status.TDX_PAGE_METADATA_INCORRECT, operand)
        return entry

    def any_page(self, pfn: Pfn, operand: Operand, *, exclusive: bool = True) -> Steps[PamtEntry]:
        """Walk to the leaf that covers the page, whatever its size and type, and lock it."""
        self.module.pamt.check(pfn, PG_LEVEL_4K, operand)
        return (yield from self.walk(pfn, PG_LEVEL_4K, operand, exclusive=exclusive))

    def walk(self, pfn: Pfn, level: PgLevel, operand: Operand, *, exclusive: bool) -> Steps[PamtEntry]:
        """Lock the way to the leaf: 1G and 2M entry shared, then the leaf; an entry with none below it ends the walk.

        Source: pamt_manager.c:pamt_walk. A step that fails leaves what was taken before it to the end of the call, which comes at
        once: the module lets go of it before it returns the error.
        """
        pamt = self.module.pamt
        for at in (PG_LEVEL_1G, PG_LEVEL_2M):
            entry = pamt.entry(pfn, at)
            lock = entry.lock
            yield from self.shared(lock, operand)
            if at == level or pamt.is_leaf(entry):
                if exclusive:
                    if not lock.is_single_reader((yield lock.try_promote())):
                        self._lost(operand, "", lock, lock.is_single_reader)
                    self._taken[-1] = lock.release_exclusive
                return entry
        entry = pamt.entry(pfn, PG_LEVEL_4K)
        yield from self.implicit_page(entry, operand, exclusive=exclusive)
        return entry

    def implicit_page(self, entry: PamtEntry, operand: Operand, *, exclusive: bool) -> Steps[None]:
        """Lock only the leaf PAMT entry of a page that a table or an owner field names."""
        if exclusive:
            yield from self.exclusive(entry.lock, operand)
        else:
            yield from self.shared(entry.lock, operand)

    def entry(self, walk: Walk) -> Steps[Septe]:
        """Lock the S-EPT entry that a walk ended at, as the host, and read it again; host priority that was there is gone.

        Where entries have no locks it is only read: the tree is held exclusive. A guest may hold it all the same, see `guest_lock`.
        Returns: the word under the lock, without TDEL. TDHP is set in it if a loser was quick enough.
        Source: tdx_locks.h:sept_lock_acquire_host.
        """
        septe = walk.septe
        if not self.module.profile.relaxed_concurrency:
            return Septe((yield septe.read_once()))
        before: int = yield Update(septe, locks, "lock entry")
        lost = before & TDEL
        asks = lost and self.module.profile.host_priority
        yield Update(septe, asks_priority if asks else drops_priority, "TDHP")
        if lost:
            page = walk.page
            self.module.kernel.reached("sept_entry_busy")
            if page.is_freed:
                self.module.kernel.reached("sept_page_freed_under_walk")
            raise Refused(
                Status.TDX_OPERAND_BUSY, Operand.RCX, *walk.details(), awaited=(septe, page.lets_go)
            )
        self._taken.append(_EntryRelease(septe))
        word: int = yield septe.read_once()
        return Septe(word & ~TDEL)

    def commit(self, walk: Walk, entry: int) -> Steps[None]:
        """Write the entry and let go of it, in one access (sept_manager.c: the setters that release locks)."""
        self._forget(walk)
        yield self.module.write_entry(walk.septe, entry, unlock=True)

    def unlock(self, walk: Walk) -> Steps[None]:
        """Let go of the entry before anything else is given back."""
        release = self._forget(walk)
        if release is not None:
            yield release()

    def _forget(self, walk: Walk) -> _EntryRelease | None:
        """Spend the call's time while the entry is still held, and leave letting go of it, if it is, to the caller."""
        if self.cost:
            self.module.kernel.charge(self.cost)
            self.cost = ""
        release = _EntryRelease(walk.septe)
        if release not in self._taken:
            return None
        self._taken.remove(release)
        return release

    def give_back(self, release: Callable[[], Access]) -> Steps[None]:
        """Let go of one lock before the call ends; `release` is the lock's own method."""
        self._taken.remove(release)
        yield release()

    @property
    def depth(self) -> int:
        """How many locks are held: a mark that `release` can go back to."""
        return len(self._taken)

    def release(self, down_to: int = 0) -> Steps[None]:
        """Let go of everything taken since the mark `down_to`, last taken first."""
        taken = self._taken
        while len(taken) > down_to:
            yield taken.pop()()

    def _lost(self, operand: Operand, met: str, lock: Lock, is_free: Callable[[int], bool]) -> None:
        if met:
            self.module.kernel.reached(met)
        raise Refused(Status.TDX_OPERAND_BUSY, operand, awaited=(lock, is_free))


class _EntryRelease:
    """Lets an entry go."""

    __slots__ = ("septe",)

    def __init__(self, septe: Cell[int]) -> None:
        self.septe = septe

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _EntryRelease) and other.septe is self.septe

    def __hash__(self) -> int:
        return hash(self.septe.name)

    def __call__(self) -> Access:
        return Update(self.septe, unlocks, "unlock entry")
