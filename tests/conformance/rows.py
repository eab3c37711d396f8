"""A row of a transition table, tried: every level that it covers, every way to have its conditions, a fresh module each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tdx.module import TDX_1_5_01, OpState, Profile, SeptState
from tdx.module.status import ModuleShutdown
from tests.conformance import (
    keys_entry,
    keys_l2,
    keys_list,
    keys_more,
    keys_more_fields,
    keys_more_migration,
    keys_more_pages,
    keys_more_resume,
    keys_td,
)
from tests.conformance.calling import call, require_modelled
from tests.conformance.calls import CALLS, Call
from tests.conformance.effects import Before
from tests.conformance.judge import Seen, differences, unknown_outputs
from tests.conformance.lock_worlds import NEEDS
from tests.conformance.situation import NotExpressible, Situation
from tests.conformance.table import ALL_LEVELS, LEAF, NO_LEVEL, SHUTDOWN, Row, levels_of
from tests.conformance.vocabulary import Choice, combinations, op_states
from tests.conformance.world import TABLES, World
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, PgLevel

VOCABULARY = (
    keys_td,
    keys_entry,
    keys_l2,
    keys_list,
    keys_more,
    keys_more_fields,
    keys_more_migration,
    keys_more_pages,
    keys_more_resume,
)
"""Importing them is what fills `vocabulary.KEYS`."""
MORE_STATES = (SeptState.FREE, SeptState.PENDING_BLOCKED)
"""What ANY rows are tried with beside the state on which the call succeeds; only where the walk does not look for a leaf."""
TABLE_OF = {SeptState.MAPPED: SeptState.NL_MAPPED, SeptState.BLOCKED: SeptState.NL_BLOCKED}
"""Above 1G there are no pages: the benign entry is a table there."""


MISHAPS = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What Python raises where something was not thought of."""


@dataclass(frozen=True)
class Case:
    """One try of a row."""

    call: Call
    level: PgLevel
    state: SeptState
    op_state: OpState
    choices: tuple[Choice, ...]

    def __str__(self) -> str:
        parts = [self.state.name] if self.call.levels else []
        parts += [f"at {self.level.short}"] if self.call.levels else []
        parts += [f"in {self.op_state.name}", *map(str, self.choices)]
        return " ".join(parts)


@dataclass
class Verdict:
    """What came of a row: it agrees if something was tried and nothing differs."""

    row: Row
    tried: int = 0
    differences: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Why cases could not be had; the row is not expressible if there was none that could."""
    unknown_outputs: list[str] = field(default_factory=list)

    @property
    def is_expressible(self) -> bool:
        """Whether something could be tried."""
        return self.tried > 0

    @property
    def agrees(self) -> bool:
        """Whether all that was tried is as the row says."""
        return self.is_expressible and not self.differences


def judge_row(row: Row, profile: Profile = TDX_1_5_01) -> Verdict:
    """Try a row in every way."""
    verdict = Verdict(row, unknown_outputs=unknown_outputs(row))
    try:
        cases = list(_cases(row))
    except NotExpressible as reason:
        verdict.skipped.append(str(reason))
        return verdict
    for case in cases:
        try:
            found = _try(row, case, profile)
        except NotExpressible as reason:
            verdict.skipped.append(str(reason))
            continue
        verdict.tried += 1
        verdict.differences += [f"{case}: {difference}" for difference in found]
    return verdict


def _cases(row: Row) -> Iterator[Case]:
    """All tries of a row. Raises: NotExpressible."""
    require_modelled(row.seamcall)
    call_ = CALLS.get(row.seamcall)
    if call_ is None:
        raise NotExpressible(f"{row.seamcall}: how it is called is not in calls.py")
    choices = list(combinations(row.terms))
    for first, level in enumerate(_levels(row, call_)):
        for state in _states(row, call_, level, first=first == 0):
            for op_state in op_states(call_, row.terms, state):
                for chosen in choices:
                    yield Case(call_, level, state, op_state, chosen)


def _levels(row: Row, call_: Call) -> tuple[PgLevel, ...]:
    if row.level == NO_LEVEL or not call_.levels:
        return (PG_LEVEL_4K,)
    if row.level in (ALL_LEVELS, LEAF):
        return call_.levels
    levels = levels_of(row.level)
    assert levels is not None  # table.py has seen to it
    return levels


def _states(row: Row, call_: Call, level: PgLevel, *, first: bool) -> list[SeptState]:
    if row.state is not None:
        if level > PG_LEVEL_4K and row.state in TABLES and call_.gpa == "gpa":
            return []  # a walk for a leaf goes on below
        return [row.state]
    benign = call_.benign
    if level > PG_LEVEL_1G:
        benign = TABLE_OF.get(benign, benign)
    more = MORE_STATES if first and call_.gpa == "page_info" else ()
    return [benign, *(state for state in more if state is not benign)]


def _try(row: Row, case: Case, profile: Profile) -> list[str]:
    want = _situation(row, case, profile)
    world = _world(case, want)
    before = Before.of(world)
    try:
        outcome = call(world)
    except (ModuleShutdown, *MISHAPS) as error:
        if want.level > PG_LEVEL_1G and want.state.is_leaf:
            raise NotExpressible(
                f"no page is as large as {want.level.short}: the PAMT has no entry for it"
            ) from None
        if isinstance(error, ModuleShutdown) and row.status == SHUTDOWN:
            return []
        return [f"status {row.expected}, but the model raised {type(error).__name__}: {error}"]
    return list(differences(Seen(row, world, outcome, before)))


def _world(case: Case, want: Situation) -> World:
    """The case's world, all its conditions met. Raises: NotExpressible, also for what nobody has thought of."""
    try:
        for choice in case.choices:
            choice.prepare(want)
        world = World(want)
        needs = NEEDS.get(case.call.name)
        if needs is not None:
            needs(world)
        for act in want.done:
            act(world)
    except MISHAPS as error:
        raise NotExpressible(f"{case}: it cannot be built: {type(error).__name__} {error}") from None
    return world


def _situation(row: Row, case: Case, profile: Profile) -> Situation:
    """The benign situation for a case; its choices make it particular."""
    call_ = case.call
    want = Situation(call_, case.level, case.state, case.op_state, profile)
    want.lifecycle = call_.lifecycle
    want.debug = call_.name in ("TDH.MEM.RD", "TDH.MEM.WR")
    if call_.name == "TDH.MEM.PAGE.PROMOTE" and case.state in TABLES:
        want.children = "MAPPED"
    if "accept counter cleared" in row.note and case.level == PG_LEVEL_2M:
        want.accept_counter = 5
    return want
