"""`dfs[:b]`: every interleaving, one after the other; with `b`, those with at most b preemptions.

Depth first: the next execution repeats the last one up to its latest choice that has an alternative left, and takes the next
one there; alternatives are tried in the order of thread indices. `begin` says False when none is left: then everything that
the world and the window allow has been executed (Verisoft; Godefroid, POPL 1997). A preemption is a switch away from a thread
that could have gone on; blocking and ending are free. Most bugs need one or two (Musuvathi, Qadeer, PLDI 2007).

Pitfalls. The number of executions grows like a multinomial coefficient: two threads of 10 steps make 184 756. Threads start
with a step of their own, which counts. An execution cut by the step limit leaves its end unexplored, and nothing is proved.
There is no randomness: execution i follows from the executions before it. Executions must be a function of their picks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from sim.kernel import ModelBug

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread


class Dfs:
    """The tree of picks, from left to right."""

    complete_after: ClassVar[int | None] = None

    def __init__(self, preemptions: int | None = None) -> None:
        self.preemptions = preemptions
        self.pruned = False
        """Whether the bound has cut off any choice so far: if not, it did not bound anything."""
        self.executions = 0
        self._path: list[int] = []
        """The thread index picked at each step of the current execution; a prefix of it is prescribed by `begin`."""
        self._untried: list[list[int]] = []
        """As long as `_path`: the alternatives left at each step, thread indices, the next one last."""
        self._widths: list[int] = []
        """As long as `_path`: how many alternatives there were at each step, for `explored`."""
        self._step = 0
        self._last = -1
        """The thread index of the step before this one; -1 at the start."""
        self._used = 0
        """Preemptions made so far in this execution; at most `preemptions`."""

    @property
    def exhaustive(self) -> bool:
        """Whether the end of this search means every interleaving: not if the bound cut any off."""
        return not self.pruned

    def begin(self, kernel: Kernel, execution: int) -> bool:
        path, untried = self._path, self._untried
        if self.executions:
            while untried and not untried[-1]:
                untried.pop()
                path.pop()
                self._widths.pop()
            if not untried:
                return False
            path[-1] = untried[-1].pop()
        self._step = 0
        self._last = -1
        self._used = 0
        return True

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        step = self._step
        self._step = step + 1
        by_index = {thread.index: i for i, thread in enumerate(candidates)}
        may_stay = self._last in by_index
        if step < len(self._path):
            picked = self._path[step]
            if picked not in by_index:
                raise ModelBug(
                    f"dfs: the same picks led elsewhere at step {step}: the world is not deterministic"
                )
        else:
            order = sorted(by_index, reverse=True)
            if (
                may_stay
                and len(order) > 1
                and self.preemptions is not None
                and self._used >= self.preemptions
            ):
                order = [self._last]
                self.pruned = True
            self._widths.append(len(order))
            picked = order.pop()
            self._path.append(picked)
            self._untried.append(order)
        if may_stay and picked != self._last:
            self._used += 1
        self._last = picked
        return by_index[picked]

    def end(self, kernel: Kernel) -> None:
        # An execution that ended sooner than prescribed has nothing below its end.
        del self._path[self._step :], self._untried[self._step :], self._widths[self._step :]
        self.executions += 1

    @property
    def explored(self) -> float:
        """The part of the tree behind us, if every choice halves what is left evenly (Knuth's estimator, weighted)."""
        part, share = 0.0, 1.0
        for untried, width in zip(self._untried, self._widths, strict=True):
            share /= width
            part += share * (width - 1 - len(untried))
        return part + share if self.executions else 0.0

    def claim(self) -> str:
        """How far the search is, and what its bound means."""
        bound = "" if self.exhaustive else f" with at most {self.preemptions} preemptions"
        explored = self.explored
        if not any(self._untried):
            return f"dfs: {self.executions} interleavings, all{bound}"
        return (
            f"dfs: {self.executions} interleavings of an estimated {self.executions / explored:.3g}{bound} "
            f"({explored:.2g} of the tree)"
        )
