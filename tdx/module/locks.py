"""The module's locks: words that are tried, never waited for.

A loser returns TDX_OPERAND_BUSY at once; there is no queue. Three kinds, each one word:

- `Sharex`: exclusive bit and reader count. SEPT tree, epoch, KOT.
- `SharexHp`: the same with a host-priority bit. A host call that fails leaves the bit, the next host call that succeeds
  takes it away, and guests keep off in between. PAMT entries, OP_STATE.
- the S-EPT entry's own bits TDEL and TDHP, with the same rule (`Held.entry`; guests: TDG.MEM.PAGE.ACCEPT).

A failed shared attempt leaves the reader count too high; that is harmless because the exclusive holder wipes the word when
it lets go. Every attempt on a lock word is one atomic access. In the real module a failing host attempt needs a second instruction to leave
its priority bit: whatever comes in between could as well have come before the attempt.

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
from tdx.module.sharex import (
    EXCLUSIVE,
    HP,
    HP_EXCLUSIVE,
    Sharex,
    SharexHp,
    free,
    hp_free,
    hp_shareable,
    hp_single_reader,
    shareable,
)
from tdx.module.status import Operand, Refused, Status
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
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
    """What letting go makes of an entry."""
    return word & ~TDEL


def _entry_free(word: int) -> bool:
    return not word & TDEL


class Held:
    """What one call holds, in the order it was taken; every method that takes raises `Refused` if it cannot.

    `cost` is charged before anything is given back; a leaf changes it when its price depends on operands.
    """

    __slots__ = ("_taken", "cost", "module")

    def __init__(self, module: TdxModule, cost: str) -> None:
        self.module = module
        self.cost = cost
        self._taken: list[Callable[[], Access]] = []

    def shared(self, lock: Sharex, operand: Operand, *, met: str = "") -> Steps[None]:
        """Take a sharex lock shared. `met` names what is reached on failure."""
        if (yield lock.try_shared()) & EXCLUSIVE:
            self._lost(operand, met, lock, shareable)
        self._taken.append(lock.release_shared)

    def exclusive(self, lock: Sharex, operand: Operand, *, met: str = "") -> Steps[None]:
        """Take a sharex lock exclusive."""
        if (yield lock.try_exclusive()):
            self._lost(operand, met, lock, free)
        self._taken.append(lock.release_exclusive)

    def shared_hp(self, lock: SharexHp, operand: Operand) -> Steps[None]:
        """Take a host-priority lock shared, as the host."""
        if (yield lock.try_shared()) & HP_EXCLUSIVE:
            self._lost(operand, "", lock, hp_shareable)
        self._taken.append(lock.release_shared)

    def exclusive_hp(self, lock: SharexHp, operand: Operand) -> Steps[None]:
        """Take a host-priority lock exclusive, as the host."""
        if (yield lock.try_exclusive()) & ~HP:
            self._lost(operand, "", lock, hp_free)
        self._taken.append(lock.release_exclusive)

    def page(
        self, pfn: Pfn, level: PgLevel, kind: PageType, operand: Operand, *, exclusive: bool
    ) -> Steps[PamtEntry]:
        """Check a page operand, walk the PAMT to it, lock it, and see that it is what it should be (reference 2.1)."""
        self.module.pamt.check(pfn, level, operand)
        entry = yield from self._walk(pfn, level, operand, exclusive=exclusive)
        if entry.level != level or entry.kind is not kind:
            raise Refused(Status.TDX_PAGE_METADATA_INCORRECT, operand)
        return entry

    def any_page(self, pfn: Pfn, operand: Operand, *, exclusive: bool = True) -> Steps[PamtEntry]:
        """Walk to the leaf that covers the page, whatever its size and type, and lock it."""
        self.module.pamt.check(pfn, PG_LEVEL_4K, operand)
        return (yield from self._walk(pfn, PG_LEVEL_4K, operand, exclusive=exclusive))

    def _walk(self, pfn: Pfn, level: PgLevel, operand: Operand, *, exclusive: bool) -> Steps[PamtEntry]:
        """Lock the way to the leaf: 1G and 2M entry shared, then the leaf; a larger leaf on the way ends the walk.

        Source: pamt_manager.c:pamt_walk. A step that fails leaves what was taken before it to the end of the call, which comes at
        once: the module lets go of it before it returns the error.
        """
        pamt = self.module.pamt
        for at in (PG_LEVEL_1G, PG_LEVEL_2M):
            entry = pamt.entry(pfn, at)
            lock = entry.lock
            yield from self.shared_hp(lock, operand)
            if at == level or pamt.kind_of(entry) is PageType.PT_REG:
                if exclusive:
                    if not hp_single_reader((yield lock.try_promote())):
                        self._lost(operand, "", lock, hp_single_reader)
                    self._taken[-1] = lock.release_exclusive
                return entry
        entry = pamt.entry(pfn, PG_LEVEL_4K)
        if exclusive:
            yield from self.exclusive_hp(entry.lock, operand)
        else:
            yield from self.shared_hp(entry.lock, operand)
        return entry

    def implicit_page(self, entry: PamtEntry, operand: Operand, *, exclusive: bool) -> Steps[None]:
        """Lock only the leaf PAMT entry of a page that a table or an owner field names."""
        if exclusive:
            yield from self.exclusive_hp(entry.lock, operand)
        else:
            yield from self.shared_hp(entry.lock, operand)

    def entry(self, walk: Walk) -> Steps[Septe]:
        """Lock the S-EPT entry that a walk ended at, as the host, and read it again; host priority that was there is gone.

        Returns: the word under the lock, without TDEL. TDHP is set in it if a loser was quick enough.
        Source: tdx_locks.h:sept_lock_acquire_host.
        """
        septe = walk.septe
        before: int = yield Update(septe, locks, "lock entry")
        lost = before & TDEL
        yield Update(septe, asks_priority if lost else drops_priority, "TDHP")
        if lost:
            self.module.kernel.reached("sept_entry_busy")
            raise Refused(Status.TDX_OPERAND_BUSY, Operand.RCX, *walk.details(), awaited=(septe, _entry_free))
        self._taken.append(_EntryRelease(septe))
        word: int = yield septe.read_once()
        return Septe(word & ~TDEL)

    def commit(self, walk: Walk, entry: int) -> Steps[None]:
        """Write the entry and let go of it, in one access (sept_manager.c: the setters that release locks)."""
        taken = self._taken
        for index, release in enumerate(taken):
            if isinstance(release, _EntryRelease) and release.septe is walk.septe:
                del taken[index]
        yield self.module.write_entry(walk.septe, entry, unlock=True)

    def give_back(self, release: Callable[[], Access]) -> Steps[None]:
        """Let go of one lock before the call ends; `release` is the lock's own method."""
        self._taken.remove(release)
        yield release()

    def release(self) -> Steps[None]:
        """Let go of everything, last taken first."""
        taken = self._taken
        while taken:
            yield taken.pop()()

    def _lost(self, operand: Operand, met: str, lock: Cell[int], is_free: Callable[[int], bool]) -> None:
        if met:
            self.module.kernel.reached(met)
        raise Refused(Status.TDX_OPERAND_BUSY, operand, awaited=(lock, is_free))


class _EntryRelease:
    """Lets an entry go."""

    __slots__ = ("septe",)

    def __init__(self, septe: Cell[int]) -> None:
        self.septe = septe

    def __call__(self) -> Access:
        return Update(self.septe, unlocks, "unlock entry")
