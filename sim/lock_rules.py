"""Lock rules: what is wrong about taking locks even when nothing went wrong this time. Kind `lock-rule`.

- A *sleeping call* (mutex, rw semaphore, synchronize_rcu, synchronize_srcu, joining a thread) by a thread that holds a
  spinlock or rwlock, or is inside a read section of RCU proper (SRCU readers may sleep).
- A *lock-order cycle*: thread 1 takes A then B, thread 2 takes B then A, even if they never meet. The graph is over lock
  instances, not classes, so two locks of one kind may be nested freely. A cycle counts only if its steps are by different
  threads and no common lock, held exclusively by all of them, keeps them apart (the gate of Havelund's GoodLock; races.md
  R93). A grace period is a lock here: who waits for one wants it, who is inside a read section holds it.

Which mode a lock must be held in is said by the model (`Lock.assert_held*`), and judged there.
Source: Documentation/locking/lockdep-design.rst; Havelund, SPIN 2000. Not judged: interrupt contexts; read recursion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sim.kernel import Join
from sim.locks import WRITE, Acquire, Release
from sim.rcu import Enter, Leave, Rcu, Synchronize

if TYPE_CHECKING:
    from sim.access import Access
    from sim.kernel import Kernel
    from sim.thread import Thread

LONGEST_CYCLE = 4
"""Cycles through more locks are not looked for."""
ORDERS_MAX = 10_000
"""So many orders are remembered, then no new ones: a long timing run meets a lock for every page."""


class Edge(NamedTuple):
    """`thread` wanted `target` while it held `held`, with `gates` held exclusively beside it; and where it stood."""

    held: Any
    target: Any
    thread: Thread
    gates: frozenset[Any]
    place: str


class LockRules:
    """What every thread holds, and in which orders locks were taken. `observe` sees accesses to locks, RCU domains and threads."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._held: dict[Thread, dict[Any, str]] = {}
        self._edges: dict[Any, list[Edge]] = {}
        self._known: set[tuple[Any, Any, Thread, frozenset[Any]]] = set()

    def observe(self, thread: Thread, access: Access) -> None:
        """An access to a lock has happened; one that blocks counts as soon as it is tried."""
        kind = access.__class__
        if kind is Acquire:
            lock = access.target
            held = self._held.setdefault(thread, {})
            if held:
                if lock.sleeps:
                    self._may_sleep(thread, access, held)
                self._ordered(thread, lock, held)
            held[lock] = access.mode  # type: ignore[attr-defined]
        elif kind is Release:
            self._held.get(thread, {}).pop(access.target, None)
        elif kind is Enter:
            self._held.setdefault(thread, {})[access.target] = "inside"
        elif kind is Leave:
            if thread not in access.target.inside:  # the outermost one
                self._held.get(thread, {}).pop(access.target, None)
        elif kind in (Synchronize, Join):
            held = self._held.get(thread, {})
            if held:
                self._may_sleep(thread, access, held)
                if kind is Synchronize:
                    self._ordered(thread, access.target, held)

    def _may_sleep(self, thread: Thread, access: Access, held: dict[Any, str]) -> None:
        """might_sleep()."""
        for lock in held:
            if isinstance(lock, Rcu):
                if lock.sleepable:
                    continue
                self.kernel.find(
                    "lock-rule", f"a sleeping call in a read section of {lock}: {access!r}", thread=thread
                )
            elif not lock.sleeps:
                self.kernel.find("lock-rule", f"a sleeping call under {lock}: {access!r}", thread=thread)

    def _ordered(self, thread: Thread, target: Any, held: dict[Any, str]) -> None:
        """Note that `target` comes after everything in `held`, and look whether that closes a cycle."""
        exclusive = frozenset(lock for lock, mode in held.items() if mode == WRITE)
        for lock in held:
            gates = exclusive - {lock}
            known = (lock, target, thread, gates)
            if lock is target or known in self._known or len(self._known) >= ORDERS_MAX:
                continue
            self._known.add(known)
            edge = Edge(lock, target, thread, gates, thread.place())
            self._edges.setdefault(lock, []).append(edge)
            ring = self._ring(target, [edge])
            if ring:
                self._report(ring)

    def _report(self, ring: list[Edge]) -> None:
        """One cycle is one finding, wherever it was closed: it is told from its first lock by name on."""
        first = min(range(len(ring)), key=lambda at: str(ring[at].held))
        ring = ring[first:] + ring[:first]
        order = " > ".join(str(step.held) for step in [*ring, ring[0]])
        steps = {f"{step.held} > {step.target}": f"{step.thread} at {step.place}" for step in ring}
        self.kernel.find("lock-rule", f"lock-order cycle: {order}", **steps)

    def _ring(self, at: Any, path: list[Edge]) -> list[Edge]:
        """The edges that lead from `at` back to the first lock of `path`, by threads that nothing keeps apart."""
        if len(path) == LONGEST_CYCLE:
            return []
        for edge in self._edges.get(at, ()):
            if any(edge.thread is step.thread or edge.gates & step.gates for step in path):
                continue
            if edge.target is path[0].held:
                return [*path, edge]
            found = self._ring(edge.target, [*path, edge])
            if found:
                return found
        return []
