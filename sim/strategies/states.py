"""`states[:LIMIT]`: every reachable state of the world once, by a search that makes no executions.

Threads become tables (`sim.states`), a state is the values of all words and the positions of all threads, exactly, and a step
is a look-up: hundreds of thousands of states a second. Then it makes executions: one along the path to each thing it found, so
that findings look like everybody's, and one more to the end of the world, to see that tables and world agree.

Guarantee: every finding at a step's own place, every `always` and `at_end` property and every deadlock that some interleaving
shows, within memory. A world whose threads go round for ever without a wait is searched to its end all the same; that they
need never end is not reported.
Pitfalls. Full interleaving only (`window_ns` infinite). A world with RCU, clocks, random numbers, checkers, threads made on the
fly, or Python objects that threads share and change is refused with one sentence. With LIMIT, or out of time, nothing is proved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from sim.kernel import INFINITY, ModelBug
from sim.states.result import Limits, Result
from sim.states.search import Search
from sim.states.witness import Guide

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread


class States:
    """A search made before the first execution, and then its witnesses.

    Args:
        limit: at most so many states, or None.
    """

    complete_after: ClassVar[int | None] = None

    def __init__(self, limit: int | None = None) -> None:
        self.result = Result()
        self._limit = limit
        self._guide = Guide([])

    @property
    def exhaustive(self) -> bool:
        """Whether every state has been looked at."""
        return not self.result.limited

    @property
    def witnessing(self) -> bool:
        """The search itself is over before the first execution."""
        return True

    def study(self, fill: Callable[[Kernel], None], stop: Callable[[], bool], *, stop_at_first: bool) -> None:
        """Search the states of the world; `stop` is asked now and then. Raises: Misfit: it does not fit into tables."""
        self.result = Search(fill, Limits(self._limit, stop_at_first, stop)).run()

    def begin(self, kernel: Kernel, execution: int) -> bool:
        """Raises: ValueError: the kernel has a window."""
        if kernel.window_ns < INFINITY:
            raise ValueError("states looks at every order of steps: it takes no window")
        paths = self.result.paths or [self.result.sample]
        if execution >= len(paths):
            return False
        self._guide = Guide(paths[execution])
        return True

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        return self._guide.pick(candidates)

    def end(self, kernel: Kernel) -> None:
        """Raises: ModelBug: the world did not do what its tables say."""
        if self._guide.lost or bool(kernel.findings) != bool(self.result.paths):
            raise ModelBug("states: a path through the tables led elsewhere in the world")
        kernel.met |= self.result.met
        kernel.exhausted = kernel.exhausted or (self.result.limited and not kernel.findings)

    def claim(self) -> str:
        """How much was looked at."""
        result = self.result
        part = "at least" if result.limited else "all"
        return f"states: {part} {result.states} states, {result.steps} steps between them, {result.ends} of them ends"
