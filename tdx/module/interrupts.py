"""The module's look at its LP's pending interrupts, which ends long calls early."""

from __future__ import annotations

from collections.abc import Callable

from sim.access import Access
from sim.dependence import Touch
from sim.thread import Thread


class InterruptTest(Access):
    """Ask whether an interrupt waits for this LP; whoever raises one writes the same state."""

    __slots__ = ()
    verb = "test interrupts"
    reads = True
    target: Callable[[], bool]

    def perform(self, thread: Thread) -> bool:
        return self.target()

    def touches(self) -> tuple[Touch, ...]:
        return ()  # `target` says what it looks at

    def __repr__(self) -> str:
        return self.verb
