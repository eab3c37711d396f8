"""The two lock words of the module, as cells whose accesses are attempts and releases (see `tdx.module.locks`).

An attempt is an `Update`: the thread gets the word as it was, and reads from it whether it has won.
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


def _add_reader(word: int) -> int:
    return word + READER


def _drop_reader(word: int) -> int:
    return word - READER


def _take(word: int) -> int:
    return word or EXCLUSIVE


def _wipe(word: int) -> int:  # noqa: ARG001 - the old word is what is thrown away
    return 0


def hp_add_reader(word: int) -> int:
    """A host's shared attempt."""
    return word + HP_READER | HP if word & HP_EXCLUSIVE else word + HP_READER & ~HP


def hp_drop_reader(word: int) -> int:
    """A reader leaves."""
    return word - HP_READER


def hp_take(word: int) -> int:
    """A host's exclusive attempt."""
    return word | HP if word & ~HP else HP_EXCLUSIVE


def free(word: int) -> bool:
    """Whether an exclusive attempt would win."""
    return word == 0


def shareable(word: int) -> bool:
    """Whether a shared attempt would win."""
    return not word & EXCLUSIVE


def hp_shareable(word: int) -> bool:
    """Whether a host's shared attempt would win."""
    return not word & HP_EXCLUSIVE


def hp_free(word: int) -> bool:
    """Whether a host's exclusive attempt would win."""
    return not word & ~HP


def hp_promote(word: int) -> int:
    """A reader's attempt to become the only holder; it stays a reader if others read too."""
    return HP_EXCLUSIVE if word & ~HP == HP_READER else word | HP


def hp_single_reader(word: int) -> bool:
    """Whether a reader's promotion would win."""
    return word & ~HP == HP_READER


def hp_wipe(word: int) -> int:
    """The exclusive holder leaves."""
    return word & HP


class SharedUpdate(Update[int]):
    """A shared attempt or release: the order of two shows nowhere, for a reader looks at no other reader's count."""

    __slots__ = ()

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.name, UPDATE),)


class Sharex(Cell[int]):
    """Exclusive bit 0, readers above."""

    __slots__ = ()

    def try_shared(self) -> Update[int]:
        """Won unless the old word has EXCLUSIVE."""
        return SharedUpdate(self, _add_reader, "try shared")

    def try_exclusive(self) -> Update[int]:
        """Won if the old word is 0."""
        return Update(self, _take, "try exclusive")

    def release_shared(self) -> Update[int]:
        """One reader less."""
        return SharedUpdate(self, _drop_reader, "unlock shared")

    def release_exclusive(self) -> Update[int]:
        """Wipes the word, failed readers included."""
        return Update(self, _wipe, "unlock exclusive")


class SharexHp(Cell[int]):
    """Exclusive bit 0, host-priority bit 1, readers above; the attempts are the host's."""

    __slots__ = ()

    def try_shared(self) -> Update[int]:
        """Won unless the old word has HP_EXCLUSIVE."""
        return SharedUpdate(self, hp_add_reader, "try shared")

    def try_exclusive(self) -> Update[int]:
        """Won if the old word is 0 but for HP."""
        return Update(self, hp_take, "try exclusive")

    def try_promote(self) -> Update[int]:
        """From shared to exclusive; won if the old word has one reader (and perhaps HP)."""
        return Update(self, hp_promote, "promote")

    def release_shared(self) -> Update[int]:
        """One reader less."""
        return SharedUpdate(self, hp_drop_reader, "unlock shared")

    def release_exclusive(self) -> Update[int]:
        """Wipes the word but for HP."""
        return Update(self, hp_wipe, "unlock exclusive")
