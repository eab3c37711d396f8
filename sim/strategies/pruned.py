"""`pruned`: every interleaving, but no state twice: `dfs` that leaves an execution where it comes to a state it has been in.

For worlds that `states` cannot put into tables, the full model above all. A state is everything the threads' futures depend on,
exactly: what each thread is about to do or waits for, where its generators stand, and every object reachable from there, by
structure (`sim.states.position`). It is kept as a digest of 32 bytes (BLAKE2b), so that two states are taken for one with a
probability below 2^-100. Not part of it, because no step may depend on them: the clock, due times, costs, counters, latencies and
the event log, all of which the kernel keeps.

Guarantee: that of `dfs`, where no thread asks for the time: a state that was left by all its ways before is left at once.
Pitfalls. Full interleaving only. Looking at the whole world costs a hundred times a step; it pays where interleavings are many
more than states. An execution is abandoned in the middle, and counts as redundant. Properties that count something in Python
objects of the model make states differ that otherwise would not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from sim.kernel import INFINITY, StopExecution
from sim.states.position import Names, Walk, require_readable
from sim.strategies.dfs import Dfs

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread


class Pruned(Dfs):
    """The tree of picks, cut where a state comes again."""

    def __init__(self) -> None:
        super().__init__()
        self.redundant = False
        """Whether the execution that just ended came to a known state."""
        self.states: set[bytes] = set()
        self._fixed = 0
        """Steps of the current execution that repeat an earlier one."""

    def begin(self, kernel: Kernel, execution: int) -> bool:
        """Raises: ValueError: the kernel has a window, or this Python hides where a generator stands."""
        if kernel.window_ns < INFINITY:
            raise ValueError("pruned looks at every order of steps: it takes no window")
        require_readable()
        self.redundant = False
        more = super().begin(kernel, execution)
        self._fixed = len(self._path)
        return more

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        """Raises: StopExecution: what follows is known. Opaque: an object's state cannot be read."""
        if self._step >= self._fixed:
            state = blake2b(repr(state_of(kernel)).encode(), digest_size=32).digest()
            if state in self.states:
                self.redundant = True
                raise StopExecution
            self.states.add(state)
        return super().pick(kernel, candidates)

    def claim(self) -> str:
        """How far it got, and by how many states."""
        return f"{super().claim()}; {len(self.states)} states"


def state_of(kernel: Kernel) -> Hashable:
    """Everything the future of this world depends on. Raises: Opaque."""
    names: Names = {id(kernel): "kernel"}
    for thread in kernel.threads:
        names[id(thread)] = ("thread", thread.index)
    walk = Walk(names)
    return (
        tuple([_thread_of(walk, thread) for thread in kernel.threads]),
        walk.of(kernel._rcu),
        walk.of(kernel._always + kernel._at_end),
        walk.of(list(kernel._sometimes.items())),
    )


def _thread_of(walk: Walk, thread: Thread) -> Hashable:
    """What a thread is about to do or waits for, and where it stands."""
    if thread.done:
        return ("done", walk.of(thread._value))
    return (
        thread.ready,
        walk.of(thread.pending if thread.ready else thread.blocked_on),
        walk.of(thread._generator),
    )
