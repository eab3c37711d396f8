"""Wake-ups: a flag that somebody sets and somebody waits for, with or without a bound.

An acknowledged message (an IPI) is two of these: one that the target waits for, one that the sender waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sim.access import BLOCKED, TIMED_OUT, Access
from sim.dependence import READ, WRITE, Touch, note
from sim.syncs import GIVES

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread


class Signal:
    """A flag that stays set until somebody takes it (the kernel's completion; with `take=False`, a latch)."""

    __slots__ = ("kernel", "name", "owed_by", "value", "waiters")

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self.value = False
        self.waiters: list[tuple[Thread, bool]] = []
        self.owed_by: Callable[[], list[Thread]] | None = None

    def __str__(self) -> str:
        return self.name

    def raise_(self) -> Access:
        """Set it and wake who waits."""
        return Raise(self)

    def set(self) -> None:
        """Set it as part of another access (a device, a handler): never yields."""
        note(self.name, WRITE)
        self.wake()

    def wake(self) -> None:
        """What setting it does; a waiter that takes it leaves it clear."""
        self.kernel.sync(GIVES, self)
        self.value = True
        waiters, self.waiters = self.waiters, []
        for thread, take in waiters:
            if self.value or not take:
                self.kernel.wake(thread, True)
            else:
                self.waiters.append((thread, take))
            if take:
                self.value = False

    def wait(self, bound_ns: int | None = None, *, take: bool = True) -> Access:
        """Wait until it is set; the thread gets True, or `TIMED_OUT` after `bound_ns`. Taking it clears it."""
        return Await(self, bound_ns, take)

    def forget(self, thread: Thread) -> None:
        """Remove a waiter whose bound ran out."""
        self.waiters = [entry for entry in self.waiters if entry[0] is not thread]

    def holders(self) -> list[Thread]:
        """Who must run before it is set (`owed_by`, of an acknowledgement); nobody in particular for other signals."""
        return [] if self.owed_by is None else self.owed_by()


class Raise(Access):
    """Set a signal."""

    __slots__ = ()
    verb = "signal"
    writes = releases = True
    target: Signal

    def perform(self, thread: Thread) -> None:
        self.target.wake()

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.name, WRITE),)


class Await(Access):
    """Wait for a signal."""

    __slots__ = ("bound_ns", "take")
    verb = "wait for"
    reads = writes = acquires = True
    target: Signal

    def __init__(self, target: Signal, bound_ns: int | None, take: bool) -> None:
        self.target = target
        self.bound_ns = bound_ns
        self.take = take

    def perform(self, thread: Thread) -> Any:
        signal = self.target
        if signal.value:
            if self.take:
                signal.value = False
            return True
        signal.waiters.append((thread, self.take))
        if self.bound_ns is not None:
            signal.kernel.arm(thread, Expire(signal), self.bound_ns)
        return BLOCKED

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.name, WRITE if self.take else READ),)


class Expire(Access):
    """The end of a bounded wait that nobody answered."""

    __slots__ = ()
    verb = "time-out of"
    writes = True
    target: Signal

    def perform(self, thread: Thread) -> Any:
        self.target.forget(thread)
        return TIMED_OUT

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.name, WRITE),)
