"""Searching by whole levels (`sim.states.frontier`), and the ways to what it found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.states.frontier import Levels, States, Stopped, TooWide, learn
from sim.states.result import Limits, Path, Result

if TYPE_CHECKING:
    from sim.states.automata import Automata
    from sim.states.judge import Judge

Shown = tuple[int, tuple[int, ...], int]
"""The level of a state, the state, and the thread whose step makes the finding, or -1 for the state itself."""


def search(automata: Automata, judge: Judge, limits: Limits) -> Result | None:
    """All states of a world, or None if they are too wide for this kind of search."""
    try:
        learn(automata)
        return _Wide(automata, judge, limits).run()
    except TooWide:
        return None


class _Wide:
    """One search."""

    def __init__(self, automata: Automata, judge: Judge, limits: Limits) -> None:
        self._automata = automata
        self._judge = judge
        self._limits = limits
        self._shown: dict[object, Shown] = {}
        self._ends = 0
        self._levels = Levels(automata, self._found, self._ended, limits.stop)

    def run(self) -> Result:
        """Search, then find the ways. Raises: TooWide."""
        levels, limits = self._levels, self._limits
        limited = False
        while len(levels.frontier) and not (self._shown and limits.stop_at_first):
            if limits.states is not None and len(levels.visited) > limits.states:
                limited = True
                break
            try:
                levels.advance()
            except Stopped:
                limited = True
                break
        result = Result(len(levels.visited), levels.steps, self._ends, limited)
        ways = _Ways(self._automata, max([depth for depth, _, _ in self._shown.values()], default=0))
        result.paths = [ways.to(shown) for shown in self._shown.values()]
        return result

    def _found(self, state: int, thread: int) -> None:
        digits = self._levels.digits
        values = digits.unpack(state)
        found = digits.outcome(self._automata.locals[thread][values[thread]], state).found
        assert found is not None
        self._shown.setdefault((*found.args, thread, values[thread]), (self._levels.depth, values, thread))

    def _ended(self, state: int) -> None:
        self._ends += 1
        values = self._levels.digits.unpack(state)
        wrong = self._judge.at_rest(values)
        if wrong is not None:
            self._shown.setdefault(wrong, (self._levels.depth, values, -1))


class _Ways:
    """The levels once more, up to a depth, and kept: no state remembers where it came from."""

    def __init__(self, automata: Automata, depth: int) -> None:
        self._automata = automata
        self._levels = Levels(automata, lambda _state, _thread: None, lambda _state: None)
        self._kept: list[States] = []
        for _ in range(depth):
            self._kept.append(self._levels.frontier)
            self._levels.advance()

    def to(self, shown: Shown) -> Path:
        """A shortest way to what was shown."""
        depth, values, thread = shown
        levels = self._levels
        digits = levels.digits
        state = digits.pack(values)
        path: Path = [(thread, False)] if thread >= 0 else []
        for level in reversed(self._kept[:depth]):
            levels.frontier = level
            state, stepped = levels.before(state)
            local = self._automata.locals[stepped][digits.unpack(state)[stepped]]
            path.append((stepped, digits.outcome(local, state).granted))
        return path[::-1]
