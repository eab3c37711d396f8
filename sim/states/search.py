"""The search itself: breadth first over states packed into integers.

A state is one integer with a field for every component; a step replaces some fields, so it is one addition, and what to add is
looked up by the fields that the step touches. Every state remembers the one it was first reached from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sim.states.automata import Automata, Local, Outcome
from sim.states.judge import Judge
from sim.states.reduction import Reduction
from sim.states.result import Limits, Path, Result

if TYPE_CHECKING:
    from sim.kernel import Kernel

WALKS = 200
"""Random walks before the first search, so that it knows most local states from its start."""

WALK_STEPS = 400

ROOM_FOR_LOCALS = 7
ROOM_FOR_VALUES = 3
"""Bits of a field at least: a field that turns out to be too small means to begin again."""

FEW = 60_000
"""States up to which a search takes every step of every state."""

FIRST_CHECK = 2000
"""States after which a round looks whether its plan still holds; then whenever they have doubled, and at its end."""

BLOCK = 4096
"""States after which a round asks whether it has to end."""

Step = int | Outcome | None
"""What to add to a state; or the finding that is made instead; or nothing, because the thread has to wait."""


class Outgrown(Exception):
    """What this round rests on has grown: a field of the packed state is too small, or a thread may do more than was known."""


class TooMany(Exception):
    """There are more states than a search without a plan should look at."""


class Tables:
    """The steps of all threads over packed states."""

    def __init__(self, automata: Automata) -> None:
        self.automata = automata
        sizes = [len(known) for known in automata.locals] + [len(word.known) for word in automata.words]
        room = [ROOM_FOR_LOCALS] * len(automata.locals) + [ROOM_FOR_VALUES] * len(automata.words)
        self.widths = [max(size.bit_length() + 1, least) for size, least in zip(sizes, room, strict=True)]
        self.shifts = [sum(self.widths[:component]) for component in range(len(sizes))]
        self.masks = [(1 << width) - 1 for width in self.widths]
        self.threads = len(automata.names)
        self.rows: list[list[tuple[int, dict[int, Step]]]] = [[] for _ in automata.names]
        """For each thread and local state: the fields its step looks at, and what was looked up so far."""
        self.where = (1 << self.shifts[self.threads]) - 1 if len(sizes) > self.threads else -1
        """The fields of the threads' local states."""
        self.first = self.pack(automata.first)
        for thread in range(self.threads):
            self._add_rows(thread)

    def pack(self, state: tuple[int, ...]) -> int:
        """One integer for a state."""
        return sum(number << shift for number, shift in zip(state, self.shifts, strict=True))

    def unpack(self, state: int) -> tuple[int, ...]:
        """The number of every component's value."""
        return tuple([state >> shift & mask for shift, mask in zip(self.shifts, self.masks, strict=True)])

    def at(self, state: int) -> list[int]:
        """The local state of every thread."""
        return [state >> self.shifts[t] & self.masks[t] for t in range(self.threads)]

    def _add_rows(self, thread: int) -> None:
        rows = self.rows[thread]
        for local in self.automata.locals[thread][len(rows) :]:
            if any(component >= len(self.shifts) for component in local.words):
                raise Outgrown
            fields = sum(self.masks[component] << self.shifts[component] for component in local.words)
            rows.append((fields, {}))

    def step(self, state: int, thread: int) -> Step:
        """What a thread's step does in a state. Raises: Outgrown."""
        local = self.automata.locals[thread][state >> self.shifts[thread] & self.masks[thread]]
        fields, known = self.rows[thread][local.index]
        key = state & fields
        if key in known:
            return known[key]
        step = known[key] = None if local.ended else self._learn(state, local)
        return step

    def grants(self, state: int, thread: int) -> bool:
        """Whether this step lets a writer in that stood in line."""
        local = self.automata.locals[thread][self.at(state)[thread]]
        return self.automata.outcome(local, self._values(state, local)).granted

    def _values(self, state: int, local: Local) -> tuple[int, ...]:
        """What the words hold that the thread's access touches."""
        return tuple([state >> self.shifts[c] & self.masks[c] for c in local.words])

    def _learn(self, state: int, local: Local) -> Step:
        values = self._values(state, local)
        outcome = self.automata.outcome(local, values)
        if outcome.blocked:
            return None
        if outcome.to is None:
            return outcome
        if (
            len(self.automata.words) + self.threads != len(self.shifts)
            or outcome.to.index > self.masks[local.thread]
        ):
            raise Outgrown
        step = (outcome.to.index - local.index) << self.shifts[local.thread]
        for component, before, after in zip(local.words, values, outcome.values, strict=True):
            if component >= self.threads:
                if after > self.masks[component]:
                    raise Outgrown
                step += (after - before) << self.shifts[component]
        self._add_rows(local.thread)
        return step


class Search:
    """All states of a world.

    Args:
        fill: the world.
        reduce: leave out steps that commute with everything others may still do. None: where there are many states, because
            finding out what may be left out takes longer than looking at a few.
    Raises: Misfit: the world cannot be put into tables.
    """

    def __init__(
        self, fill: Callable[[Kernel], None], limits: Limits | None = None, *, reduce: bool | None = None
    ) -> None:
        self.automata = Automata(fill)
        self.judge = Judge(fill, self.automata)
        self._limits = limits or Limits()
        self._reduce = reduce

    def run(self) -> Result:
        """Search, again and again until nothing turns up that the search did not know of when it began."""
        if self.automata.first_found is not None:
            return Result(paths=[[]])
        plan: Reduction | None = None
        rounds = 0
        many = False
        while True:
            rounds += 1
            try:
                if self._reduce or (self._reduce is None and many):
                    if plan is None:
                        _walk(Tables(self.automata))
                    plan = Reduction(self.automata)
                round_ = _Round(Tables(self.automata), self.judge, self._limits, plan)
                result = round_.run(FEW if plan is None and self._reduce is None else None)
            except TooMany:
                many = True
                wide = self._by_levels()
                if wide is None:
                    continue
                result = wide
            except Outgrown:
                continue
            result.rounds = rounds
            result.met |= self.automata.met
            self.automata.vouch()
            return result

    def _by_levels(self) -> Result | None:
        """The same search with numpy, if there is numpy and the world is one for it."""
        if self.automata.looked_for or find_spec("numpy") is None:
            return None
        from sim.states import wide  # noqa: PLC0415 - takes as long as a small search

        return wide.search(self.automata, self.judge, self._limits)


def _walk(tables: Tables) -> None:
    """Learn most of the automata by a few random walks."""
    draw = 1
    for _ in range(WALKS):
        state = tables.first
        for _ in range(WALK_STEPS):
            steps = [step for t in range(tables.threads) if isinstance(step := tables.step(state, t), int)]
            if not steps:
                break
            draw = draw * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
            state += steps[(draw >> 33) % len(steps)]


class _Round:
    """One search with one set of tables, and one plan of what to leave out."""

    def __init__(self, tables: Tables, judge: Judge, limits: Limits, plan: Reduction | None) -> None:
        self.result = Result()
        self._tables = tables
        self._automata = tables.automata
        self._judge = judge
        self._limits = limits
        self._plan = plan
        self._known = self._automata.experiments
        """How many experiments had been made when the plan was last compared with what is known."""
        self._next_check = FIRST_CHECK
        self._groups: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._came_from: dict[int, int] = {tables.first: -1}
        self._bad: set[int] = set()
        """States that break an `always`: nothing is looked at behind them."""
        self._found: set[object] = set()
        self._watched = bool(judge.always or judge.sometimes)

    def run(self, few: int | None = None) -> Result:
        """Go through the states, level by level. Raises: Outgrown. TooMany: more than `few`."""
        result, limits, tables = self.result, self._limits, self._tables
        frontier = [tables.first]
        if self._watched and self._breaks(tables.first):
            frontier = []
        while frontier:
            if limits.states is not None and len(self._came_from) > limits.states:
                result.limited = True
                break
            if few is not None and len(self._came_from) > few:
                raise TooMany
            level, frontier = frontier, []
            for begin in range(0, len(level), BLOCK):
                if limits.stop():
                    result.limited = True
                    break
                frontier += self._expand(level[begin : begin + BLOCK])
            if result.limited:
                break
            if result.paths and limits.stop_at_first:
                break
            if len(self._came_from) >= self._next_check or not frontier:
                self._next_check = 2 * len(self._came_from)
                self._compare()
        result.states = len(self._came_from)
        return result

    def _compare(self) -> None:
        """Raises: Outgrown: threads may do more than the plan knew of."""
        if self._plan is not None and self._known != self._automata.experiments:
            self._known = self._automata.experiments
            if self._plan != Reduction(self._automata):
                raise Outgrown

    def _expand(self, frontier: list[int]) -> list[int]:
        """The new states that one step leads to."""
        tables, came_from, bad, watched = self._tables, self._came_from, self._bad, self._watched
        rows, shifts, masks = tables.rows, tables.shifts, tables.masks
        following: list[int] = []
        steps = 0
        for state in frontier:
            moved = broken = False
            for group in self._choices(state):
                for t in group:
                    fields, table = rows[t][state >> shifts[t] & masks[t]]
                    step = table.get(state & fields, 0)
                    if step == 0:
                        step = tables.step(state, t)
                    if step is None:
                        continue
                    if type(step) is not int:
                        broken = True
                        self._note(state, t, step)
                        continue
                    steps += 1
                    after = state + step
                    if after not in came_from:
                        came_from[after] = state
                        if watched and self._breaks(after):
                            bad.add(after)
                        else:
                            following.append(after)
                    if after in bad:
                        broken = True
                    else:
                        moved = True
                if moved and not broken:  # what ends an execution hides what others would still do
                    break
            if not moved and not broken:
                self._end(state)
        self.result.steps += steps
        return following

    def _choices(self, state: int) -> tuple[tuple[int, ...], ...]:
        """The sets of threads that are enough here, the best first."""
        at = state & self._tables.where
        known = self._groups.get(at)
        if known is None:
            everybody = (tuple(range(self._tables.threads)),)
            plan = self._plan
            known = self._groups[at] = everybody if plan is None else plan.groups(self._tables.at(state))
        return known

    # What a state or a step shows.

    def _note(self, state: int, thread: int, step: Step) -> None:
        """A step makes a finding."""
        assert isinstance(step, Outcome)
        assert step.found is not None
        what = (*step.found.args, thread, self._tables.at(state)[thread])
        if what not in self._found:
            self._found.add(what)
            self.result.paths.append([*self._path(state), (thread, False)])

    def _breaks(self, state: int) -> bool:
        """Whether a state breaks an `always`; notes what it meets."""
        judge, met = self._judge, self.result.met
        values = self._tables.unpack(state)
        broken = judge.broken(judge.always, values)
        if broken is not None:
            self._show(broken, state)
            return True
        met.update(q.text for q in judge.sometimes if q.text not in met and judge.holds(q, values))
        return False

    def _end(self, state: int) -> None:
        """Nobody can move: all threads have ended, or it is a deadlock."""
        self.result.ends += 1
        wrong = self._judge.at_rest(self._tables.unpack(state))
        if wrong is not None:
            self._show(wrong, state)
        elif not self.result.sample:
            self.result.sample = self._path(state)

    def _show(self, what: object, state: int) -> None:
        """Keep the way to a state that shows something, if nothing showed it before."""
        if what not in self._found:
            self._found.add(what)
            self.result.paths.append(self._path(state))

    def _path(self, state: int) -> Path:
        return list(self._back(state))[::-1]

    def _back(self, state: int) -> Iterator[tuple[int, bool]]:
        tables = self._tables
        while (before := self._came_from[state]) >= 0:
            thread = next(t for t in range(tables.threads) if tables.step(before, t) == state - before)
            yield thread, tables.grants(before, thread)
            state = before
