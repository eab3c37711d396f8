"""What the three worlds share: the values of their words, and steps over several words at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sim.access import BLOCKED as WAITS
from sim.access import Access, Cell
from sim.dependence import READ, WRITE, Touch

if TYPE_CHECKING:
    from sim.thread import Thread

NONE = 0
FROZEN = 1
PRESENT = 2
LEAF = 3
TABLE = 4
"""A mirror entry; LEAF and TABLE at the 2M level only."""

MAPPED = 1
BLOCKED = 2
"""A Secure-EPT entry, which may also be NONE, and LEAF or TABLE at the 2M level."""


class Atomic(Access):
    """One indivisible step over several words: a SEAMCALL, a VM entry, a guest instruction with its TLB look-up.

    `step` works on the words themselves (`cell.v`) and on no others than those declared; the thread gets what it returns.
    """

    __slots__ = ("name", "read_only", "step", "written")
    reads = writes = acquires = releases = True

    def __init__(
        self,
        name: str,
        step: Callable[[], Any],
        *,
        reads: Sequence[Cell[Any]] = (),
        writes: Sequence[Cell[Any]] = (),
    ) -> None:
        self.name = name
        self.step = step
        self.read_only = tuple(reads)
        self.written = tuple(writes)
        self.target = (*self.written, *self.read_only)[0]

    def perform(self, thread: Thread) -> Any:
        result = self.step()
        for cell in self.written:
            cell.notify()
        return result

    @property
    def wrote(self) -> bool:
        return bool(self.written)

    def touches(self) -> tuple[Touch, ...]:
        return (
            *[(cell.name, WRITE) for cell in self.written],
            *[(cell.name, READ) for cell in self.read_only],
        )

    def __repr__(self) -> str:
        return self.name


class Until(Access):
    """Wait until a condition over several words holds; looked at whenever one of them changes. The thread gets no value."""

    __slots__ = ("condition", "words")
    verb = "wait until"
    reads = acquires = True

    def __init__(self, condition: Callable[[], bool], words: Sequence[Cell[Any]]) -> None:
        self.condition = condition
        self.words = tuple(words)
        self.target = self.words[0]

    def perform(self, thread: Thread) -> Any:
        if self.condition():
            return None
        for word in self.words:
            word.watchers = [*(word.watchers or ()), (thread, lambda _value: self._holds_for(thread))]
        return WAITS

    def _holds_for(self, thread: Thread) -> bool:
        """Whether the thread still waits here, and need not: another word may have woken it already."""
        return thread.blocked_on is self and not thread.ready and self.condition()

    def held_up(self) -> bool:
        return not self.condition()

    def touches(self) -> tuple[Touch, ...]:
        return tuple((word.name, READ) for word in self.words)


def thawed(entry: int) -> bool:
    """Nobody owns this entry."""
    return entry != FROZEN
