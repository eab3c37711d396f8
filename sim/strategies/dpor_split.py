"""Parts of a `dpor` search that can be done apart, in any order and by anybody, with the same result.

`roots` grows the tree of executions from its top, widest first, until there are enough leaves. At each place that it grows,
*every* step is taken, not only those that races ask for; what was taken before from there sleeps. So nothing that one part
finds out obliges another, each class of interleavings is complete in exactly one part, and the sums over all parts are those
of the whole search: complete executions, final states, findings. What is paid for it are executions that only sleepers
could go on with, which are cut short.

A place where somebody's next step would be to stand in line (at a lock, say) is not grown: which of the equivalent
interleavings stands for a class matters for what a search can vouch for, and those without a queue are the better ones.

The parts depend on the world and `width` alone, never on who works on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.dependence import conflict
from sim.explore import fill
from sim.kernel import INFINITY, Kernel, StopExecution
from sim.strategies.dpor import WHOLE, Dpor, Root, ThreadName, dpor

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
        self.queued = False
        """Whether the last step of the path ended in a queue."""

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
            stepped = self._numbers[self.root.path[-1]] if self.root.path else None
            for thread, number in self._thread_numbers.items():
                waited = thread.blocked_on
                if number == stepped and waited is not None and waited.gate() is not None:
                    self.queued = True


def roots(world: Callable[[Kernel], None], width: int, *, seed: int = 0, values: bool = False) -> list[Root]:
    """About `width` parts of the search: fewer if the world has not as many, and up to the number of threads more.

    Every part is to be searched by `Dpor(values=values, root=root)` with the same seed.
    """
    done: list[Root] = []
    growing = [WHOLE]
    while growing and len(done) + len(growing) < width:
        root = growing.pop(0)
        ready = _look(world, root, seed, values).ready if len(root.path) < STEPS_MAX else []
        looks = {
            name: _look(world, Root((*root.path, name), {}), seed, values)
            for name in ready
            if name not in root.asleep
        }
        if not looks or any(look.queued for look in looks.values()):
            done.append(root)
            continue
        asleep = dict(root.asleep)
        for name, look in looks.items():
            step = look.touched
            awake = {other: touches for other, touches in asleep.items() if not conflict(touches, step)}
            if all(awake.values()):  # who touches nothing would sleep for ever: another part has it all
                growing.append(Root((*root.path, name), awake))
            asleep[name] = step
    return done + growing


def part(strategy: str, root: Root) -> Dpor:
    """`strategy`, for one part. Raises: ValueError: it has no parts."""
    name, _, argument = strategy.partition(":")
    plan = dpor(argument) if name == "dpor" else None
    if plan is None:
        raise ValueError(f"{strategy} has no parts: only dpor and dpor:values have")
    return Dpor(values=plan.values, root=root)


def claim(complete: int, parts: int, *, ended: bool, vouched: bool) -> str:
    """What all parts together have covered, as `Dpor.claim` says it of one search."""
    found = f"dpor: {complete} classes of interleavings in {parts} parts"
    if not ended:
        return f"{found} so far"
    return f"{found}, all" if vouched else f"{found}, all, as far as dependence was declared"


def as_json(root: Root) -> list[Any]:
    """Lists only, to cross a pipe."""
    return [root.path, [[name, touches] for name, touches in root.asleep.items()]]


def from_json(told: list[Any]) -> Root:
    """What `as_json` told."""
    path, asleep = told
    return Root(
        tuple((name, number) for name, number in path),
        {(name, number): tuple((key, mode) for key, mode in touches) for (name, number), touches in asleep},
    )


def _look(world: Callable[[Kernel], None], root: Root, seed: int, values: bool) -> _Look:
    kernel = Kernel(seed, window_ns=INFINITY)
    look = _Look(root, values=values)
    look.begin(kernel, 0)
    if fill(kernel, world, races=True):
        kernel.execute(look.pick)
    look.end(kernel)
    return look
