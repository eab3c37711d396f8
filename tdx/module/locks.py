"""The module's locks: words that are tried, never waited for.

A loser returns TDX_OPERAND_BUSY at once; there is no queue. Three kinds, each one word:

- `Sharex`: exclusive bit and reader count. SEPT tree, epoch, KOT.
- `SharexHp`: the same with a host-priority bit. A host call that fails leaves the bit, the next host call that succeeds
  takes it away, and guests keep off in between. PAMT entries, OP_STATE.
- the S-EPT entry's own bits TDEL and TDHP, with the same rule (`Held.entry`; guests: TDG.MEM.PAGE.ACCEPT).

A failed shared attempt leaves the reader count too high; that is harmless because the exclusive holder wipes the word when
it lets go. Every attempt here is one atomic access. In the real module a failing host attempt needs a second instruction
to leave its priority bit; nobody can tell the difference, since the lock is held by another in both moments.

`Held` remembers what a call holds; the `seamcall` decorator gives it back, whatever happened. Guests take entry locks only.
Source: TDX module 1.5.01, tdx_locks.h; reference 4.1. The comment there on what a busy host call returns contradicts its
code: it returns OPERAND_BUSY, never OPERAND_BUSY_HOST_PRIORITY.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim import Cell, Steps
from sim.access import Access, Update
from tdx.module.pamt import PageType, PamtEntry, PamtWalk
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
    shareable,
)
from tdx.module.status import Operand, Refused, Status
from vcpu.addresses import Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.walk import Walk


def host_locks(word: int) -> int:
    """What a host's attempt makes of an entry: locked, without host priority; or, if it is held, with host priority."""
    return word | TDHP if word & TDEL else (word | TDEL) & ~TDHP


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

    def page(
        self, pfn: Pfn, level: PgLevel, kind: PageType, operand: Operand, *, exclusive: bool
    ) -> Steps[PamtEntry]:
        """Check a page operand, walk the PAMT to it, lock it, and see that it is what it should be (reference 2.1)."""
        pamt = self.module.pamt
        pamt.check(pfn, level, operand)
        walk = PamtWalk(pamt, pfn, level, exclusive=exclusive)
        entry: PamtEntry | None = yield walk
        if entry is None:
            self._lost(operand, "", *walk.lost())
        assert entry is not None
        self._taken.append(walk.unwalk)
        if entry.level != level or entry.kind is not kind:
            raise Refused(Status.TDX_PAGE_METADATA_INCORRECT, operand)
        return entry

    def any_page(self, pfn: Pfn, operand: Operand) -> Steps[PamtEntry]:
        """Walk to the leaf that covers the page, whatever its size and type, and lock it exclusive."""
        pamt = self.module.pamt
        pamt.check(pfn, PgLevel.PG_LEVEL_4K, operand)
        walk = PamtWalk(pamt, pfn, PgLevel.PG_LEVEL_4K, exclusive=True)
        entry: PamtEntry | None = yield walk
        if entry is None:
            self._lost(operand, "", *walk.lost())
        assert entry is not None
        self._taken.append(walk.unwalk)
        return entry

    def implicit_page(self, entry: PamtEntry, operand: Operand, *, exclusive: bool) -> Steps[None]:
        """Lock only the leaf PAMT entry of a page that a table or an owner field names."""
        lock = entry.lock
        if exclusive:
            if (yield lock.try_exclusive()) & ~HP:
                self._lost(operand, "", lock, hp_free)
            self._taken.append(lock.release_exclusive)
        else:
            yield from self.shared_hp(lock, operand)

    def entry(self, walk: Walk) -> Steps[Septe]:
        """Lock the S-EPT entry that a walk ended at, as the host, and read it again.

        Both are one access: while TDEL is ours only TDHP can change.
        """
        before: int = yield Update(walk.septe, host_locks, "lock entry")
        if before & TDEL:
            self.module.kernel.reached("sept_entry_busy")
            raise Refused(
                Status.TDX_OPERAND_BUSY, Operand.RCX, *walk.details(), awaited=(walk.septe, _entry_free)
            )
        self._taken.append(_EntryRelease(walk.septe))
        return Septe(before & ~TDHP)

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

    __slots__ = ("_septe",)

    def __init__(self, septe: Cell[int]) -> None:
        self._septe = septe

    def __call__(self) -> Access:
        return Update(self._septe, unlocks, "unlock entry")
