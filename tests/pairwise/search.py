"""One pair of calls: every interleaving in every state that the two can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sim import Kernel, Steps, explore
from tdx.module.profile import TDX_1_5_01, Profile
from tdx.module.sept_states import IMPORT_OP_STATES, TRACKED_OP_STATES
from tdx.module.septe import SeptState
from tdx.module.watch import watch
from tests.pairwise.calls import CALLS, ENTRY, PARENT, Call, Depth
from tests.pairwise.states import TEARDOWN, Age, Guest, State
from tests.pairwise.world import Beyond, World, state_of

EXACT = frozenset(("TDH.MEM.TRACK", "TDH.VP.ENTER"))
"""Calls that tell epochs apart."""
ASKS_FOR_TRACKING = frozenset(
    (
        "TDH.MEM.SEPT.REMOVE",
        "TDH.MEM.PAGE.REMOVE",
        "TDH.MEM.PAGE.RELOCATE",
        "TDH.MEM.PAGE.PROMOTE",
        "TDH.MEM.PAGE.DEMOTE",
        "TDH.MEM.RANGE.UNBLOCK",
    )
)
"""Calls that ask whether what they take away is blocked and tracked, where the op_state demands it."""
ASKS_FOR_IMPORT = frozenset(("TDH.MEM.PAGE.REMOVE",))
"""Calls that do something else while an import is in progress."""


class Outcome(NamedTuple):
    """What one execution came to: what each call returned, and the state after."""

    first: str
    second: str
    after: State | None
    """None is what `State` cannot say: a neighbour was changed."""


@dataclass(slots=True)
class InState:
    """All executions of one pair in one state."""

    state: State
    outcomes: frozenset[Outcome]
    serial: tuple[Outcome, Outcome]
    """What the two orders come to in which one call ends before the other begins: the first call first, the second first."""
    executions: int
    classes: int
    steps: int
    exhausted: bool
    findings: tuple[str, ...]


@dataclass(slots=True)
class PairResult:
    """All of one pair. `states` counts reachable states, `groups` those that the two can tell apart, one of which was searched."""

    first: str
    second: str
    states: int = 0
    groups: int = 0
    executions: int = 0
    classes: int = 0
    steps: int = 0
    exhausted: bool = True
    alone: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    """What each call returns when it is alone in one of the states."""
    changed: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    """What each call returned where it would have returned something else alone."""
    unlike_any_order: dict[tuple[str, str], State] = field(default_factory=dict)
    """Pairs of returned values, none busy, that neither order gives, with the first state where that happened."""
    findings: dict[str, State] = field(default_factory=dict)
    beyond: set[State] = field(default_factory=set)
    """Final states that are not among those that calls reach one by one."""

    def join(self, more: PairResult) -> None:
        """Count in what was found of the same pair in other states."""
        for name in ("states", "groups", "executions", "classes", "steps"):
            setattr(self, name, getattr(self, name) + getattr(more, name))
        self.exhausted &= more.exhausted
        for number in (0, 1):
            self.alone[number].update(more.alone[number])
            self.changed[number].update(more.changed[number])
        self.unlike_any_order = more.unlike_any_order | self.unlike_any_order
        self.findings = more.findings | self.findings
        self.beyond |= more.beyond

    def add(self, found: InState, known: frozenset[State]) -> None:
        """Count one state in."""
        self.groups += 1
        self.executions += found.executions
        self.classes += found.classes
        self.steps += found.steps
        self.exhausted &= found.exhausted
        orders = {(outcome.first, outcome.second) for outcome in found.serial}
        alone = (found.serial[0].first, found.serial[1].second)
        for number, returned in enumerate(alone):
            self.alone[number].add(returned)
        for first, second, after in sorted(found.outcomes, key=str):
            for number, returned in enumerate((first, second)):
                if returned != alone[number]:
                    self.changed[number].add(returned)
            if (first, second) not in orders and not is_busy(first) and not is_busy(second):
                self.unlike_any_order.setdefault((first, second), found.state)
            if after is not None and after not in known:
                self.beyond.add(after)
        for finding in found.findings:
            self.findings.setdefault(finding, found.state)


def is_busy(returned: str) -> bool:
    """Whether the call lost to the other one."""
    return "BUSY" in returned


def search_pair(
    first: Call, second: Call, reached: Iterable[Sequence[State]], profile: Profile = TDX_1_5_01
) -> PairResult:
    """Exhaust a pair.

    Args:
        reached: the reachable states, level by level; a final state that is not among them is `beyond`.
    """
    result = PairResult(first.key, second.key)
    for states in reached:
        known = frozenset(states)
        fitting = [
            state for state in states if first.meets(second) and first.fits(state) and second.fits(state)
        ]
        result.states += len(fitting)
        for state in representatives(fitting, first, second):
            result.add(search_state(first, second, state, profile), known)
    return result


def representatives(states: Iterable[State], first: Call, second: Call) -> Iterator[State]:
    """One state of each group that the two calls cannot tell apart: the first."""
    seen = set()
    for state in states:
        look = looks_like(state, first, second)
        if look not in seen:
            seen.add(look)
            yield state


def looks_like(state: State, first: Call, second: Call) -> tuple[object, ...]:
    """What the two calls can see of a state.

    The op_state: whether tracking is demanded, if they ask; beside that only PAGE.REMOVE (import or not) and the calls of migration
    look at it. Epochs and who is inside: TRACK and VP.ENTER see all of it, others only whether BEPOCH is tracked, if they ask. Below
    the parent: what `Call.looks_below` says; and of a whole table only whether it is free, or can be merged.
    test_search.py holds groups to it.
    """
    names = {first.name, second.name}
    phase: object = state.phase
    if state.phase != TEARDOWN and not (first.migrates or second.migrates):
        tracking = state.op_state in TRACKED_OP_STATES and bool(names & ASKS_FOR_TRACKING)
        importing = state.op_state in IMPORT_OP_STATES and bool(names & ASKS_FOR_IMPORT)
        phase = (tracking, importing)
    if not names & EXACT:
        seen = _tracked if names & (ASKS_FOR_TRACKING | {"TDH.EXPORT.MEM"}) else _no_age
        state = state._replace(
            parent_age=seen(state, state.parent_age),
            entry_age=seen(state, state.entry_age),
            bw_age=seen(state, state.bw_age),
            guest=Guest.OUTSIDE,
        )
    depth = max(first.looks_below, second.looks_below)
    table = _table(state) if first.looks_into_table(PARENT) or second.looks_into_table(PARENT) else None
    if depth < Depth.NEIGHBOURS:
        state = state._replace(rest=None, in_stride=True)
    if depth < Depth.ENTRY:
        state = state._replace(entry=None, entry_age=Age.NONE, bw_age=Age.NONE)
    if not (first.looks_into_table(ENTRY) or second.looks_into_table(ENTRY)):
        state = state._replace(below=None)
    return (phase, table, *state[2:])


def _no_age(_state: State, _age: Age) -> Age:
    return Age.NONE


def _table(state: State) -> str | None:
    """What PROMOTE and SEPT.REMOVE can tell of the parent's table."""
    if state.entry is None:
        return None
    if state.entry is SeptState.FREE and state.rest is SeptState.FREE:
        return "all free"
    return "a run" if state.entry is state.rest and state.in_stride else "neither"


def _tracked(state: State, age: Age) -> Age:
    if age is Age.OLD or (age is Age.PREVIOUS and state.guest is not Guest.PREVIOUS):
        return Age.OLD
    return Age.NONE if age is Age.NONE else Age.NEW


Dress = Callable[[World], None]
"""What a world has beyond its state."""


def as_it_is(_world: World) -> None:
    """Nothing."""


def search_state(
    first: Call, second: Call, state: State, profile: Profile = TDX_1_5_01, dress: Dress = as_it_is
) -> InState:
    """Exhaust a pair in one state."""
    outcomes: set[Outcome] = set()
    current: list[tuple[World, dict[str, str]]] = []
    judged: set[object] = set()

    def world_of(kernel: Kernel) -> None:
        world = World(kernel, state, profile)
        dress(world)
        watch(kernel, world.module, judged)
        returned: dict[str, str] = {}
        for who, call in (("a", first), ("b", second)):
            call.prepare(world, who)
            kernel.thread(who, _noted(call.steps(world, who), who, returned))
        current[:] = [(world, returned)]

    def ended(kernel: Kernel) -> None:
        world, returned = current[0]
        if len(returned) == 2 and not kernel.findings:
            outcomes.add(Outcome(returned["a"], returned["b"], _after(world)))

    report = explore(world_of, strategy="dpor", races=False, after=ended)
    return InState(
        state,
        frozenset(outcomes),
        (
            _in_order(first, second, state, "ab", profile, dress),
            _in_order(first, second, state, "ba", profile, dress),
        ),
        report.executions,
        report.complete,
        report.steps,
        report.proved,
        tuple(sorted(f"{finding.kind}: {finding.title} {finding.details}" for finding in report.findings)),
    )


def _noted(steps: Steps[str], who: str, returned: dict[str, str]) -> Steps[None]:
    returned[who] = yield from steps


def _in_order(first: Call, second: Call, state: State, order: str, profile: Profile, dress: Dress) -> Outcome:
    """One call after the other, both as they were meant before either began."""
    kernel = Kernel()
    world = World(kernel, state, profile)
    dress(world)
    calls = {"a": first, "b": second}
    for who, call in calls.items():
        call.prepare(world, who)
    steps = {who: call.steps(world, who) for who, call in calls.items()}
    returned = {who: kernel.prepare(steps[who]) for who in order}
    return Outcome(returned["a"], returned["b"], _after(world))


def _after(world: World) -> State | None:
    try:
        return state_of(world)
    except Beyond:
        return None


# In a worker of `python -m tests.pairwise`, which imports this file, not that one.

_reached: list[Sequence[State]] = []
"""The reachable states, level by level."""


def learn(reached: Sequence[Sequence[State]]) -> None:
    """Be told which states are reachable, once."""
    _reached[:] = reached


def search_numbered(pair: tuple[int, int]) -> PairResult:
    """Exhaust the pair of these two lines of the table."""
    one, other = pair
    return search_pair(CALLS[one], CALLS[other], _reached)
