"""`fifo`: earliest due first, ties by seed: the timing run as a strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from sim.strategies import first_by_time

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread


class Fifo:
    """One execution, in time order."""

    complete_after: ClassVar[int | None] = 1

    def begin(self, kernel: Kernel, execution: int) -> bool:
        return execution == 0

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        return first_by_time(candidates)

    def end(self, kernel: Kernel) -> None:
        pass
