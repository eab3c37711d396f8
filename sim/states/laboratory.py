"""Worlds to experiment on: one thread of them runs at a time, on words that hold what the experiment says.

A `Laboratory` is a kernel that notices whatever a table of its threads could not contain, and refuses: a look at a word that is
no access, a clock, a random stream, a thread made on the fly, an event of SimPy's, a change of something that threads share.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from sim.access import Access, Cell
from sim.dependence import Notes
from sim.kernel import Kernel
from sim.locks import Lock, Mutex, RwLock, SpinLock
from sim.rcu import Rcu
from sim.signals import Signal
from sim.states.position import Names, Opaque, Walk, globals_written
from sim.streams import Stream
from sim.thread import Thread

Word = Cell[Any] | Lock | Signal


class Misfit(ValueError):
    """The world cannot be put into tables. Args: one sentence that says why."""


class Found(Exception):
    """A step made a finding. Args: its kind and title."""


class _Veiled(Cell[Any]):
    """A word nobody may look at: an experiment unveils those that its access declares."""

    __slots__ = ()

    def _looked_at(self) -> Any:
        raise Misfit(f"a thread or an access uses {self.name} without saying so")

    v = property(lambda self: self._looked_at(), lambda self, _value: self._looked_at())


class _Counters(dict[str, int]):
    """Counters are for people; a model that reads them keeps state in them."""

    def __getitem__(self, name: str) -> int:
        raise Misfit(f"the world reads the counter {name!r}")


class Laboratory(Kernel):
    """A world whose threads are taken one step at a time, by hand."""

    def __init__(self, fill: Callable[[Kernel], None]) -> None:
        super().__init__()
        self.counters = _Counters()
        self.words: dict[tuple[int, int], Word] = {}
        """Words by who made them (a thread's index, or -1) and which of its words it is."""
        self.keys: Names = {}
        self.reached_texts: set[str] = set()
        self.looked_for = False
        """Whether a property is looked at after every step."""
        self.made: dict[int, int] = {}
        """How many words each thread has made; -1 is the world itself."""
        self._filled = False
        fill(self)
        self._filled = True
        if self._checks or self._judges or self._blockers:
            raise Misfit("the world has checkers, which see steps and not states")
        if self._others:
            raise Misfit("the world uses events of SimPy")
        for thread in self.threads:
            self.keys[id(thread)] = ("thread", thread.index)
        self.keys[id(self)] = "kernel"
        self._shared = self._find_shared()
        self._named = dict(self.keys)
        self._shared_position = self._position_of_shared()
        for number, value in enumerate(
            self._shared
        ):  # a position need not look into what must not change anyway
            self.keys[id(value)] = ("shared", number)
        for word in self.words.values():
            if isinstance(word, Cell):
                word.__class__ = _Veiled

    # What a world is made of.

    def _register(self, word: Any) -> Any:
        maker = self.current.index if self._filled and self.current is not None else -1
        number = self.made.get(maker, 0)
        self.made[maker] = number + 1
        self.words[maker, number] = word
        self.keys[id(word)] = ("word", maker, number)
        return word

    def cell(self, name: str, value: Any) -> Cell[Any]:
        return self._register(Cell(name, value))  # type: ignore[no-any-return]

    def rwlock(self, name: str) -> RwLock:
        return self._register(RwLock(self, name))  # type: ignore[no-any-return]

    def spinlock(self, name: str) -> SpinLock:
        return self._register(SpinLock(self, name))  # type: ignore[no-any-return]

    def mutex(self, name: str, kind: str = "") -> Mutex:
        return self._register(Mutex(self, name, kind))  # type: ignore[no-any-return]

    def signal(self, name: str) -> Signal:
        return self._register(Signal(self, name))  # type: ignore[no-any-return]

    def rcu(self) -> Rcu:
        raise Misfit("the world uses RCU")

    def srcu(self, name: str) -> Rcu:
        raise Misfit("the world uses SRCU")

    def stream(self, name: str) -> Stream:
        raise Misfit(f"the world draws random numbers ({name})")

    def thread(self, name: str, *args: Any, **kwargs: Any) -> Thread:
        if self._filled:
            raise Misfit(f"the thread {name} is made on the fly")
        return super().thread(name, *args, **kwargs)

    def always(self, text: str, predicate: Any, kind: str = "unmet") -> None:
        self.looked_for = True
        super().always(text, predicate, kind)

    def sometimes(self, text: str, predicate: Callable[[], bool] | None = None) -> None:
        self.looked_for = self.looked_for or predicate is not None
        super().sometimes(text, predicate)

    # What a model says while it runs.

    @property
    def now_ns(self) -> int:
        raise Misfit("a thread reads the clock")

    def spend(self, ns: int) -> None:
        """Time does not matter where everything may happen at any time."""

    def charge(self, name: str) -> int:
        return 0

    def count(self, name: str, n: int = 1) -> None:
        """Not kept."""

    def record(self, name: str, ns: int) -> None:
        """Not kept."""

    def reached(self, text: str) -> None:
        self.reached_texts.add(text)

    def find(self, kind: str, title: str, **details: Any) -> None:
        raise Found(kind, title)

    # Experiments.

    def advance(self, thread: Thread, value: Any, held: tuple[tuple[Any, str], ...]) -> Access | None:
        """Give the thread what its last access brought, while it holds these locks; its next access, None at its end."""
        self.current = thread
        for word in self.words.values():
            if isinstance(word, Lock):
                word.writer = None
                word.readers = {}
        for lock, mode in held:
            lock._admit(thread, mode)
        before, Notes.taken = Notes.taken, []
        try:
            access = thread.send(value)
            if Notes.taken:
                raise Misfit(f"{thread} looks at {Notes.taken[0][0]} outside an access")
        except StopIteration as stop:
            thread.done = True
            thread._value = stop.value
            return None
        finally:
            Notes.taken = before
            self.current = None
        if not isinstance(access, Access):
            raise Misfit(f"{thread} waits for an event of SimPy")
        return access

    def position(self, thread: Thread) -> Hashable:
        """Where the thread stands."""
        try:
            return (self.made.get(thread.index, 0), Walk(self.keys).of(thread._generator))
        except Opaque as what:
            raise Misfit(f"{thread} holds {what}") from None

    def check_shared(self) -> None:
        """Raises: Misfit: something that threads share, and that is no word, has changed."""
        if self._position_of_shared() != self._shared_position:
            raise Misfit("threads share a Python object that changes and is no word")

    def _find_shared(self) -> list[Any]:
        """Objects that can change and that two threads, or a thread and a property, can reach."""
        roots: list[Any] = [thread._generator for thread in self.threads]
        roots += [predicate for _, _, predicate in self._always + self._at_end]
        roots += list(self._sometimes.values())
        seen: dict[int, Any] = {}
        shared: dict[int, Any] = {}
        for root in roots:
            walk = Walk(self.keys)
            try:
                walk.of(root)
            except Opaque as what:
                raise Misfit(f"the world holds {what}") from None
            for key, (_, value) in walk.met.items():
                (shared if key in seen else seen)[key] = value
        for thread in self.threads:
            code = thread._generator.gi_frame.f_code  # type: ignore[attr-defined]
            name = globals_written(code)
            if name is not None:
                raise Misfit(f"{thread} assigns the global {name}")
        return list(shared.values())

    def _position_of_shared(self) -> Hashable:
        walk = Walk(self._named)
        return tuple(map(walk.of, self._shared))


def unveil(cells: list[Cell[Any]], values: list[Any]) -> None:
    """Let an access see these words."""
    for cell, value in zip(cells, values, strict=True):
        cell.__class__ = Cell
        cell.v = value
        cell.watchers = None


def veil(cells: list[Cell[Any]]) -> list[Any]:
    """Hide them again; what they hold now."""
    values = []
    for cell in cells:
        values.append(cell.v)
        cell.__class__ = _Veiled
    return values
