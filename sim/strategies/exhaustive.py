"""`exhaustive`: all interleavings, by `dpor:values` or by `states`, whichever is estimated to cost less; the claim says which.

Worlds with few classes of interleavings are done by `dpor:values` before anything is estimated, worlds with few states by
`states`. For the rest the classes are counted as animals are: among executions drawn at random, those seen once and twice tell
how many were not seen (Chao 1984, a lower bound). `states` then gets as many states as cost what these classes would cost;
if there are more, `dpor:values` goes on to the end. A world that does not fit into tables is for `dpor:values` alone.

All decisions rest on counts and on prices that are constants: no clock, the same choice everywhere.
Pitfalls. Full interleaving only. If time runs out while states are looked at and something was found, that is shown, and
nothing else is searched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from sim.coverage import order_of_conflicts
from sim.explore import fill
from sim.kernel import INFINITY, Kernel
from sim.strategies.dpor import Dpor
from sim.strategies.random import Random
from sim.strategies.states import States

if TYPE_CHECKING:
    from sim.thread import Thread

PROBE = 200
"""Executions of `dpor:values` before anything else is tried, and executions drawn for the estimate."""

STATES_PROBE = 20_000
"""States that are looked at before anything is estimated."""

STATES_PER_STEP = 10
"""States that cost as much as one step of an execution of `dpor:values`. Measured on M2: 30 us a step, 8 us a state, so 4;
more than that, because the number of classes is a lower bound.
"""

STATES_MAX = 10_000_000
"""States never looked at more than these, for the memory they take."""


class Exhaustive:
    """`dpor:values` at first; then what `_decide` says."""

    complete_after: ClassVar[int | None] = None

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._dpor = Dpor(values=True)
        self._states: States | None = None
        self._first = 0
        """The execution with which `states` begins to show what it found."""
        self._decided = False
        self._steps = 0
        self._why = f"it ended within {PROBE} executions"

    def study(
        self, world: Callable[[Kernel], None], stop: Callable[[], bool], *, stop_at_first: bool
    ) -> None:
        """Nothing yet: this is only what a decision needs."""
        self._world = world
        self._stop = stop
        self._stop_at_first = stop_at_first

    @property
    def exhaustive(self) -> bool:
        """Whether the chosen search vouches for having seen everything."""
        return self._dpor.exhaustive if self._states is None else self._states.exhaustive

    @property
    def redundant(self) -> bool:
        """As `dpor`."""
        return self._states is None and self._dpor.redundant

    @property
    def witnessing(self) -> bool:
        """Whether `states` is done, and only shows what it found."""
        return self._states is not None

    @property
    def label(self) -> str:
        """Who picks."""
        return "dpor:values" if self._states is None else "states"

    def begin(self, kernel: Kernel, execution: int) -> bool:
        """Raises: ValueError: the kernel has a window."""
        if kernel.window_ns < INFINITY:
            raise ValueError("exhaustive looks at every order of steps: it takes no window")
        if self._states is None:
            more = self._dpor.begin(kernel, execution)
            if not more or execution < PROBE or self._decided or self._stop():
                return more
            self._decided = True
            self._decide()
            self._first = execution
            if self._states is None:
                return more
        return self._states.begin(kernel, execution - self._first)

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        return (self._states or self._dpor).pick(kernel, candidates)

    def end(self, kernel: Kernel) -> None:
        self._steps += kernel.steps
        (self._states or self._dpor).end(kernel)

    def claim(self) -> str:
        """Which search was chosen and why, and what it covered."""
        if not self._decided and self._dpor.steps:
            return f"exhaustive has not chosen yet. {self._dpor.claim()}"
        return f"exhaustive chose {self.label}: {self._why}. {(self._states or self._dpor).claim()}"

    def _decide(self) -> None:
        """Take `states` if it ends soon, or for less than the classes are estimated to cost."""
        from sim.states import Misfit  # noqa: PLC0415

        try:
            done = self._by_states(STATES_PROBE)
        except Misfit as misfit:
            self._why = f"states cannot search this world: {misfit}"
            return
        if done:
            self._why = f"{self._states_seen} states against more than {PROBE} classes of interleavings"
            return
        classes = chao1(self._drawn().values())
        limit = min(STATES_MAX, classes * self._steps // PROBE * STATES_PER_STEP)
        estimate = f"about {classes} classes of interleavings, or more,"
        if limit > STATES_PROBE and self._by_states(limit):
            self._why = f"{estimate} against {self._states_seen} states"
        else:
            self._why = f"{estimate} against more than {max(limit, STATES_PROBE)} states"

    def _by_states(self, limit: int) -> bool:
        """Whether `states` has seen all, or ran out of time with something to show; then it is chosen."""
        states = States(limit)
        states.study(self._world, self._stop, stop_at_first=self._stop_at_first)
        result = states.result
        self._states_seen = result.states
        if result.limited and not (result.paths and self._stop()):
            return False
        self._states = states
        return True

    def _drawn(self) -> Counter[int]:
        """The classes of executions drawn at random, each with its number of executions."""
        draw = Random(self._seed)
        classes = Counter[int]()
        for execution in range(PROBE):
            if self._stop():
                break
            kernel = Kernel(self._seed, window_ns=INFINITY)
            draw.begin(kernel, execution)
            if fill(kernel, self._world, races=False):
                kernel.execute(draw.pick)
                classes[order_of_conflicts(kernel.picks, kernel.accesses)] += 1
        return classes


def chao1(counts: Iterable[int]) -> int:
    """How many classes there are at least, by how often each was drawn (Chao 1984, the bias-corrected form)."""
    seen = list(counts)
    once, twice = seen.count(1), seen.count(2)
    return len(seen) + once * (once - 1) // (2 * (twice + 1))
