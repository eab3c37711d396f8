"""The same search, a whole level at a time, with numpy: for worlds of millions of states.

A state is one number below 2^63 in mixed radix: a digit for every component, as large as the component has known values. All
states of a level that have one thread at one local state take that step together: their digits that the step touches make an
index, what to add is looked up by it. New states are sorted, made unique, and looked up among the old ones, which are kept in a
few sorted runs. No state remembers where it came from; a path is found by going through the levels once more.

Locks that nobody ever takes for write are no digits: who is inside follows from where the threads stand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.dependence import WRITE

if TYPE_CHECKING:
    from sim.states.automata import Automata, Local, Outcome

States = NDArray[np.int64]

_BLOCKED = np.iinfo(np.int64).max
_UNKNOWN = _BLOCKED - 1
_FINDING = _BLOCKED - 2
BEAM = 1000
"""States of a level, about, that `learn` goes on from."""

_WIDEST = 1 << 62
"""States are numbers below this."""

_TABLE_MAX = 1 << 20
"""Entries of one step's table; a step that touches more combinations of values makes the world unfit for this search."""


class TooWide(Exception):
    """A state does not fit into 63 bits, or a step touches too much at once."""


class Grown(Exception):
    """A component has more values than it has room for."""


class Digits:
    """States as numbers in mixed radix, and the tables of all steps."""

    def __init__(self, automata: Automata) -> None:
        self.automata = automata
        self.threads = len(automata.names)
        sizes = [len(known) for known in automata.locals] + [len(word.known) for word in automata.words]
        written = {
            component
            for known in automata.locals
            for local in known
            for component, mode in zip(local.words, local.modes, strict=True)
            if mode == WRITE
        }
        self.free = {c for c in automata.lock_components if c not in written}
        """Locks that are only ever taken shared."""
        self.sizes = _with_room([1 if c in self.free else size for c, size in enumerate(sizes)], self.free)
        if any(size >= 1 << 16 for size in self.sizes[: self.threads]):
            raise TooWide
        self.strides = [prod(self.sizes[:component]) for component in range(len(sizes))]
        self.tables: list[dict[int, States]] = [{} for _ in range(self.threads)]
        self.first = self.pack(automata.first)

    def pack(self, state: tuple[int, ...]) -> int:
        """One number for a state."""
        return sum(
            digit * stride
            for c, (digit, stride) in enumerate(zip(state, self.strides, strict=True))
            if c not in self.free
        )

    def unpack(self, state: int) -> tuple[int, ...]:
        """The number of every component's value."""
        digits = [state // stride % size for stride, size in zip(self.strides, self.sizes, strict=True)]
        for component in self.free:
            digits[component] = self.automata.lock_state(component, digits[: self.threads])
        return tuple(digits)

    def digit(self, states: States, component: int) -> States:
        """One digit of each state; two divisions, because numpy has no fast remainder."""
        above = states // self.strides[component]
        size = self.sizes[component]
        return above - above // size * size if component + 1 < len(self.sizes) else above

    def words(self, local: Local) -> list[int]:
        """The components that a step's table is indexed by."""
        return [component for component in local.words if component not in self.free]

    def step(self, local: Local, states: States) -> States:
        """What to add to each of these states, in which the thread stands at `local`; or a mark."""
        words = self.words(local)
        table = self.tables[local.thread].get(local.index)
        if table is None:
            size = prod(self.sizes[component] for component in words)
            if size > _TABLE_MAX:
                raise TooWide
            table = self.tables[local.thread][local.index] = np.full(size, _UNKNOWN, np.int64)
            if local.ended:
                table[:] = _BLOCKED
        index = self.index(local, states)
        steps = table[index]
        if (steps == _UNKNOWN).any():
            for unknown in np.unique(index[steps == _UNKNOWN]).tolist():
                table[unknown] = self._learn(local, words, unknown)
            steps = table[index]
        return steps

    def index(self, local: Local, states: States) -> States:
        """Where a step's table is looked up: the values of the words it touches, as one number."""
        index = np.zeros(len(states), np.int64)
        scale = 1
        for component in self.words(local):
            index += self.digit(states, component) * scale
            scale *= self.sizes[component]
        return index

    def outcome(self, local: Local, state: int) -> Outcome:
        """What the step of a thread at `local` does in this state."""
        digits = self.unpack(state)
        return self.automata.outcome(local, tuple(digits[component] for component in local.words))

    def _learn(self, local: Local, words: list[int], index: int) -> int:
        digits = {}
        for component in words:
            index, digits[component] = divmod(index, self.sizes[component])
        for component in self.free.intersection(local.words):
            digits[component] = self.automata.lock_of(component, local)
        outcome = self.automata.outcome(local, tuple(digits[component] for component in local.words))
        if outcome.blocked:
            return _BLOCKED
        if outcome.to is None:
            return _FINDING
        if (
            len(self.automata.words) + self.threads != len(self.sizes)
            or outcome.to.index >= self.sizes[local.thread]
        ):
            raise Grown
        step = (outcome.to.index - local.index) * self.strides[local.thread]
        for component, after in zip(local.words, outcome.values, strict=True):
            if component >= self.threads and component not in self.free:
                if after >= self.sizes[component]:
                    raise Grown
                step += (after - digits[component]) * self.strides[component]
        if not self.free.isdisjoint(
            c for c, m in zip(outcome.to.words, outcome.to.modes, strict=True) if m == WRITE
        ):
            raise Grown
        return step


def _with_room(sizes: list[int], free: set[int]) -> list[int]:
    """Sizes with room for values yet unknown, as long as a state fits: large ones first, where a few more cost least."""
    whole = prod(sizes)
    if whole >= _WIDEST:
        raise TooWide
    roomy = list(sizes)
    for component in sorted(range(len(sizes)), key=lambda c: -sizes[c]):
        size = sizes[component]
        more = size + max(1, size // 5)
        if component not in free and whole // size * more < _WIDEST:
            whole = whole // size * more
            roomy[component] = more
    return roomy


def translated(states: States, old: Digits, new: Digits) -> States:
    """The same states, in the same order, where components have room for more values."""
    result = np.zeros(len(states), np.int64)
    for component, size in enumerate(old.sizes):
        if size > 1:
            result += old.digit(states, component) * new.strides[component]
    return result


class Visited:
    """A growing set of states: sorted runs, each at least four times as long as the next."""

    def __init__(self, first: States) -> None:
        self._runs = [first]

    def map(self, change: Callable[[States], States]) -> None:
        """Replace every run by what `change` makes of it, which must be sorted as well."""
        self._runs = [change(run) for run in self._runs]

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def new(self, states: States) -> States:
        """Those of these sorted states that it does not have yet; it has them now."""
        for run in self._runs:
            at = np.searchsorted(run, states)
            at[at == len(run)] = 0
            states = states[run[at] != states]
        if len(states):
            runs = self._runs
            runs.append(states)
            while len(runs) > 1 and len(runs[-2]) < 4 * len(runs[-1]):
                last = runs.pop()
                runs[-1] = np.sort(np.concatenate([runs[-1], last]), kind="stable")
        return states


def learn(automata: Automata) -> None:
    """Go through some states of every level, to know most values before all states are numbered. Raises: TooWide."""
    levels = Levels(automata, lambda _state, _thread: None, lambda _state: None)
    while len(levels.frontier):
        levels.advance()
        levels.frontier = levels.frontier[:: 1 + len(levels.frontier) // BEAM]


class Stopped(Exception):
    """The search was told to end."""


class Levels:
    """All states, level by level.

    Args:
        found: called with a state and the thread whose step makes a finding there.
        ended: called with every state in which nobody can move.
        stop: asked before every thread of a level.
    """

    def __init__(
        self,
        automata: Automata,
        found: Callable[[int, int], Any],
        ended: Callable[[int], Any],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.digits = Digits(automata)
        self.steps = 0
        self.depth = 0
        """Steps from the first state to those of the frontier."""
        self._found = found
        self._ended = ended
        self._stop = stop
        self.frontier: States = np.array([self.digits.first], np.int64)
        self.visited = Visited(self.frontier)

    def advance(self) -> None:
        """One level more. Raises: TooWide. Stopped: in the middle of it."""
        while True:
            try:
                self._advance()
            except Grown:
                self._make_room()
            else:
                return

    def _make_room(self) -> None:
        """Number the states anew. A lock that is now taken for write as well was no digit so far: all begins again."""
        old, new = self.digits, Digits(self.digits.automata)
        self.digits = new
        if new.free != old.free:
            self.frontier = np.array([new.first], np.int64)
            self.visited = Visited(self.frontier)
            self.depth = self.steps = 0
            return
        self.frontier = translated(self.frontier, old, new)
        self.visited.map(lambda states: translated(states, old, new))

    def _advance(self) -> None:
        moved = np.zeros(len(self.frontier), np.bool_)
        reached: list[States] = []
        for thread in range(self.digits.threads):
            if self._stop():
                raise Stopped
            self._step(thread, moved, reached)
        for state in self.frontier[~moved].tolist():
            self._ended(state)
        together = np.concatenate([self.frontier[:0], *reached])
        reached.clear()
        together.sort()
        first = np.ones(len(together), np.bool_)
        np.not_equal(together[1:], together[:-1], out=first[1:])
        self.frontier = self.visited.new(together[first])
        self.steps += len(together)
        self.depth += 1

    def before(self, state: int) -> tuple[int, int]:
        """A state of this level from which one step leads to the given one, and the thread that makes it."""
        for thread in range(self.digits.threads):
            for _, rows, steps in self._ways(thread):
                states = self.frontier[rows]
                at = np.flatnonzero((steps < _FINDING) & (states + steps == state))
                if len(at):
                    return int(states[at[0]]), thread
        raise AssertionError("a state of the next level is reached from this one")

    def _step(self, thread: int, moved: NDArray[np.bool_], reached: list[States]) -> None:
        """Take the step of one thread in all states of the level."""
        for local, rows, steps in self._ways(thread):
            states = self.frontier[rows]
            wrong = steps == _FINDING
            if wrong.any():
                moved[rows[wrong]] = True
                _, each = np.unique(self.digits.index(local, states[wrong]), return_index=True)
                for state in states[wrong][each].tolist():
                    self._found(state, thread)
            able = steps < _FINDING
            moved[rows[able]] = True
            reached.append(states[able] + steps[able])

    def _ways(self, thread: int) -> Iterator[tuple[Local, NDArray[np.int64], States]]:
        """For each local state of a thread: which states of the level have it there, and what its step adds to them."""
        digits, frontier = self.digits, self.frontier
        at = digits.digit(frontier, thread).astype(np.uint16)
        order = np.argsort(at, kind="stable")
        bounds = [0, *np.bincount(at, minlength=digits.sizes[thread]).cumsum().tolist()]
        for index in range(len(digits.automata.locals[thread])):
            rows = order[bounds[index] : bounds[index + 1]]
            if len(rows):
                local = digits.automata.locals[thread][index]
                yield local, rows, digits.step(local, frontier[rows])
