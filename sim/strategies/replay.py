"""`replay:S`: follow a schedule; where the world no longer offers a pick, say so and follow on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from sim.schedule import FIFO, parse
from sim.strategies import first_by_time

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread


class Replay:
    """One execution by a given schedule, then by fifo. `misfits` lists (step, thread) that were not offered."""

    complete_after: ClassVar[int | None] = 1

    def __init__(self, schedule: str) -> None:
        self._words = parse(schedule)
        self.misfits: list[tuple[int, str]] = []

    def begin(self, kernel: Kernel, execution: int) -> bool:
        self._picks = [name for name, times in self._words for _ in range(times)]
        self._picks.reverse()
        return execution == 0

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        while self._picks:
            name = self._picks.pop()
            if name == FIFO:
                break
            for index, thread in enumerate(candidates):
                if thread.name == name:
                    return index
            self.misfits.append((kernel.steps, name))
        return first_by_time(candidates)

    def end(self, kernel: Kernel) -> None:
        pass
