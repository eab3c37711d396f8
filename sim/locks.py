"""Locks that wait: the kernel's queued rwlock, spinlock and mutex.

All three are one queue. Whoever finds the lock taken stands in line, and a release hands the lock to the head of the
line, so nobody barges in. For the rwlock that is the kernel's qrwlock (kernel/locking/qrwlock.c; reference 2.2): a waiting
writer holds back new readers, the readers that are inside drain, and consecutive readers at the head go in together.

Time: an atomic operation on a lock's word moves its cache line. `line_ns` is what one transfer takes; operations of
different threads on one lock are served one after the other, which is what limits a read lock on many CPUs (costs.md H4).
Not modelled: the IRQ-context reader that ignores a waiting writer, MCS node placement, priority inheritance.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar

from sim import dependence
from sim.access import BLOCKED, Access, Blocked
from sim.dependence import Gate, Touch

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread

READ = "read"
WRITE = "write"


class LockMisuse(Exception):
    """A lock was released by a thread that does not hold it, or taken twice. Args: one sentence."""


class Lock:
    """What all waiting locks share: holders, a fair queue, a cache line, and how long people waited."""

    sleeps: ClassVar[bool] = False
    by_mode: ClassVar[bool] = False

    def __init__(self, kernel: Kernel, name: str, kind: str = "") -> None:
        """Make a lock; locks of one `kind` (the folio locks of a file) share their latency, else each has its own."""
        self.kernel = kernel
        self.name = name
        self.writer: Thread | None = None
        self.readers: dict[Thread, None] = {}
        self.queue: deque[tuple[Thread, str]] = deque()
        self.line_ns = 0
        self._line_owner: Thread | None = None
        self._line_free_ns = 0
        waits = f"lock.{kind or name}"
        self.wait_names = dict.fromkeys((READ, WRITE), f"{waits}.wait")
        if self.by_mode:
            self.wait_names = {READ: f"{waits}.read", WRITE: f"{waits}.write"}

    def __str__(self) -> str:
        return self.name

    @property
    def contended(self) -> bool:
        """Whether somebody waits (the kernel's rwlock_needbreak and spin_needbreak). Never yields."""
        dependence.note(f"{self.name}.contended", dependence.READ)
        return bool(self.queue)

    def holders(self) -> list[Thread]:
        """Who is inside, in the order of entry."""
        return [self.writer] if self.writer is not None else list(self.readers)

    def held_by(self, thread: Thread) -> str | None:
        """`"read"`, `"write"` or None."""
        if self.writer is thread:
            return WRITE
        return READ if thread in self.readers else None

    def assert_held(self) -> None:
        """lockdep_assert_held: the running thread is inside, in any mode."""
        self._demand(self.held_by(self.kernel.current) is not None, "to hold it")

    def assert_held_for_write(self) -> None:
        """lockdep_assert_held_write."""
        self._demand(self.writer is self.kernel.current, "to hold it for write")

    def assert_held_for_read(self) -> None:
        """lockdep_assert_held_read: held for read, not for write."""
        self._demand(self.kernel.current in self.readers, "to hold it for read")

    def _demand(self, truth: bool, what: str) -> None:
        if not truth:
            thread = self.kernel.current
            self.kernel.find("lock-rule", f"{self.name}: {thread} is required {what}")

    def touch_line(self, thread: Thread) -> None:
        """Charge the thread for moving the lock's cache line to its CPU, after the transfers already under way."""
        line_ns = self.line_ns
        if not line_ns:
            return
        now_ns = self.kernel.now_ns
        start_ns = max(now_ns, self._line_free_ns)
        if self._line_owner is not thread:
            self._line_owner = thread
            start_ns += line_ns
        self._line_free_ns = start_ns
        thread.debt_ns += start_ns - now_ns

    def take(self, thread: Thread, mode: str) -> Any:
        """Enter now, or stand in line."""
        if thread is self.writer or thread in self.readers:
            raise LockMisuse(f"{thread} takes {self.name} for {mode} but is already inside")
        self.touch_line(thread)
        if self.writer is None and not self.queue and (mode is READ or not self.readers):
            self._admit(thread, mode)
            self.kernel.record(self.wait_names[mode], 0)
            return None
        self.queue.append((thread, mode))
        return BLOCKED

    def _admit(self, thread: Thread, mode: str) -> None:
        if mode is READ:
            self.readers[thread] = None
        else:
            self.writer = thread

    def drop(self, thread: Thread, mode: str) -> None:
        """Leave, and hand the lock to the head of the line."""
        held = self.held_by(thread)
        if held is None:
            raise LockMisuse(f"{thread} releases {self.name} but is not inside")
        if held != mode:
            raise LockMisuse(f"{thread} releases {self.name} for {mode} but holds it for {held}")
        if mode is WRITE:
            self.writer = None
        else:
            del self.readers[thread]
        self.touch_line(thread)
        queue = self.queue
        while queue and self.writer is None:
            waiter, mode = queue[0]
            if mode is WRITE and self.readers:
                return
            queue.popleft()
            self._admit(waiter, mode)
            kernel = self.kernel
            kernel.record(self.wait_names[mode], kernel.now_ns - waiter.blocked_since_ns)
            kernel.wake(waiter)


class Acquire(Access):
    """Take a lock, waiting as long as it takes."""

    __slots__ = ("mode",)
    writes = acquires = True
    target: Lock

    def __init__(self, target: Lock, mode: str) -> None:
        self.target = target
        self.mode = mode

    def perform(self, thread: Thread) -> Blocked | None:
        return self.target.take(thread, self.mode)  # type: ignore[no-any-return]

    def touches(self) -> tuple[Touch, ...]:
        name = self.target.name
        mode = dependence.READ if self.mode is READ else dependence.WRITE
        return ((name, mode), (f"{name}.contended", dependence.UPDATE))

    def gate(self) -> Gate:
        return Gate(self.target, waits=True, opens=True, exclusive=self.mode is WRITE)

    def __repr__(self) -> str:
        return f"{self.mode}-lock {self.target}"


class Release(Access):
    """Release a lock."""

    __slots__ = ("mode",)
    verb = "unlock"
    writes = releases = True
    target: Lock

    def __init__(self, target: Lock, mode: str) -> None:
        self.target = target
        self.mode = mode

    def perform(self, thread: Thread) -> None:
        self.target.drop(thread, self.mode)

    def touches(self) -> tuple[Touch, ...]:
        return ((f"{self.target.name}.contended", dependence.UPDATE),)

    def gate(self) -> Gate:
        return Gate(self.target, closes=True)


class RwLock(Lock):
    """The kernel's queued rwlock: fair between its waiters, a waiting writer holds back new readers."""

    by_mode = True

    def read_lock(self) -> Acquire:
        """read_lock: enter beside other readers."""
        return Acquire(self, READ)

    def read_unlock(self) -> Release:
        """read_unlock."""
        return Release(self, READ)

    def write_lock(self) -> Acquire:
        """write_lock: enter alone."""
        return Acquire(self, WRITE)

    def write_unlock(self) -> Release:
        """write_unlock."""
        return Release(self, WRITE)


class SpinLock(Lock):
    """A queued spinlock."""

    def lock(self) -> Acquire:
        """spin_lock."""
        return Acquire(self, WRITE)

    def unlock(self) -> Release:
        """spin_unlock."""
        return Release(self, WRITE)


class RwSem(RwLock):
    """A rw_semaphore (filemap_invalidate_lock): queued like the rwlock, and its holders and waiters may sleep."""

    sleeps = True


class Mutex(SpinLock):
    """A mutex: its holder and its waiters may sleep."""

    sleeps = True
