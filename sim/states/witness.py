"""Following a path through the tables in the world itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sim.access import Resume
from sim.kernel import End, Start

if TYPE_CHECKING:
    from sim.states.result import Path
    from sim.thread import Thread


class Guide:
    """Picks along a path, and then whoever can go on.

    Steps that touch nothing (starts, ends, going on after a wait) are made at once: in the tables they are no steps.
    """

    def __init__(self, path: Path) -> None:
        self._ahead = [thread for thread, granted in reversed(path) if not granted]
        self.lost = False
        """Whether the path led to a thread that could not step."""

    def pick(self, candidates: Sequence[Thread]) -> int:
        """Index of the candidate to take."""
        for i, thread in enumerate(candidates):
            if isinstance(thread.pending, Start | Resume | End):
                return i
        if not self._ahead:
            return 0
        wanted = self._ahead.pop()
        for i, thread in enumerate(candidates):
            if thread.index == wanted:
                return i
        self.lost = True
        return 0
