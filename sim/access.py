"""Accesses and cells: the vocabulary of shared memory, one word and one step at a time.

An `Access` is the SimPy event that a thread yields. It *may happen* when it is made, it *is going to happen* while its
thread is among the candidates, and it *has happened* once the kernel has performed it: only then is its value known.
Making one changes nothing, so a strategy can look at what every thread would do next before any of them does it.

Every kind of access says in one place, its class, what search and race detection need to know: whether it reads, may
write, is plain or marked (KCSAN's distinction: Documentation/dev-tools/kcsan.rst), and whether it orders like an acquire
or a release. A failed cmpxchg is a read; `wrote` tells after the fact.

Not modelled here: store buffers (x86-TSO); they will sit between `Write.perform` and the cell.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import simpy
from simpy.events import PENDING

from sim.dependence import EVERYTHING, READ, WRITE, Gate, Notes, Touch, note

if TYPE_CHECKING:
    from sim.thread import Thread

T = TypeVar("T")
R = TypeVar("R")

Steps = Generator[simpy.Event, Any, R]
"""What a sequence of accesses is: `yield` one access, or `yield from` another sequence; returns an R."""


class Blocked:
    """The type of `BLOCKED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "BLOCKED"


BLOCKED = Blocked()
"""What `perform` returns when the access happened but its thread now waits for somebody else."""


class TimedOut:
    """The type of `TIMED_OUT`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "TIMED_OUT"


TIMED_OUT = TimedOut()
"""What a bounded wait returns when nobody came in time."""


class Access(simpy.Event):
    """One atomic access to shared state; the thread that yields it resumes with what `perform` returns."""

    __slots__ = ("target",)
    verb: ClassVar[str] = "access"
    reads: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    marked: ClassVar[bool] = True
    acquires: ClassVar[bool] = False
    releases: ClassVar[bool] = False
    callbacks: Any = ()
    _value: Any = PENDING
    _ok = True
    _defused = True

    def __init__(self, target: Any) -> None:
        self.target = target

    def perform(self, thread: Thread) -> Any:
        """Do it for `thread`, and return the value, or `BLOCKED`. Called once, by the kernel."""
        raise NotImplementedError

    @property
    def wrote(self) -> bool:
        """Whether it changed its target; only known, and only asked, after `perform`."""
        return self.writes

    def touches(self) -> tuple[Touch, ...]:
        """What it touches at most, for searches that reorder accesses; see `sim.dependence`."""
        return EVERYTHING if self.reads or self.writes else ()

    def touched(self) -> tuple[Touch, ...]:
        """What it came to touch; only asked after it happened."""
        return self.touches()

    def gate(self) -> Gate | None:
        """What part it plays at a gate, if any."""
        return None

    def held_up(self) -> bool:
        """Whether it would now wait for words to change, and so that it shows nowhere when the wait began."""
        return False

    @property
    def processed(self) -> bool:
        """Whether it has happened."""
        return self._value is not PENDING

    def __repr__(self) -> str:
        return f"{self.verb} {self.target!s}"


class Cell(Generic[T]):
    """One machine word: what the machine reads, writes or exchanges in one go.

    The methods return accesses to be yielded. Plain `read` and `write` are what a compiler may tear; `read_once` and
    `write_once` are the kernel's marked accesses; the atomic read-modify-writes are full barriers, as on x86.
    """

    __slots__ = ("name", "v", "watchers")

    def __init__(self, name: str, value: T) -> None:
        self.name = name
        self.v = value
        self.watchers: list[tuple[Thread, Callable[[T], bool]]] | None = None

    def __str__(self) -> str:
        return self.name

    def peek(self) -> T:
        """Look without yielding: for observers, properties and reports, never for the model's own steps."""
        if Notes.taken is not None:
            Notes.taken.append((self.name, READ))
        return self.v

    def read(self) -> Read[T]:
        """Plain load."""
        return Read(self)

    def write(self, value: T) -> Write[T]:
        """Plain store."""
        return Write(self, value)

    def read_once(self) -> ReadOnce[T]:
        """READ_ONCE."""
        return ReadOnce(self)

    def write_once(self, value: T) -> WriteOnce[T]:
        """WRITE_ONCE."""
        return WriteOnce(self, value)

    def load_acquire(self) -> LoadAcquire[T]:
        """smp_load_acquire."""
        return LoadAcquire(self)

    def store_release(self, value: T) -> StoreRelease[T]:
        """smp_store_release."""
        return StoreRelease(self, value)

    def cmpxchg(self, expect: T, new: T) -> Cmpxchg[T]:
        """Store `new` if the cell holds `expect`; the thread gets the value that was seen."""
        return Cmpxchg(self, expect, new)

    def xchg(self, value: T) -> Xchg[T]:
        """Exchange; the thread gets the old value."""
        return Xchg(self, value)

    def update(self, change: Callable[[T], T], verb: str = "update") -> Update[T]:
        """Atomic read-modify-write by a pure function; the thread gets the old value."""
        return Update(self, change, verb)

    def fetch_add(self: Cell[int], n: int) -> Update[int]:
        """Add `n`; the thread gets the old value."""
        return Update(self, lambda old: old + n, "fetch_add")

    def fetch_or(self: Cell[int], mask: int) -> Update[int]:
        """Set the bits of `mask`; the thread gets the old value."""
        return Update(self, lambda old: old | mask, "fetch_or")

    def fetch_and(self: Cell[int], mask: int) -> Update[int]:
        """Keep only the bits of `mask`; the thread gets the old value."""
        return Update(self, lambda old: old & mask, "fetch_and")

    def wait_until(self, condition: Callable[[T], bool]) -> WaitUntil[T]:
        """Wait, without spinning, until the word satisfies `condition`; the thread gets the word.

        This is how the model writes a kernel loop of `READ_ONCE` and `cpu_relax()`: it neither hangs nor explodes a
        search, and a word that never changes is a deadlock with this wait in its report.
        """
        return WaitUntil(self, condition)

    def notify(self) -> None:
        """Wake the threads whose condition the new value satisfies. Called by whatever changed `v`."""
        watchers = self.watchers
        if watchers is None:
            return
        value = self.v
        staying = [(thread, condition) for thread, condition in watchers if not condition(value)]
        if len(staying) == len(watchers):
            return
        self.watchers = staying or None
        for thread, condition in watchers:
            if condition(value):
                thread.kernel.wake(thread, value)


class CellAccess(Access, Generic[T]):
    """An access to a cell."""

    __slots__ = ()
    target: Cell[T]

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.name, WRITE if self.writes else READ),)


class Read(CellAccess[T]):
    """Plain load."""

    __slots__ = ()
    verb = "plain read"
    reads = True
    marked = False

    def perform(self, thread: Thread) -> T:
        return self.target.v


class ReadOnce(Read[T]):
    """Marked load."""

    __slots__ = ()
    verb = "read"
    marked = True


class LoadAcquire(ReadOnce[T]):
    """Marked load that orders what follows it."""

    __slots__ = ()
    verb = "load-acquire"
    acquires = True


class Write(CellAccess[T]):
    """Plain store."""

    __slots__ = ("new",)
    verb = "plain write"
    writes = True
    marked = False

    def __init__(self, target: Cell[T], new: T) -> None:
        self.target = target
        self.new = new

    def perform(self, thread: Thread) -> None:
        cell = self.target
        cell.v = self.new
        if cell.watchers is not None:
            cell.notify()


class WriteOnce(Write[T]):
    """Marked store."""

    __slots__ = ()
    verb = "write"
    marked = True


class StoreRelease(WriteOnce[T]):
    """Marked store that orders what came before it."""

    __slots__ = ()
    verb = "store-release"
    releases = True


class Cmpxchg(CellAccess[T]):
    """Compare and exchange."""

    __slots__ = ("expect", "new")
    verb = "cmpxchg"
    reads = writes = acquires = releases = True

    def __init__(self, target: Cell[T], expect: T, new: T) -> None:
        self.target = target
        self.expect = expect
        self.new = new

    def perform(self, thread: Thread) -> T:
        cell = self.target
        seen = cell.v
        if seen == self.expect:
            cell.v = self.new
            if cell.watchers is not None:
                cell.notify()
        return seen

    @property
    def wrote(self) -> bool:
        return bool(self._value == self.expect)

    def touched(self) -> tuple[Touch, ...]:
        failed = self._value is not PENDING and not self.wrote
        return ((self.target.name, READ if failed else WRITE),)


class Xchg(CellAccess[T]):
    """Exchange."""

    __slots__ = ("new",)
    verb = "xchg"
    reads = writes = acquires = releases = True

    def __init__(self, target: Cell[T], new: T) -> None:
        self.target = target
        self.new = new

    def perform(self, thread: Thread) -> T:
        cell = self.target
        old = cell.v
        cell.v = self.new
        if cell.watchers is not None:
            cell.notify()
        return old


class Update(CellAccess[T]):
    """Read-modify-write by a pure function."""

    __slots__ = ("change", "name", "result")
    reads = writes = acquires = releases = True

    def __init__(self, target: Cell[T], change: Callable[[T], T], verb: str) -> None:
        self.target = target
        self.change = change
        self.name = verb

    def perform(self, thread: Thread) -> T:
        cell = self.target
        old = cell.v
        self.result = cell.v = self.change(old)
        if cell.watchers is not None:
            cell.notify()
        return old

    def __repr__(self) -> str:
        return f"{self.name} {self.target!s}"


class WaitUntil(CellAccess[T]):
    """A marked read that blocks until the word satisfies a condition."""

    __slots__ = ("condition",)
    verb = "wait until"
    reads = acquires = True

    def __init__(self, target: Cell[T], condition: Callable[[T], bool]) -> None:
        self.target = target
        self.condition = condition

    def perform(self, thread: Thread) -> Any:
        cell = self.target
        if self.condition(cell.v):
            return cell.v
        if cell.watchers is None:
            cell.watchers = []
        cell.watchers.append((thread, self.condition))
        return BLOCKED

    def held_up(self) -> bool:
        return not self.condition(self.target.v)


class Resume(Access):
    """The step in which a thread that was woken goes on, with the value it was given."""

    __slots__ = ("given",)
    verb = "resume"

    def __init__(self, target: Any, given: Any = None) -> None:
        self.target = target
        self.given = given

    def perform(self, thread: Thread) -> Any:
        return self.given


class UseAfterFree(Exception):
    """A step touched a word of freed memory. Args: the cell's name, the kind of finding."""


class FreedCell(Cell[Any]):
    """What a cell of freed memory becomes: any access to it is a finding.

    A cell is freed by `free_cell`, which changes its class, so that a living cell pays nothing for the check.
    """

    __slots__ = ()

    def _touched(self) -> Any:
        raise UseAfterFree(self.name, "uaf-object")

    v = property(lambda self: self._touched(), lambda self, _value: self._touched())

    def peek(self) -> Any:
        """Freed memory shows nothing to observers."""
        return None


def free_cell(cell: Cell[Any]) -> None:
    """Free the word: from now on every access to it raises `UseAfterFree`, which the kernel turns into a finding."""
    note(cell.name, WRITE)
    cell.__class__ = FreedCell


__all__ = [
    "BLOCKED",
    "TIMED_OUT",
    "Access",
    "Blocked",
    "Cell",
    "CellAccess",
    "Resume",
    "Steps",
    "TimedOut",
    "UseAfterFree",
    "free_cell",
]
