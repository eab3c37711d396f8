"""The two lock words of the module, as cells whose accesses are attempts and releases (see `tdx.module.locks`).

An attempt is an `Update`: the thread gets the word as it was, and `is_shareable`, `is_free` or `is_single_reader` of that word
says whether it has won. The same predicates of the word as it is say whether an attempt would win.
Source: TDX module 1.5.01, tdx_locks.h; reference 4.1.
"""

from __future__ import annotations

from sim import Cell
from sim.access import Update
from sim.dependence import UPDATE, Touch

EXCLUSIVE = 1
READER = 2
HP_EXCLUSIVE = 1
HP = 2
HP_READER = 4


def add_reader(word: int) -> int:
    """A shared attempt; one that fails leaves its count."""
    return word + READER


def drop_reader(word: int) -> int:
    """A reader leaves."""
    return word - READER


def take(word: int) -> int:
    """An exclusive attempt."""
    return word or EXCLUSIVE


def wipe(word: int) -> int:  # noqa: ARG001 - the old word is what is thrown away
    """The exclusive holder leaves, and with it what readers that failed have left."""
    return 0


def hp_add_reader(word: int) -> int:
    """A host's shared attempt; one that fails leaves its count and host priority."""
    return word + HP_READER | HP if word & HP_EXCLUSIVE else word + HP_READER & ~HP


def hp_drop_reader(word: int) -> int:
    """A reader leaves."""
    return word - HP_READER


def hp_take(word: int) -> int:
    """A host's exclusive attempt; one that fails leaves host priority."""
    return word | HP if word & ~HP else HP_EXCLUSIVE


def hp_promote(word: int) -> int:
    """A reader's attempt to become the only holder; it stays a reader, and leaves host priority, if others read too."""
    return HP_EXCLUSIVE if word & ~HP == HP_READER else word | HP


def hp_wipe(word: int) -> int:
    """The exclusive holder leaves; host priority stays."""
    return word & HP


class SharedUpdate(Update[int]):
    """A shared attempt or release: the order of two shows nowhere, for a reader looks at no other reader's count."""

    __slots__ = ()

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.name, UPDATE),)


class Sharex(Cell[int]):
    """Exclusive bit 0, readers above."""

    __slots__ = ()

    @staticmethod
    def is_shareable(word: int) -> bool:
        """Whether a shared attempt on that word wins."""
        return not word & EXCLUSIVE

    @staticmethod
    def is_free(word: int) -> bool:
        """Whether an exclusive attempt wins."""
        return word == 0

    def try_shared(self) -> Update[int]:
        """Add a reader."""
        return SharedUpdate(self, add_reader, "try shared")

    def try_exclusive(self) -> Update[int]:
        """Take it alone."""
        return Update(self, take, "try exclusive")

    def release_shared(self) -> Update[int]:
        """One reader less."""
        return SharedUpdate(self, drop_reader, "unlock shared")

    def release_exclusive(self) -> Update[int]:
        """Wipes the word, failed readers included."""
        return Update(self, wipe, "unlock exclusive")


class SharexHp(Cell[int]):
    """Exclusive bit 0, host-priority bit 1, readers above; the attempts are the host's."""

    __slots__ = ()

    @staticmethod
    def is_shareable(word: int) -> bool:
        """Whether a host's shared attempt on that word wins."""
        return not word & HP_EXCLUSIVE

    @staticmethod
    def is_free(word: int) -> bool:
        """Whether a host's exclusive attempt wins."""
        return not word & ~HP

    @staticmethod
    def is_single_reader(word: int) -> bool:
        """Whether a reader's promotion wins."""
        return word & ~HP == HP_READER

    def try_shared(self) -> Update[int]:
        """Add a reader; host priority goes if that wins."""
        return SharedUpdate(self, hp_add_reader, "try shared")

    def try_exclusive(self) -> Update[int]:
        """Take it alone, host priority with it."""
        return Update(self, hp_take, "try exclusive")

    def try_promote(self) -> Update[int]:
        """From shared to exclusive."""
        return Update(self, hp_promote, "promote")

    def release_shared(self) -> Update[int]:
        """One reader less."""
        return SharedUpdate(self, hp_drop_reader, "unlock shared")

    def release_exclusive(self) -> Update[int]:
        """Wipes the word but for HP."""
        return Update(self, hp_wipe, "unlock exclusive")


Lock = Sharex | SharexHp
"""Either; which one a word is, the release decides."""
