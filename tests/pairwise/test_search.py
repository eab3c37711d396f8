"""Searching pairs: a fixed slice of what `python -m tests.pairwise` searches whole, and that its short cuts are none."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tdx.module.septe import SeptState
from tests.litmus import test_independent_steps_commute as commute
from tests.pairwise import page
from tests.pairwise.calls import CALLS
from tests.pairwise.matrix import may_lose
from tests.pairwise.reach import reachable
from tests.pairwise.search import is_busy, learn, looks_like, search_numbered, search_pair, search_state
from tests.pairwise.states import Age, Guest, State
from tests.pairwise.world import World
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K

S = SeptState
LINE = {call.key: call for call in CALLS}
RUNNING = State(PG_LEVEL_4K, "RUNNABLE", S.NL_MAPPED, entry=S.MAPPED, rest=S.FREE, guest=Guest.CURRENT)
SLICE = (
    ("PAGE.AUG at entry", "PAGE.AUG at entry", RUNNING._replace(entry=S.FREE)),
    ("PAGE.AUG at entry", "PAGE.AUG at neighbour", RUNNING._replace(entry=S.FREE)),
    ("PAGE.AUG at entry", "PAGE.ACCEPT at entry", RUNNING._replace(entry=S.FREE)),
    (
        "PAGE.REMOVE at entry",
        "PAGE.RELOCATE at entry",
        RUNNING._replace(entry=S.BLOCKED, entry_age=Age.PREVIOUS),
    ),
    ("RANGE.BLOCK at entry", "TRACK at TD", RUNNING),
    ("RANGE.BLOCK at parent", "MEM.WR at entry", RUNNING),
    ("VP.ENTER at vCPU", "TRACK at TD", RUNNING),
    ("VP.ENTER (zero-step) at vCPU", "PAGE.AUG at entry", RUNNING._replace(entry=S.FREE)),
    (
        "SEPT.REMOVE at parent",
        "SEPT.RD at entry",
        State(PG_LEVEL_4K, "INITIALIZED", S.NL_MAPPED, entry=S.FREE, rest=S.FREE),
    ),
    ("PAGE.ADD at entry", "SEPT.ADD at parent", State(PG_LEVEL_4K, "INITIALIZED", S.FREE)),
    (
        "PAGE.DEMOTE at parent",
        "PAGE.ACCEPT at parent",
        RUNNING._replace(parent=S.PENDING, entry=None, rest=None),
    ),
    (
        "RECLAIM at page",
        "RDMD at page",
        State(PG_LEVEL_4K, "TEARDOWN", S.NL_MAPPED, entry=S.MAPPED, rest=S.FREE),
    ),
    ("EXPORT.BLOCKW at entry", "MEM.WR at entry", RUNNING._replace(phase="LIVE_EXPORT")),
    ("PAGE.AUG at parent", "SEPT.ADD at parent", State(PG_LEVEL_4K, "RUNNABLE", S.FREE)),
)


@pytest.mark.parametrize(("one", "other", "state"), SLICE, ids=str)
def test_no_order_of_a_pair_breaks_a_rule(one, other, state):
    """To the end; what is busy is so by the table of locks; both orders in sequence are among the outcomes."""
    first, second = LINE[one], LINE[other]
    found = search_state(first, second, state)

    assert found.exhausted
    assert found.findings == ()
    assert set(found.serial) <= found.outcomes
    for outcome in found.outcomes:
        assert not is_busy(outcome.first) or outcome.first in may_lose(first, second)
        assert not is_busy(outcome.second) or outcome.second in may_lose(second, first)


def test_steps_declared_independent_commute(monkeypatch):
    """What `dpor` takes as one class of interleavings is one: neighbours swapped give the same world, pair by pair."""
    compared = 0
    for one, other, state in SLICE:

        def build(kernel, _scenario, calls=(LINE[one], LINE[other]), state=state):
            world = World(kernel, state)
            for who, call in zip("ab", calls, strict=True):
                call.prepare(world, who)
                kernel.thread(who, call.steps(world, who))
            return world

        monkeypatch.setattr(commute, "build", build)
        for first, second, there, back in commute.swaps(None, 2):
            assert there == back, (one, other, first, second)
            compared += 1

    assert compared > 3 * len(SLICE)


def test_an_answer_that_no_order_gives_is_noticed():
    """ACCEPT that meets AUG is told that the size is wrong (quirk 1)."""
    result = search_pair(
        LINE["PAGE.AUG at entry"], LINE["PAGE.ACCEPT at entry"], [[RUNNING._replace(entry=S.FREE)]]
    )

    assert ("SUCCESS", "PAGE_SIZE_MISMATCH|0") in result.unlike_any_order
    assert result.changed[1] >= {"SUCCESS", "OPERAND_BUSY|RCX"}


GROUPED = (
    ("PAGE.REMOVE at entry", "RANGE.BLOCK at entry"),
    ("PAGE.AUG at entry", "SEPT.RD at parent"),
    ("SEPT.REMOVE at parent", "PAGE.AUG at entry"),
    ("PAGE.PROMOTE at parent", "RANGE.UNBLOCK at parent"),
    ("TRACK at TD", "PAGE.REMOVE at entry"),
)


@pytest.mark.parametrize("pair", GROUPED, ids=" x ".join)
def test_states_of_a_group_cannot_be_told_apart(pair):
    """Whichever state of a group is searched, both calls return the same, in as many classes of interleavings."""
    first, second = (LINE[key] for key in pair)
    groups = {}
    for state in reachable(
        PG_LEVEL_2M, frozenset(("INITIALIZED", "RUNNABLE", "LIVE_EXPORT", "PAUSED_EXPORT"))
    ).states:
        if first.fits(state) and second.fits(state):
            groups.setdefault(looks_like(state, first, second), []).append(state)
    compared = [group for group in groups.values() if len(group) > 1][:12]
    assert len(compared) > 5
    for group in compared:
        assert (
            len({answers(first, second, state) for state in (group[0], group[len(group) // 2], group[-1])})
            == 1
        )


def answers(first, second, state):
    found = search_state(first, second, state)
    return frozenset((outcome.first, outcome.second) for outcome in found.outcomes), found.classes


def test_any_number_of_processes_finds_the_same():
    """In the same words."""
    reached = [[RUNNING, RUNNING._replace(entry=S.FREE)]]
    numbers = [(CALLS.index(LINE[one]), CALLS.index(LINE[other])) for one, other, _ in SLICE[:4]]
    alone = [page.line_of(search_pair(CALLS[one], CALLS[other], reached)) for one, other in numbers]
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=learn, initargs=(reached,)) as pool:
        together = list(map(page.line_of, pool.map(search_numbered, numbers)))

    assert alone == together
