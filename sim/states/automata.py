"""Threads as automata, learned as the search meets them.

A thread is a function of the values that its accesses brought. So its *local state* is its position (`sim.states.position`)
and its next access, and two histories that lead to one are one local state. A local state knows its access, and the words that access
touches; what the access does to every combination of their values is found out once, by performing it on words that hold
them, and where the thread goes with the value it is given is found out once, by running it. A generator cannot go back: for a
second way out of a local state the thread runs again from its start, with the values of one remembered history.

Waiting is a guard here: an access that would block is not enabled, and happens when it would not. That reaches the same states
as the kernel's lines and wake-ups, because standing in line looks to everybody else like not having come yet, with one
exception that is kept: a writer who waits for readers to leave holds back new readers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sim.access import BLOCKED, Access, Cell
from sim.dependence import ALL, READ, UPDATE, WRITE
from sim.kernel import Join, Kernel
from sim.locks import READ as SHARED
from sim.locks import Acquire, Lock, Release
from sim.signals import Await, Raise, Signal
from sim.states.laboratory import Found, Laboratory, Misfit, unveil, veil
from sim.states.position import Walk, require_readable

if TYPE_CHECKING:
    from sim.thread import Thread

Values = tuple[int, ...]
Holds = tuple[tuple[tuple[int, int], str], ...]
"""The locks a thread is inside of, by key, with the mode."""


_UNSUPPORTED = {"sim.rcu": "RCU", "sim.kernel": "more than threads and words"}
_NOBODY = -1


@dataclass(slots=True)
class Local:
    """A local state of a thread, and what is known of its ways out."""

    thread: int
    index: int
    came_from: tuple[Local, int] | None
    """One history: the local state before, and the number of the value it was given."""
    words: tuple[int, ...] = ()
    """The components its access touches."""
    modes: tuple[int, ...] = ()
    access: Access | None = None
    laboratory: Laboratory | None = None
    holds: Holds = ()
    outcomes: dict[Values, Outcome] = field(default_factory=dict)
    ways: dict[int, Local | Found] = field(default_factory=dict)
    """Where each value (by its number) leads."""
    live: list[Laboratory] = field(default_factory=list)
    """Laboratories whose thread stands here."""
    shape: Hashable = None
    """Its access, as a value that can be compared."""

    @property
    def ended(self) -> bool:
        """Whether its thread has returned."""
        return self.access is None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step does: the new values of the components it touches, and the local state it leads to."""

    values: Values = ()
    to: Local | None = None
    found: Found | None = None
    blocked: bool = False
    granted: bool = False
    """A writer who stood in line goes in: in the kernel this is part of the last reader's step."""


class Domain:
    """The values of one component, by number."""

    __slots__ = ("is_lock", "known", "name", "numbers")

    def __init__(self, name: str, first: Any, *, is_lock: bool) -> None:
        self.name = name
        self.is_lock = is_lock
        self.known: list[Any] = []
        self.numbers: dict[Hashable, int] = {}
        self.number(first)

    def number(self, value: Any) -> int:
        """The number of this value. Raises: Misfit: it can change."""
        walk = Walk({})
        key = walk.of(value)
        if walk.met:
            raise Misfit(f"{self.name} holds an object that can change, or that belongs to the world")
        number = self.numbers.get(key)
        if number is None:
            number = self.numbers[key] = len(self.known)
            self.known.append(value)
        return number


class Automata:
    """All threads of a world, as far as they are known.

    Components are the parts of a global state: first the local state of every thread, then the words.
    """

    def __init__(self, fill: Callable[[Kernel], None]) -> None:
        require_readable()
        self.fill = fill
        self.experiments = 0
        self.met: set[str] = set()
        first = Laboratory(fill)
        self.names = [thread.name for thread in first.threads]
        self.daemons = [thread.daemon for thread in first.threads]
        self.wanted = first.wanted
        self.looked_for = first.looked_for
        self.locals: list[list[Local]] = [[] for _ in self.names]
        self.words: list[Domain] = []
        """The values of the components that are words; component i is `words[i - len(names)]`."""
        self.components: dict[tuple[int, int], int] = {}
        self._by_name: dict[str, tuple[int, int] | None] = {}
        """Words by name; None where two have one."""
        self._given: list[Any] = []
        self._given_numbers: dict[Hashable, int] = {}
        self._positions: list[dict[Hashable, Local]] = [{} for _ in self.names]
        self._spare = [first]
        self._used: dict[int, set[int]] = {}
        self._all: list[Laboratory] = [first]
        for key, word in first.words.items():
            self._component(key, word, first)
        starts = [self._start(thread) for thread in range(len(self.names))]
        self.first_found = next((start for start in starts if isinstance(start, Found)), None)
        self.first = tuple(0 for _ in self.names) + tuple(0 for _ in self.words)

    # Components.

    def _component(self, key: tuple[int, int], word: Any, laboratory: Laboratory) -> int:
        known = self.components.get(key)
        if known is not None:
            return known
        component = self.components[key] = len(self.names) + len(self.words)
        if isinstance(word, Lock):
            value: Any = (_NOBODY, frozenset(), _NOBODY)
        elif isinstance(word, Signal):
            value = word.value
        else:
            value = Cell.__dict__["v"].__get__(word)
        self.words.append(Domain(word.name, value, is_lock=isinstance(word, Lock)))
        if word.name in self._by_name:
            self._by_name[word.name] = None
        else:
            self._by_name[word.name] = key
        return component

    @property
    def lock_components(self) -> list[int]:
        """The components that are locks."""
        words = enumerate(self.words, len(self.names))
        return [component for component, word in words if word.is_lock]

    def lock_of(self, component: int, local: Local) -> int:
        """The number of what a lock that is never taken for write holds, as far as one thread knows."""
        inside = any(key == self._key_of(component) for key, _ in local.holds)
        return self._number(component, (_NOBODY, frozenset([local.thread] if inside else []), _NOBODY))

    def lock_state(self, component: int, at: Sequence[int]) -> int:
        """The number of what such a lock holds when the threads stand at these local states."""
        key = self._key_of(component)
        inside = [
            t for t, local in enumerate(at) if any(key == held for held, _ in self.locals[t][local].holds)
        ]
        return self._number(component, (_NOBODY, frozenset(inside), _NOBODY))

    def value(self, component: int, number: int) -> Any:
        """What a word holds."""
        return self.words[component - len(self.names)].known[number]

    # Accesses.

    def _touched(self, laboratory: Laboratory, access: Access) -> tuple[list[Any], list[int]]:
        """Keys of the words an access touches, and the modes."""
        target = access.target
        key: Any = laboratory.keys.get(id(target))
        if isinstance(access, Join):
            return [key], [READ]
        if isinstance(access, Acquire | Release):
            shared = access.mode is SHARED and target.by_mode
            return [key], [UPDATE if shared else WRITE]
        if isinstance(access, Await) and access.bound_ns is not None:
            raise Misfit(f"a thread waits for {target} with a time-out")
        if isinstance(access, Await | Raise):
            return [key], [WRITE if isinstance(access, Raise) or access.take else READ]
        unsupported = _UNSUPPORTED.get(type(access).__module__)
        if unsupported is not None:
            raise Misfit(f"the world uses {unsupported}")
        keys: list[Any] = []
        modes: list[int] = []
        for name, mode in access.touches():
            if name == ALL:
                raise Misfit(f"{access!r} does not say what it touches")
            if isinstance(target, Cell) and target.name == name:
                word = key
            else:
                own = self._by_name.get(name)
                word = None if own is None else ("word", *own)
            if word is None:
                raise Misfit(f"{access!r} touches {name}, which is not one word of this world")
            if word in keys:
                modes[keys.index(word)] = max(mode, modes[keys.index(word)])
            else:
                keys.append(word)
                modes.append(mode)
        return keys, modes

    # Local states.

    def _start(self, thread: int) -> Local | Found:
        laboratory = self._laboratory(thread)
        return self._arrive(laboratory, thread, None, None, ())

    def _laboratory(self, thread: int) -> Laboratory:
        """One whose thread has not started yet."""
        for laboratory in self._spare:
            used = self._used.setdefault(id(laboratory), set())
            if thread not in used:
                used.add(thread)
                if len(used) == len(self.names):
                    self._spare.remove(laboratory)
                return laboratory
        laboratory = Laboratory(self.fill)
        self._spare.append(laboratory)
        self._all.append(laboratory)
        return self._laboratory(thread)

    def _arrive(
        self,
        laboratory: Laboratory,
        thread: int,
        came_from: tuple[Local, int] | None,
        value: Any,
        holds: Holds,
    ) -> Local | Found:
        """Run a thread to its next access; where it stands then."""
        runner = laboratory.threads[thread]
        try:
            access = self._advance(laboratory, runner, value, holds)
        except Found as found:
            return found
        self.met |= laboratory.reached_texts
        position = (
            laboratory.position(runner)
            if access is not None
            else ("ended", Walk(laboratory.keys).of(runner._value))
        )
        shape = None if access is None else self._shape(laboratory, access)
        local = self._positions[thread].get((position, shape, holds))
        if local is None:
            local = Local(thread, len(self.locals[thread]), came_from)
            self._positions[thread][position, shape, holds] = local
            self.locals[thread].append(local)
            local.access, local.laboratory, local.holds, local.shape = access, laboratory, holds, shape
            if access is not None:
                keys, modes = self._touched(laboratory, access)
                local.words = tuple(self._component_of(key) for key in keys)
                local.modes = tuple(modes)
        if access is not None:
            runner.pending = access
            local.live.append(laboratory)
        return local

    def _advance(self, laboratory: Laboratory, runner: Thread, value: Any, holds: Holds) -> Access | None:
        locks = tuple((laboratory.words[key], mode) for key, mode in holds)
        before = len(laboratory.words)
        access = laboratory.advance(runner, value, locks)
        if len(laboratory.words) != before:
            for key, word in list(laboratory.words.items())[before:]:
                self._component(key, word, laboratory)
        return access

    def _component_of(self, name: tuple[Any, ...]) -> int:
        return name[1] if name[0] == "thread" else self.components[name[1:]]

    def _shape(self, laboratory: Laboratory, access: Access) -> Hashable:
        return Walk(laboratory.keys).of(access)

    # Steps.

    def outcome(self, local: Local, values: Values) -> Outcome:
        """What its access does when the components it touches have these values."""
        known = local.outcomes.get(values)
        if known is None:
            known = local.outcomes[values] = self._experiment(local, values)
        return known

    def _experiment(self, local: Local, values: Values) -> Outcome:
        self.experiments += 1
        access = local.access
        assert access is not None
        holds = local.holds
        granted = False
        if isinstance(access, Join):
            joined = self.locals[local.words[0]][values[0]]
            if not joined.ended:
                return Outcome(blocked=True)
            given: Any = joined.laboratory.threads[joined.thread]._value  # type: ignore[union-attr]
            after = values
        elif isinstance(access, Acquire | Release):
            lock = self.value(local.words[0], values[0])
            key = self._key_of(local.words[0])
            try:
                state, granted = _use_lock(access, lock, local.thread)
            except Found as found:
                return Outcome(found=found)
            if state is None:
                return Outcome(blocked=True)
            after, given = (self._number(local.words[0], state),), None
            if state[2] == local.thread:
                return Outcome(after, local)
            if isinstance(access, Acquire):
                holds = tuple(sorted((*holds, (key, access.mode)), key=repr))
            else:
                holds = tuple(hold for hold in holds if hold[0] != key)
        elif isinstance(access, Await):
            if not self.value(local.words[0], values[0]):
                return Outcome(blocked=True)
            given, after = True, (self._number(local.words[0], not access.take),)
        elif isinstance(access, Raise):
            given, after = None, (self._number(local.words[0], True),)
        else:
            try:
                given, after = self._perform(local, access, values)
            except Found as found:
                return Outcome(found=found)
            if given is BLOCKED:
                if access.writes:
                    raise Misfit(f"{access!r} blocks, and is no await")
                return Outcome(blocked=True)
        to = self._follow(local, given, holds)
        if isinstance(to, Found):
            return Outcome(found=to)
        return Outcome(after, to, granted=granted)

    def _number(self, component: int, value: Any) -> int:
        return self.words[component - len(self.names)].number(value)

    def _key_of(self, component: int) -> tuple[int, int]:
        return list(self.components)[component - len(self.names)]

    def _perform(self, local: Local, access: Access, values: Values) -> tuple[Any, Values]:
        """Do it, on words that hold these values."""
        laboratory = local.laboratory
        assert laboratory is not None
        cells: list[Any] = [laboratory.words[self._key_of(component)] for component in local.words]
        if not all(isinstance(cell, Cell) for cell in cells):
            raise Misfit(f"{access!r} does more to a lock or a signal than locks and signals offer")
        runner = laboratory.current = laboratory.threads[local.thread]
        unveil(cells, [self.value(*pair) for pair in zip(local.words, values, strict=True)])
        try:
            given = access.perform(runner)
        finally:
            after = veil(cells)
            laboratory.current = None
        return given, tuple(
            self._number(component, value) for component, value in zip(local.words, after, strict=True)
        )

    def _follow(self, local: Local, given: Any, holds: Holds) -> Local | Found:
        """Where the thread goes with this value."""
        walk = Walk({})
        key = walk.of(given)
        if walk.met:
            raise Misfit(f"{local.access!r} gives its thread an object that can change")
        number = self._given_numbers.setdefault(key, len(self._given))
        if number == len(self._given):
            self._given.append(given)
        known = local.ways.get(number)
        if known is None:
            laboratory = local.live.pop() if local.live else self._relive(local)
            runner = laboratory.threads[local.thread]
            runner.pending._value = given  # type: ignore[union-attr]
            known = local.ways[number] = self._arrive(laboratory, local.thread, (local, number), given, holds)
        return known

    def _relive(self, local: Local) -> Laboratory:
        """A laboratory whose thread stands at this local state."""
        history: list[tuple[Local, Any]] = []
        step: Local = local
        while step.came_from is not None:
            before, number = step.came_from
            history.append((step, self._given[number]))
            step = before
        laboratory = self._laboratory(local.thread)
        runner = laboratory.threads[local.thread]
        access = self._advance(laboratory, runner, None, ())
        for reached, given in reversed(history):
            assert access is not None
            access._value = given
            access = self._advance(laboratory, runner, given, reached.holds)
        if access is None or self._shape(laboratory, access) != local.shape:
            raise Misfit(f"{runner.name} does not do the same again: the world is not deterministic")
        runner.pending = access
        return laboratory

    def vouch(self) -> None:
        """Look once more at what the tables rest on: second histories go the ways of the first, nothing shared has changed.

        Raises: Misfit.
        """
        for local in [local for known in self.locals for local in known if local.live and local.ways]:
            laboratory = local.live.pop()
            number, known = next(iter(local.ways.items()))
            runner = laboratory.threads[local.thread]
            runner.pending._value = given = self._given[number]  # type: ignore[union-attr]
            holds = known.holds if isinstance(known, Local) else local.holds
            if self._arrive(laboratory, local.thread, (local, number), given, holds) is not known:
                raise Misfit(f"{runner.name} goes two ways from one place: a hidden state")
        for laboratory in self._all:
            laboratory.check_shared()


def _use_lock(
    access: Acquire | Release, lock: tuple[int, frozenset[int], int], thread: int
) -> tuple[tuple[int, frozenset[int], int] | None, bool]:
    """The lock's state after the access, None if it has to wait; and whether a waiting writer goes in.

    A lock is its writer, its readers, and the writer that waits for the readers inside (-1: nobody).
    """
    writer, readers, waiting = lock
    inside = thread == writer or thread in readers
    if isinstance(access, Release):
        if not inside:
            raise Found("lock-rule", f"releases {access.target}")
        if (thread == writer) == (access.mode is SHARED):
            raise Found("lock-rule", f"releases {access.target} in the wrong mode")
        if thread == writer:
            return (_NOBODY, readers, waiting), False
        return (writer, readers - {thread}, waiting), False
    if inside:
        raise Found("lock-rule", f"takes {access.target} again")
    if access.mode is SHARED:
        if writer != _NOBODY or waiting != _NOBODY:
            return None, False
        return (writer, readers | {thread}, waiting), False
    if writer == _NOBODY and not readers and waiting in {_NOBODY, thread}:
        return (thread, readers, _NOBODY), waiting == thread
    if readers and waiting == _NOBODY:
        return (writer, readers, thread), False
    return None, False
