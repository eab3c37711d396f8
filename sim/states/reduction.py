"""Which threads a state must be left by: persistent sets, from what every thread may still do.

A set of threads is enough if no other thread, now or ever after, does anything that depends on their next steps: whatever the
others do can be done after those steps just as well. What a thread may still do is read off its automaton: the accesses of all
local states that can be reached from where it stands. The automata are known only as far as the search has come; so the search
is made again until they have not grown since it began, and the last one rests on footprints that contain every step it took.
That is sound because a step that is left out has its local state in the automata nonetheless: everything before it is taken.

Steps that go round a loop of their thread could put the others off for ever. One local state of every loop is therefore a
*stop*: a step from a stop is taken only where all threads' steps are.
Source: Godefroid, "Partial-order methods", 1996 (persistent sets, section 4.5's conflicts); Kurshan, Levin, Minea, Peled, Yenigün,
"Static partial order reduction", TACAS 1998 (the stops).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sim.dependence import READ, WRITE
from sim.states.automata import Local

if TYPE_CHECKING:
    from sim.states.automata import Automata

Footprint = tuple[int, int, int]
"""Components that are read, updated, written: one bit each."""

_PROPERTY = 0
"""The bit of what properties see; component i has bit i + 1."""


class Reduction:
    """The footprints of all local states known now, and the threads to take."""

    def __init__(self, automata: Automata) -> None:
        self._next = [
            [_footprint(local, automata.looked_for) for local in known] for known in automata.locals
        ]
        self._ended = [{local.index for local in known if local.ended} for known in automata.locals]
        self._rivals: list[dict[int, list[int]]] = [{} for _ in automata.names]
        """For each local state, the local states of every thread, as bits, whose futures depend on its step."""
        self._future: list[list[Footprint]] = []
        self._stops: list[frozenset[int]] = []
        self._joined = {
            local.words[0]
            for known in automata.locals
            for local in known
            if local.words and local.words[0] < len(automata.names)
        }
        for thread, known in enumerate(automata.locals):
            ways = [
                sorted({way.index for way in local.ways.values() if isinstance(way, Local)})
                for local in known
            ]
            if thread in self._joined:
                end = 1 << thread + 1
                self._next[thread] = [
                    print_ if known[i].ended else (print_[0], print_[1], print_[2] | end)
                    for i, print_ in enumerate(self._next[thread])
                ]
            self._future.append(_futures(self._next[thread], ways))
            self._stops.append(_loops(ways))

    def __eq__(self, other: object) -> bool:
        """Whether both rest on the same knowledge."""
        return isinstance(other, Reduction) and (self._next, self._future, self._stops) == (
            other._next,
            other._future,
            other._stops,
        )

    __hash__ = None  # type: ignore[assignment]

    def groups(self, at: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """For threads standing at these local states, the sets of threads that are enough, small ones first.

        One is enough in a state where some thread of it can move; the last one is all threads.
        """
        alive = [t for t, local in enumerate(at) if local not in self._ended[t]]
        everybody = tuple(alive)
        if any(at[t] >= len(self._next[t]) for t in alive):
            return (everybody,)
        needs = {t: self._needs(t, at, alive) for t in alive}
        stops = sum([1 << t for t in alive if at[t] in self._stops[t]])
        found = set()
        for seed in alive:
            group = todo = 1 << seed
            while todo and not group & stops:
                thread = todo.bit_length() - 1
                todo ^= 1 << thread
                more = needs[thread] & ~group
                group |= more
                todo |= more
            if not group & stops:
                found.add(tuple([t for t in alive if group >> t & 1]))
        return (*sorted(found - {everybody}, key=lambda group: (len(group), group)), everybody)

    def _needs(self, thread: int, at: Sequence[int], alive: list[int]) -> int:
        """The other threads, as bits, that may still do what depends on this one's next step."""
        rivals = self._rivals[thread].get(at[thread])
        if rivals is None:
            print_ = self._next[thread][at[thread]]
            rivals = [
                sum([1 << local for local, future in enumerate(futures) if _conflict(print_, future)])
                for futures in self._future
            ]
            self._rivals[thread][at[thread]] = rivals
        return sum([1 << u for u in alive if u != thread and rivals[u] >> at[u] & 1])


def _footprint(local: Local, looked_for: bool) -> Footprint:
    read = update = write = 0
    for component, mode in zip(local.words, local.modes, strict=True):
        bit = 1 << component + 1
        if mode == READ:
            read |= bit
        elif mode == WRITE:
            write |= bit
        else:
            update |= bit
    if looked_for and write | update:
        write |= 1 << _PROPERTY
    return read, update, write


def _conflict(one: Footprint, two: Footprint) -> bool:
    read, update, write = one
    return bool(write & (two[0] | two[1] | two[2]) or read & (two[1] | two[2]) or update & (two[0] | two[2]))


def _futures(prints: list[Footprint], ways: list[list[int]]) -> list[Footprint]:
    """The union of the footprints of everything that can be reached."""
    futures = list(prints)
    changed = True
    while changed:
        changed = False
        for local in reversed(range(len(ways))):
            read, update, write = futures[local]
            for way in ways[local]:
                more = futures[way]
                read, update, write = read | more[0], update | more[1], write | more[2]
            if (read, update, write) != futures[local]:
                futures[local] = read, update, write
                changed = True
    return futures


def _loops(ways: list[list[int]]) -> frozenset[int]:
    """One local state at least of every loop: where a depth-first walk comes back to what it has not finished."""
    heads = set()
    state = dict.fromkeys(range(len(ways)), 0)
    for root in range(len(ways)):
        if state[root]:
            continue
        state[root] = 1
        stack = [(root, iter(ways[root]))]
        while stack:
            local, rest = stack[-1]
            for way in rest:
                if state[way] == 1:
                    heads.add(way)
                elif not state[way]:
                    state[way] = 1
                    stack.append((way, iter(ways[way])))
                    break
            else:
                state[local] = 2
                stack.pop()
    return frozenset(heads)
