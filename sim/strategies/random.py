"""`random`: at each step, uniformly one of the candidates. The baseline every other strategy is measured against.

No guarantee: long threads and late events are starved, a thread's delay by k steps has probability about n^-k. Yet on
worlds of a few dozen steps it often beats cleverer ones (Thomson, Donaldson, Betts, TOPC 2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random as Generator
from typing import TYPE_CHECKING, ClassVar

from sim.streams import Streams

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread


class Random:
    """A uniform walk; execution i draws from a stream of its own, so that any of them can be made alone."""

    complete_after: ClassVar[int | None] = None

    def __init__(self, seed: int) -> None:
        self._streams = Streams(seed)
        self._random = Generator(0).random

    def begin(self, kernel: Kernel, execution: int) -> bool:
        # random() of a Generator seeded with an int is the same on every Python; one draw is all a pick needs.
        self._random = Generator(self._streams.stream(f"random.{execution}").bits64()).random
        return True

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        return int(self._random() * len(candidates))

    def end(self, kernel: Kernel) -> None:
        pass
