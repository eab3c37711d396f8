"""Which states there are: the initial ones, closed under everything that changes them.

One step is one call, made alone in a world that is in the state, or one of the moves that no call of the table makes: the TD's
op_state changes (by FINALIZE and the calls of migration), a vCPU enters and stays, or leaves, the TD is torn down. Each new state
remembers the step that first led to it, so that there is a path of calls to every state: the proof that it can be reached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from sim import Kernel
from tdx.module.sept_states import OpState
from tdx.module.septe import SeptState
from tests.pairwise.calls import CALLS, NEIGHBOUR, PAGE, Call
from tests.pairwise.states import Guest, State, sort_key
from tests.pairwise.world import Beyond, World, state_of
from vcpu.addresses import PgLevel

OP_STATE_MOVES = (
    ("MR.FINALIZE", "INITIALIZED", "RUNNABLE"),
    ("EXPORT.STATE.IMMUTABLE", "RUNNABLE", "LIVE_EXPORT"),
    ("EXPORT.PAUSE", "LIVE_EXPORT", "PAUSED_EXPORT"),
    ("EXPORT.TRACK", "PAUSED_EXPORT", "POST_EXPORT"),
    ("EXPORT.ABORT", "LIVE_EXPORT", "RUNNABLE"),
    ("EXPORT.ABORT", "PAUSED_EXPORT", "RUNNABLE"),
    ("EXPORT.ABORT", "POST_EXPORT", "RUNNABLE"),
    ("IMPORT.STATE.TD", "MEMORY_IMPORT", "STATE_IMPORT"),
    ("IMPORT.TRACK", "STATE_IMPORT", "POST_IMPORT"),
    ("IMPORT.COMMIT", "POST_IMPORT", "LIVE_IMPORT"),
    ("IMPORT.END", "LIVE_IMPORT", "RUNNABLE"),
    ("IMPORT.END", "POST_IMPORT", "RUNNABLE"),
    ("IMPORT.ABORT", "MEMORY_IMPORT", "FAILED_IMPORT"),
)
"""Calls that change the op_state and nothing that a `State` knows, but for PAUSE: it begins an epoch."""


class Step(NamedTuple):
    """How a state was first reached."""

    before: State
    how: str


Path = tuple[str, ...]


class Reach(NamedTuple):
    """The reachable states in a fixed order, and how each is reached."""

    states: tuple[State, ...]
    first: dict[State, Step | None]

    def path(self, state: State) -> Path:
        """The steps to a state, from an initial one."""
        steps: list[str] = []
        step = self.first[state]
        while step is not None:
            steps.append(step.how)
            step = self.first[step.before]
        return tuple(reversed(steps))


def initial(level: PgLevel) -> tuple[State, ...]:
    """A TD that is being built, and one that is being imported: nothing below the parent."""
    return tuple(State(level, phase, SeptState.FREE) for phase in ("INITIALIZED", "MEMORY_IMPORT"))


@cache
def reachable(level: PgLevel, phases: frozenset[str] | None = None) -> Reach:
    """All states of one level; or those that can be reached without leaving these phases."""
    first: dict[State, Step | None] = dict.fromkeys(
        state for state in initial(level) if phases is None or state.phase in phases
    )
    todo = deque(first)
    while todo:
        state = todo.popleft()
        for how, after in steps_from(state):
            if after not in first and (phases is None or after.phase in phases):
                first[after] = Step(state, how)
                todo.append(after)
    return Reach(tuple(sorted(first, key=sort_key)), first)


def steps_from(state: State) -> Iterator[tuple[str, State]]:
    """Everything that one step makes of a state."""
    for call in CALLS:
        if call.at not in (NEIGHBOUR, PAGE) and call.fits(state):
            after = called(state, call)
            if after is not None and after != state:
                yield call.key, after
    for how, move in MOVES:
        world = World(Kernel(), state)
        if move(world):
            yield how, state_of(world)


def called(state: State, call: Call) -> State | None:
    """The state after one call made alone, or None if that is beyond what states tell apart."""
    world = World(Kernel(), state)
    call.prepare(world, "a")
    world.kernel.prepare(call.steps(world, "a"))
    try:
        return state_of(world)
    except Beyond:
        return None


# Moves. Each changes the world, or says that it cannot happen.

Move = Callable[[World], bool]


def _op_state(before: str, after: str) -> Move:
    def move(world: World) -> bool:
        if world.tdcs.op_state is not OpState[before] or world.is_torn_down:
            return False
        if before == "RUNNABLE" and state_of(world).entry in EXPORTED:
            return False  # PREVIOUS_EXPORT_CLEANUP_INCOMPLETE
        pauses = after == "PAUSED_EXPORT"
        if pauses and world.vcpus["guest"].inside:
            return False
        world.tdcs.op_state = OpState[after]
        if pauses:
            world.tdcs.epoch.v = world.tdcs.epoch.v._replace(epoch=world.tdcs.epoch.v.epoch + 1)
        return True

    return move


def _enter(world: World) -> bool:
    vcpu = world.vcpus["guest"]
    if vcpu.inside or world.is_torn_down or world.tdcs.op_state not in RUNS:
        return False
    world.enter(Guest.CURRENT)
    return True


def _leave(world: World) -> bool:
    if not world.vcpus["guest"].inside:
        return False
    world.exit()
    return True


def _tear_down(world: World) -> bool:
    if world.vcpus["guest"].inside or world.is_torn_down:
        return False
    world.tear_down()
    return True


EXPORTED = frozenset(state for state in SeptState if state.is_exported)
RUNS = (OpState.RUNNABLE, OpState.LIVE_EXPORT, OpState.LIVE_IMPORT)
MOVES: tuple[tuple[str, Move], ...] = (
    *((how, _op_state(before, after)) for how, before, after in OP_STATE_MOVES),
    ("VP.ENTER and stay", _enter),
    ("TD exit", _leave),
    ("teardown", _tear_down),
)
