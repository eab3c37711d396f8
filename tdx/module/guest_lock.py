"""The guest's side of an S-EPT entry's lock: it is tried once, and yields to a host call that has lost before.

Module 1.0 has a lock for guests only, bit 8 of the entry, set by compare-exchange. A host holds the tree and changes an entry that
a guest may have locked, as RANGE.BLOCK does, by compare-exchange, too.
Source: TDX module 1.5.01, tdx_locks.h:sept_lock_acquire_guest; reference 4.1, 14, row 3, and 15.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Cell, Steps
from sim.access import Update
from tdx.module.locks import locks, unlocks
from tdx.module.septe import TDEL, TDHP
from tdx.module.status import Operand, SeamcallReturn, Status

if TYPE_CHECKING:
    from tdx.module.module import TdxModule

GUEST_LOCK = 1 << 8
"""In module 1.0; the hardware does not use the bit (A)."""
BUSY = SeamcallReturn(Status.TDX_OPERAND_BUSY, Operand.RCX)
HOST_PRIORITY = SeamcallReturn(Status.TDX_OPERAND_BUSY_HOST_PRIORITY, Operand.RCX)
"""Never seen by a guest: the TDCALL dispatcher makes plain busy of it, see `tdcall`."""


def guest_lock_entry(module: TdxModule, septe: Cell[int]) -> Steps[SeamcallReturn | None]:
    """Lock an entry as the guest; returns why not, or None if it is locked.

    In 1.5 the lock is taken before host priority is looked at, so that a guest that must keep off holds it for a moment.
    Yields: the attempt, the look at TDHP, and the release if that says no; from 2.0 on the look comes first.
    """
    kernel = module.kernel
    if not module.profile.relaxed_concurrency:
        return (yield from _lock_1_0(module, septe))
    if module.profile.guest_locks_before_host_priority:
        taken: int = yield Update(septe, locks, "guest locks entry")
        if taken & TDEL:
            kernel.reached("sept_entry_busy")
            return BUSY
        word: int = yield septe.read_once()
        if word & TDHP:
            yield guest_unlock_entry(module, septe)
            kernel.reached("host_priority_won")
            return HOST_PRIORITY
        return None
    word = yield septe.read_once()
    if word & TDHP:
        kernel.reached("host_priority_won")
        return HOST_PRIORITY
    taken = yield Update(septe, locks, "guest locks entry")
    if taken & TDEL:
        kernel.reached("sept_entry_busy")
        return BUSY
    return None


def guest_unlock_entry(module: TdxModule, septe: Cell[int]) -> Update[int]:
    """Let go of an entry; the rest of the word stays as it is."""
    change = unlocks if module.profile.relaxed_concurrency else _unlocks_1_0
    return Update(septe, change, "unlock entry")


def guest_commit_entry(module: TdxModule, septe: Cell[int], entry: int) -> Steps[None]:
    """Write a whole entry that the guest has locked, and let go of it. Yields: the write and the release; in 1.0 one access."""
    if not module.profile.relaxed_concurrency:
        yield septe.write_once(_unlocks_1_0(entry))
        return
    yield module.write_entry(septe, entry)
    yield guest_unlock_entry(module, septe)


def guest_lets_go(word: int) -> bool:
    """Whether no guest holds the entry, in module 1.0."""
    return not word & GUEST_LOCK


def _lock_1_0(module: TdxModule, septe: Cell[int]) -> Steps[SeamcallReturn | None]:
    word: int = yield septe.read_once()
    if guest_lets_go(word) and (yield septe.cmpxchg(word, word | GUEST_LOCK)) == word:
        return None
    module.kernel.reached("sept_entry_busy")
    return BUSY


def _unlocks_1_0(word: int) -> int:
    return word & ~GUEST_LOCK
