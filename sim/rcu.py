"""RCU and SRCU: read sections that never wait, grace periods that do, and frees that come later.

A grace period ends when every read section that was open at its start has closed. `synchronize` blocks its caller for
one; `call` (call_rcu) hands a callback to the domain's own thread, which runs each callback as a step of its own after a
grace period, so that a use after free is one interleaving away, as on a real machine.
Source: Documentation/RCU/whatisRCU.rst. Not modelled: expedited against normal grace periods, nesting counts across CPUs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sim.access import BLOCKED, Access, Blocked, Steps
from sim.dependence import READ, UPDATE, WRITE, Gate, Touch, note
from sim.locks import LockMisuse
from sim.syncs import GIVES, TAKES

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread


class Rcu:
    """One RCU domain (an SRCU domain is a second one)."""

    def __init__(self, kernel: Kernel, name: str, *, sleepable: bool = False) -> None:
        """Make a domain; readers of a `sleepable` one (SRCU) may sleep."""
        self.kernel = kernel
        self.name = name
        self.sleepable = sleepable
        self.inside: dict[Thread, int] = {}
        self._grace: list[tuple[set[Thread], Thread]] = []
        self._callbacks: deque[tuple[str, Callable[[], None]]] = deque()
        self._reclaimer: Thread | None = None

    def __str__(self) -> str:
        return self.name

    def read_lock(self) -> Access:
        """rcu_read_lock: open a read section (they nest)."""
        return Enter(self)

    def read_unlock(self) -> Access:
        """rcu_read_unlock: close one."""
        return Leave(self)

    def synchronize(self) -> Access:
        """synchronize_rcu: wait until all read sections open now have closed."""
        return Synchronize(self)

    def assert_inside(self) -> None:
        """rcu_read_lock_held."""
        if self.kernel.current not in self.inside:
            self.kernel.find(
                "lock-rule", f"{self.kernel.current} is required to be in a read section of {self.name}"
            )

    def call(self, what: str, callback: Callable[[], None]) -> None:
        """call_rcu: run `callback` after a grace period, on the domain's own thread. Never yields."""
        note(f"{self.name}.callbacks", WRITE)
        self.kernel.sync(GIVES, self)
        self._callbacks.append((what, callback))
        if self._reclaimer is None or self._reclaimer.done:
            self._reclaimer = self.kernel.thread(self.name, self._reclaim(), daemon=True)

    def barrier(self) -> Access:
        """rcu_barrier: wait until every callback queued so far has run."""
        note(f"{self.name}.callbacks", READ)
        return self.kernel.join(self._reclaimer) if self._reclaimer is not None else Synchronize(self)

    def _reclaim(self) -> Steps[None]:
        note(f"{self.name}.callbacks", WRITE)
        while self._callbacks:
            batch = list(self._callbacks)
            self._callbacks.clear()
            self.kernel.sync(TAKES, self)
            yield Synchronize(self)
            for what, callback in batch:
                yield Reclaim(self, what, callback)

    def _left(self, thread: Thread) -> None:
        waiting = []
        for readers, waiter in self._grace:
            readers.discard(thread)
            if readers:
                waiting.append((readers, waiter))
            else:
                self.kernel.wake(waiter)
        self._grace = waiting

    def holders(self) -> list[Thread]:
        """Who keeps grace periods from ending."""
        return list(self.inside)


Srcu = Rcu


class Enter(Access):
    """Open a read section."""

    __slots__ = ()
    verb = "rcu enter"
    acquires = True
    target: Rcu

    def perform(self, thread: Thread) -> None:
        inside = self.target.inside
        inside[thread] = inside.get(thread, 0) + 1

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.name, UPDATE),)

    def gate(self) -> Gate:
        return Gate(self.target, opens=True)


class Leave(Access):
    """Close a read section."""

    __slots__ = ()
    verb = "rcu leave"
    writes = releases = True
    target: Rcu

    def perform(self, thread: Thread) -> None:
        rcu = self.target
        depth = rcu.inside.get(thread, 0)
        if depth > 1:
            rcu.inside[thread] = depth - 1
            return
        if not depth:
            raise LockMisuse(f"{thread} leaves {rcu.name} but is not in a read section")
        del rcu.inside[thread]
        if rcu._grace:
            rcu._left(thread)

    def touches(self) -> tuple[Touch, ...]:
        return ()

    def gate(self) -> Gate:
        return Gate(self.target, closes=True)


class Synchronize(Access):
    """Wait for a grace period. `awaited`, once it blocks: the readers that are still inside."""

    __slots__ = ("awaited",)
    verb = "synchronize"
    reads = acquires = True
    target: Rcu

    def perform(self, thread: Thread) -> Blocked | None:
        rcu = self.target
        if thread in rcu.inside:
            rcu.kernel.find(
                "deadlock", f"{thread} waits for a grace period of {rcu.name} inside its own read section"
            )
        readers = set(rcu.inside)
        if not readers:
            return None
        rcu._grace.append((readers, thread))
        self.awaited = lambda: sorted(readers, key=lambda reader: reader.index)
        return BLOCKED

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.name, READ),)

    def gate(self) -> Gate:
        return Gate(self.target, waits=True, exclusive=True)


class Reclaim(Access):
    """Run one deferred callback."""

    __slots__ = ("callback", "what")
    writes = True

    def __init__(self, target: Rcu, what: str, callback: Callable[[], None]) -> None:
        self.target = target
        self.what = what
        self.callback = callback

    def perform(self, thread: Thread) -> Any:
        self.callback()

    def __repr__(self) -> str:
        return f"rcu callback: {self.what}"
