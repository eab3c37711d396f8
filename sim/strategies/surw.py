"""`surw`: selectively uniform random walk. Every order of the accesses to one word is as likely as the other.

For one *focus*, a word that matters, the walk knows how many accesses to it each thread still has to make. It draws an
*intended* thread with those numbers as weights; whoever else is about to touch the focus waits until the intended thread has
done so. All other steps are picked uniformly. So the orders of the accesses to the focus are uniform (as many orders follow
a first access as there are ways to arrange the rest), where a plain walk starves the long thread (Zhao, Wolff, Mathur,
Roychoudhury, ASPLOS 2025). `surw` draws the focus anew for every execution among the words that threads share
(`sim.strategies.words`); `surw:NAME` stays with the word (or lock, or signal) of that name.

Pitfalls. No guarantee, and uniform only as far as the numbers are right: they are means over the executions so far, so
execution i depends on those before it; a search repeats, an execution alone does not. Threads that are started on the way
are drawn only once they are there. Where the intended thread is blocked, or has ended, and all others wait, the draw is
repeated among those that wait. If it waits itself, by looking again and again, for one of those that wait for it, that does
not help: an execution much longer than any walk goes on as one, and one of 32 executions, the first among them, is a walk to
learn how long those are. Words of one name are one focus; a word that is created in few executions is a focus in vain in the
others.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random as Generator
from typing import TYPE_CHECKING, ClassVar

from sim.strategies.words import Chosen, Words, is_walk, touches
from sim.streams import Streams

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread


class Surw:
    """A uniform walk over the orders of one word's accesses."""

    complete_after: ClassVar[int | None] = None

    def __init__(self, seed: int, focus: str = "") -> None:
        self.focus = focus
        """The word of this execution; "" for none."""
        self.words = Words()
        self._fixed = focus
        self._execution = 0
        self._streams = Streams(seed)
        self._random = Generator(0).random
        self._left: dict[str, int] = {}
        """{thread: accesses to the focus it still has, times `words.executions`}; below 1 where the means were too low.

        Empty for a random walk.
        """
        self._intended: Thread | None = None
        """Who makes the next access to the focus."""
        self._in_focus = Chosen(set())
        """Whether a target is the focus."""

    def begin(self, kernel: Kernel, execution: int) -> bool:
        # random() of a Generator seeded with an int is the same on every Python.
        self._random = Generator(self._streams.stream(f"surw.{execution}").bits64()).random
        self._execution = execution
        if not self._fixed:
            shared = sorted(self.words.shared)
            self.focus = shared[int(self._random() * len(shared))] if shared else ""
        self._left = {} if is_walk(execution) else dict(self.words.counts.get(self.focus, {}))
        self._intended = None
        self._in_focus = Chosen({self.focus})
        return True

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        if not self._left or kernel.steps >= self.words.steps_limit:
            return int(self._random() * len(candidates))
        intended = self._intended
        if intended is None or intended.done:
            self._intended = intended = self._draw(
                [t for t in kernel.threads if not t.done and t.name in self._left]
            )
        in_focus = self._in_focus
        free = []
        for i, thread in enumerate(candidates):
            access = thread.pending
            assert access is not None
            if thread is intended or not (in_focus[access.target] and touches(access)):
                free.append(i)
        if not free:
            self._intended = intended = self._draw(candidates)
            free = [i for i, thread in enumerate(candidates) if thread is intended]
        index = free[int(self._random() * len(free))]
        thread = candidates[index]
        if thread is intended and in_focus[thread.pending.target] and touches(thread.pending):  # type: ignore[union-attr, arg-type]
            self._left[thread.name] = self._left.get(thread.name, 0) - self.words.executions
            self._intended = None
        return index

    def _draw(self, threads: Sequence[Thread]) -> Thread | None:
        """One of them, by the accesses it has left; a thread with more than was expected is never starved."""
        if not threads:
            return None
        weights = [max(1, self._left.get(thread.name, 1)) for thread in threads]
        at = int(self._random() * sum(weights))
        for thread, weight in zip(threads, weights, strict=True):
            at -= weight
            if at < 0:
                return thread
        return threads[-1]

    def end(self, kernel: Kernel) -> None:
        self.words.learn(kernel, self._execution)

    def claim(self) -> str:
        """What was in focus."""
        shared = sorted(self.words.shared)
        if self._fixed and self._fixed not in self.words.counts:
            near = ", ".join(shared[:8])
            return f"surw: no access met {self._fixed!r}, so this was a random walk; threads share {near or 'nothing'}"
        what = repr(self._fixed) if self._fixed else f"one of {len(shared)} words that threads share"
        return f"surw: uniform over the orders of the accesses to {what}, as far as their numbers were estimated well"
