"""`pct:d`: probabilistic concurrency testing. Strict priorities, changed after d-1 random steps.

Every thread has a random priority; the highest one that can run, runs. After d-1 steps, drawn at random from the first k,
the thread that made the step falls below all others. A bug of depth d (d orderings between steps are enough to show it) is
hit by one execution with probability at least 1/(n k^(d-1)), for n threads and executions of at most k steps (Burckhardt,
Kothari, Musuvathi, Nagarakatte, ASPLOS 2010).

Only steps on words that threads share are counted (`sim.strategies.words`): a step on any other word commutes with whatever
the others do, so falling before it is as good as falling before the thread's next shared one. That makes k small. k and the
shared words are learnt from the executions so far, so execution i depends on those before it (and on nothing else): a search
repeats, an execution alone does not.

Waiting must not starve those that are waited for. A thread that goes round without changing anything (see `_spins`) falls
below all others; an execution with more steps than any before it goes on as a random walk (FairPCT); and some executions are
walks from the start, to learn how long they are then. The guarantee does not speak of any of these.

Pitfalls. The guarantee is a floor: on short worlds `random` is often far better, because a bug that needs the threads to
alternate at exact steps has a large depth. It holds for orderings between accesses to words known to be shared, with as much
interleaving as `window_ns` allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log1p
from random import Random as Generator
from typing import TYPE_CHECKING, Any, ClassVar

from sim import estimates
from sim.access import Update
from sim.strategies import may_write
from sim.strategies.words import OUTGROWN, Chosen, Words, is_walk, touches
from sim.streams import Streams

if TYPE_CHECKING:
    from sim.access import Cell
    from sim.kernel import Kernel
    from sim.thread import Thread

SPIN_STEPS = 16
"""So many steps of one thread in a row are looked at to tell whether it spins."""


class Pct:
    """Priorities with `depth - 1` change points."""

    complete_after: ClassVar[int | None] = None

    def __init__(self, seed: int, depth: int) -> None:
        self.depth = depth
        self.shared_max = 0
        """k: the most steps on shared words that an execution has made so far; 0 before the first."""
        self.threads_max = 0
        """n: the most threads an execution has had so far."""
        self.covered: dict[int, int] = {}
        """{k: executions drawn with this k that the guarantee speaks of}."""
        self.words = Words()
        self._shared_limit = 0
        """What `words.steps_limit` is, for steps on shared words: k is at most that."""
        self._execution = 0
        self._streams = Streams(seed)
        self._random = Generator(0).random
        self._priorities: list[float] = []
        """By thread index. Initial ones are in [0, 1); change point i makes i - depth; spinning makes `_lowest`."""
        self._changes: dict[int, int] = {}
        """{number of a shared step: i}: at most depth - 1 of 1 .. shared_max."""
        self._shared = Chosen(set())
        """Whether a target is a word that threads share."""
        self._made = 0
        """Steps on shared words so far."""
        self._walking = True
        """Whether this execution goes on as a random walk."""
        self._running: Thread | None = None
        self._in_a_row = 0
        """Steps that `_running` has made since another thread ran or it was last looked at."""
        self._lowest = 0.0
        """Below all change points, and one lower for every time a spinning thread fell."""

    def begin(self, kernel: Kernel, execution: int) -> bool:
        # random() of a Generator seeded with an int is the same on every Python; what is made of it is ours.
        self._random = draw = Generator(self._streams.stream(f"pct:{self.depth}.{execution}").bits64()).random
        self._execution = execution
        self._priorities = []
        self._changes = changes = {}
        for i in range(min(self.depth - 1, self.shared_max)):
            step = 1 + int(draw() * self.shared_max)
            while step in changes:
                step = 1 + int(draw() * self.shared_max)
            changes[step] = i
        self._shared = Chosen(self.words.shared)
        self._made = 0
        self._walking = not self.shared_max or is_walk(execution)
        self._running = None
        self._lowest = float(-self.depth - 1)
        return True

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        if self._walking:
            return int(self._random() * len(candidates))
        best = self._highest(kernel, candidates)
        thread = candidates[best]
        access = thread.pending
        assert access is not None
        if self._shared[access.target] and (access.reads or access.writes or access.acquires):
            self._made = made = self._made + 1
            if made in self._changes:
                self._priorities[thread.index] = float(self._changes[made] - self.depth)
            elif made > self.shared_max:
                self._walking = True
        elif kernel.steps >= self.words.steps_limit:
            self._walking = True
        return best

    def _highest(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        priorities = self._priorities
        # A new thread is as likely in any place among the others.
        while len(priorities) < len(kernel.threads):
            priorities.append(self._random())
        running = self._running
        if running is not None and self._in_a_row >= SPIN_STEPS:
            self._in_a_row = 0
            if _spins(kernel):
                self._lowest -= 1
                priorities[running.index] = self._lowest
        best = 0
        highest = priorities[candidates[0].index]
        for i in range(1, len(candidates)):
            priority = priorities[candidates[i].index]
            if priority > highest:
                best, highest = i, priority
        if candidates[best] is running:
            self._in_a_row += 1
        else:
            self._running = candidates[best]
            self._in_a_row = 1
        return best

    def end(self, kernel: Kernel) -> None:
        self.threads_max = max(self.threads_max, len(kernel.threads))
        spun = self._lowest < -self.depth - 1
        if not (self._walking or spun or kernel.exhausted):
            self.covered[self.shared_max] = self.covered.get(self.shared_max, 0) + 1
        self.words.learn(kernel, self._execution)
        if kernel.exhausted:
            return  # nobody knows how long it would have been
        made = self._made
        if self._walking:  # on a walk nobody has counted
            shared = Chosen(self.words.shared)
            made = sum(shared[access.target] and touches(access) for access in kernel.accesses)
        if is_walk(self._execution):
            self._shared_limit = max(self._shared_limit, OUTGROWN * made)
        self.shared_max = max(self.shared_max, min(made, self._shared_limit))

    def bounds(self) -> tuple[estimates.PctBound, ...]:
        """An upper bound on the probability that the executions so far all missed a given bug of this depth."""
        logs = [
            times * log1p(-estimates.pct_floor(self.threads_max, steps, self.depth))
            if self.threads_max * steps ** (self.depth - 1) > 1
            else float("-inf")
            for steps, times in self.covered.items()
        ]
        return (estimates.PctBound(self.depth, self.threads_max, self.shared_max, float(sum(logs))),)

    def claim(self) -> str:
        """The guarantee so far."""
        return str(self.bounds()[0])


def _spins(kernel: Kernel) -> bool:
    """Whether the latest steps, all of one thread, went round without changing anything.

    That is: what they wrote is again what it was, as when a lock is tried and let go of, and the second half touched no word that
    the first half had not. A thread that looks a few words up several times in a row is mistaken for one that spins; it loses a
    turn, and its execution the guarantee.
    """
    latest = kernel.accesses[-SPIN_STEPS:]
    replaced: dict[Cell[Any], Any] = {}
    for access in latest:
        if may_write(access):
            if not isinstance(access, Update):
                return False
            replaced.setdefault(access.target, access.value)
    if any(cell.peek() != word for cell, word in replaced.items()):
        return False
    half = SPIN_STEPS // 2
    return {access.target for access in latest[half:]} <= {access.target for access in latest[:half]}
