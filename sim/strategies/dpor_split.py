"""Parts of a `dpor` search that can be done apart, in any order and by anybody, with the same result.

`roots` grows the tree of executions from its top, widest first, until there are enough leaves. At each place that it grows,
*every* step is taken, not only those that races ask for; what was taken before from there sleeps. So nothing that one part
finds out obliges another, each class of interleavings is complete in exactly one part, and the sums over all parts are those
of the whole search: complete executions, final states, findings. What is paid for it are executions that only sleepers
could go on with, which are cut short.

The parts depend on the world and `width` alone, never on who works on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.dependence import conflict
from sim.kernel import INFINITY, Kernel, StopExecution
from sim.strategies.dpor import WHOLE, Dpor, Root, ThreadName

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.dependence import Touch
    from sim.thread import Thread

STEPS_MAX = 200
"""No part begins later than so many steps into an execution."""


class _Look(Dpor):
    """One execution to a root and no further: what its last step touched, and who could go on."""

    def __init__(self, root: Root, *, values: bool) -> None:
        super().__init__(values=values, root=root)
        self.ready: list[ThreadName] = []
        self.touched: tuple[Touch, ...] = ()

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        index = super().pick(kernel, candidates)
        if len(self.steps) <= len(self.root.path):
            return index
        self.steps.pop()
        names = {number: name for name, number in self._numbers.items()}
        self.ready = [names[self._thread_numbers[thread]] for thread in candidates]
        self.redundant = True
        raise StopExecution

    def _plan(self, kernel: Kernel) -> None:
        if self.steps:
            self.touched = self._prints.touches(self.steps[-1].print_)


def roots(world: Callable[[Kernel], None], width: int, *, seed: int = 0, values: bool = False) -> list[Root]:
    """At least `width` parts of the search, if the world has as many; fewer than `width` plus the number of threads.

    Every part is to be searched by `Dpor(values=values, root=root)` with the same seed.
    """
    done: list[Root] = []
    growing = [WHOLE]
    while growing and len(done) + len(growing) < width:
        root = growing.pop(0)
        look = _look(world, root, seed, values)
        if not look.ready or len(root.path) >= STEPS_MAX:
            done.append(root)
            continue
        asleep = dict(root.asleep)
        for name in look.ready:
            if name in root.asleep:
                continue
            step = _look(world, Root((*root.path, name), {}), seed, values).touched
            awake = {other: touches for other, touches in asleep.items() if not conflict(touches, step)}
            if all(awake.values()):  # who touches nothing would sleep for ever: another part has it all
                growing.append(Root((*root.path, name), awake))
            asleep[name] = step
    return done + growing


def _look(world: Callable[[Kernel], None], root: Root, seed: int, values: bool) -> _Look:
    kernel = Kernel(seed, window_ns=INFINITY)
    look = _Look(root, values=values)
    look.begin(kernel, 0)
    world(kernel)
    kernel.execute(look.pick)
    look.end(kernel)
    return look
