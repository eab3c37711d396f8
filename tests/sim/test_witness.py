"""The timing witness: exact nanoseconds and probabilities on programs worked out by hand, and on the full model."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.build import build
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from scenarios.run import prepare
from sim import explore
from sim.costs import CostModel, bounded_pareto, constant, lognormal, mixture, normal
from sim.patches import applied, read
from sim.streams import Streams
from sim.timing import START, DrawId, least_delays, run_timed, trace_timed
from sim.trace import Setting, by_schedule, happened_before, same_bug, spelled
from sim.witness import odds, witness

PLANT = Path(__file__).resolve().parents[1] / "plants" / "drop_is_page_fault_stale.py"
SLOW = lognormal(100, floor=60, shape="0.7")


def racing(*, slow=SLOW, tail=None, head_ns=130):
    """An increment that takes `slow` (and `tail`) between read and write, and a quick one after `head_ns`."""

    def world(k):
        x = k.cell("x", 0)
        costs = {"slow": slow, "head": constant(head_ns)}
        k.costs = CostModel(Streams(k.seed), costs | ({"tail": tail} if tail else {}))

        def increment():
            value = yield x.read_once()
            k.charge("slow")
            if tail:
                k.charge("tail")
            yield x.write_once(value + 1)

        def quick():
            k.charge("head")
            value = yield x.read_once()
            k.spend(1)
            yield x.write_once(value + 1)

        k.thread("a", increment())
        k.thread("b", quick())
        k.at_end("both increments count", lambda: x.peek() == 2)

    return world


def found_in(world):
    """The first finding of a search without time."""
    return explore(world, strategy="dfs", stop_at_first=True).findings[0]


def shows(world, finding, changes):
    """Whether a timing run with these latencies shows it."""
    return same_bug(run_timed(Setting(world, finding.seed, 0), changes), finding) is not None


def test_the_needed_latency_is_exact():
    """b reads at 130 ns: a's write, 100 ns after its read on average, has to come at 130 ns or later."""
    world = racing()
    finding = found_in(world)

    answer = witness(world, finding)

    (change,) = answer.changes
    assert (change.thread, change.name, change.nth) == ("a", "slow", 0)
    assert (change.mean_ns, change.least_ns, change.most_ns) == (100, 130, None)
    assert change.chance == answer.chance == SLOW.chance_at_least(130)
    assert "test_witness.py" in change.place
    assert str(answer).startswith("needs slow of a to take 130 ns or more (100 ns on average): ")
    assert shows(world, finding, {DrawId("a", "slow", 0): 130})
    assert not shows(world, finding, {DrawId("a", "slow", 0): 129})


def test_the_probability_is_that_of_the_timing_runs():
    """How often timing runs with drawn latencies fail, over 4000 seeds, is what the witness says (within 3 sigma)."""
    world = racing()
    answer = witness(world, found_in(world))

    runs = 4000
    failed = sum(bool(Setting(world, seed, 0).execute(None).findings) for seed in range(runs))

    sigma = (float(answer.chance) * (1 - float(answer.chance)) * runs) ** 0.5
    assert abs(failed - float(answer.chance) * runs) < 3 * sigma


def test_a_latency_may_have_to_be_shorter():
    """b waits 90 ns and ends before a's read at 100: only a quicker a gets in its way."""

    def world(k):
        x = k.cell("x", 0)
        k.costs = CostModel(Streams(k.seed), {"way": SLOW, "head": constant(80), "work": constant(10)})

        def late():
            k.charge("way")
            value = yield x.read_once()
            k.spend(10**6)
            yield x.write_once(value + 1)

        def early():
            k.charge("head")
            value = yield x.read_once()
            k.charge("work")
            yield x.write_once(value + 1)

        k.thread("a", late())
        k.thread("b", early())
        k.at_end("both increments count", lambda: x.peek() == 2)

    finding = found_in(world)
    answer = witness(world, finding)

    (change,) = answer.changes
    assert change.least_ns is None
    assert change.name == "way"
    assert change.most_ns in {89, 90}  # at 90 the seed decides who is first
    assert answer.chance == 1 - SLOW.chance_at_least(change.most_ns + 1)
    assert shows(world, finding, {DrawId("a", "way", 0): change.most_ns})
    assert not shows(world, finding, {DrawId("a", "way", 0): change.most_ns + 1})
    assert "ns or less" in str(answer)


def test_a_window_has_two_ends():
    """The look must fall between two writes that are 20 ns apart."""

    def world(k):
        x = k.cell("x", 0)
        k.costs = CostModel(Streams(k.seed), {"way": SLOW, "head": constant(150), "gap": constant(20)})

        def flicker():
            k.charge("head")
            yield x.write_once(1)
            k.charge("gap")
            yield x.write_once(0)

        def look():
            k.charge("way")
            if (yield x.read_once()):
                k.find("unmet", "seen half-done")

        k.thread("flicker", flicker())
        k.thread("look", look())

    finding = found_in(world)
    answer = witness(world, finding)

    (change,) = answer.changes
    for ns in (change.least_ns, change.most_ns):
        assert shows(world, finding, {DrawId("look", "way", 0): ns})
    assert not shows(world, finding, {DrawId("look", "way", 0): change.least_ns - 1})
    assert not shows(world, finding, {DrawId("look", "way", 0): change.most_ns + 1})
    assert 150 <= change.least_ns <= change.most_ns <= 170
    assert answer.chance == SLOW.chance_at_least(change.least_ns) - SLOW.chance_at_least(change.most_ns + 1)


def test_two_latencies_where_one_cannot_be_long_enough():
    """The head is longer than the longest `slow` with an average `tail`: both must be late."""
    longest_ns = SLOW.bounds_ns()[1]
    world = racing(tail=SLOW, head_ns=longest_ns + 130)
    finding = found_in(world)

    answer = witness(world, finding)

    assert {change.name for change in answer.changes} == {"slow", "tail"}
    assert sum(change.least_ns for change in answer.changes) == longest_ns + 130
    assert answer.chance == answer.changes[0].chance * answer.changes[1].chance
    assert 0 < answer.chance < Fraction(1, 1000)
    assert shows(world, finding, {DrawId(c.thread, c.name, c.nth): c.least_ns for c in answer.changes})


def test_nothing_has_to_change_if_the_means_do_it():
    """The head is shorter than the average `slow`."""
    world = racing(head_ns=50)

    answer = witness(world, found_in(world))

    assert answer.found
    assert answer.changes == []
    assert answer.chance == 1
    assert str(answer) == "happens with every latency at its mean"


def test_a_start_is_no_latency():
    """All latencies are constants: only the start of a thread can move, and that has no probability."""
    world = racing(slow=constant(100))
    finding = found_in(world)

    answer = witness(world, finding)

    (change,) = answer.changes
    assert (change.thread, change.name) == ("a", START)
    assert answer.chance is None
    assert shows(world, finding, {DrawId("a", START, 0): change.least_ns})
    assert not shows(world, finding, {DrawId("a", START, 0): change.least_ns - 1})
    assert "a to start" in str(answer)


def lock_ordered(k):
    """b can come between two of a's steps only if it has the lock first; time has it take the lock later, always.

    Both threads are made by a third when it has come so far: their starts are no free choice. What a does between its
    arrival and its steps takes no time, what b does before its own takes a constant.
    """
    lock, x = k.mutex("lock"), k.cell("x", 0)
    k.costs = CostModel(Streams(k.seed), {"far": constant(50)})

    def first():
        yield lock.lock()
        yield x.write_once(1)
        yield lock.unlock()

    def second():
        k.charge("far")
        yield lock.lock()
        if not (yield x.read_once()):
            k.find("unmet", "b had the lock first")
        yield lock.unlock()

    def parent():
        yield x.read_once()
        k.thread("a", first())
        k.thread("b", second())

    k.thread("parent", parent())


def test_there_is_no_witness_where_no_latency_can_turn_the_order():
    """The lock is taken in the order of arrival, and arrival is fixed: the answer says what stands in the way."""
    finding = found_in(lock_ordered)

    answer = witness(lock_ordered, finding)

    assert not answer.found
    assert answer.chance is None
    assert str(answer).startswith(
        f"no timing witness found within {answer.runs} timing runs: no latency can be long enough"
    )


def test_a_timeout_that_no_latency_reaches_has_no_witness():
    """Without time the bound may run out before the answer; in time no answer takes that long."""

    def world(k):
        done = k.signal("done")
        k.costs = CostModel(Streams(k.seed), {"answer": SLOW})

        def ask():
            if (yield done.wait(10_000)) is not True:
                k.find("unmet", "timed out")

        def answer():
            k.charge("answer")
            yield done.raise_()

        def parent():
            yield k.cell("x", 0).read_once()
            k.thread("ask", ask())
            k.thread("answer", answer())

        k.thread("parent", parent())

    assert not witness(world, found_in(world)).found


def test_the_budget_ends_the_search():
    """And it is named."""
    world = racing()

    answer = witness(world, found_in(world), budget=1)

    assert str(answer) == "no timing witness found within 1 timing runs: the limit of runs"


WIDE = mixture(SLOW, bounded_pareto(1_000, 1_000_000, alpha="1.5"), probability="0.01")
accesses = st.lists(st.tuples(st.booleans(), st.integers(0, 1)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(accesses, accesses, st.randoms(use_true_random=False))
def test_delays_give_any_order_its_times(one, two, random):
    """A draw before every access can be as long as it takes: the timing run orders conflicts as the schedule does."""

    def world(k):
        cells = [k.cell("x", 0), k.cell("y", 0)]
        k.costs = CostModel(Streams(k.seed), {"wait": WIDE})

        def run(program):
            for write, cell in program:
                k.charge("wait")
                yield cells[cell].write_once(1) if write else cells[cell].read_once()

        k.thread("a", run(one))
        k.thread("b", run(two))

    picks = ["a"] * (len(one) + 1) + ["b"] * (len(two) + 1)
    random.shuffle(picks)
    wanted, draws = trace_timed(Setting(world), {}, by_schedule(spelled(picks)))

    delays = least_delays(wanted.steps, draws, starts=False)

    timed, _ = trace_timed(Setting(world, window_ns=0), delays.changes)
    assert not delays.cycle
    assert races_by_name(timed.steps) == races_by_name(wanted.steps)


def races_by_name(steps):
    """Which conflicting step of another thread comes before which, by thread and op."""
    _, racing = happened_before(steps, gates=True)
    return {
        ((steps[i].thread, steps[i].op), (step.thread, step.op))
        for step in steps
        for i in racing[step.number]
    }


@pytest.mark.parametrize("distribution", [constant(7), SLOW, normal(500, cv="0.01"), WIDE])
def test_the_bounds_of_a_distribution_are_where_its_chances_end(distribution):
    """Always at least the shortest, never more than the longest."""
    low_ns, high_ns = distribution.bounds_ns()

    assert distribution.chance_at_least(low_ns) == 1
    assert distribution.chance_at_least(low_ns + 1) < 1 or low_ns == high_ns
    assert distribution.chance_at_least(high_ns) > 0
    assert distribution.chance_at_least(high_ns + 1) == 0


@pytest.mark.parametrize(
    ("chance", "words"),
    [
        (Fraction(1, 4), "25 in 100 runs"),
        (Fraction(3, 1000), "3 in 1,000 runs"),
        (Fraction(3, 10_000), "3 in 10,000 runs"),
        (Fraction(1, 2**20), "1 in 1,000,000 runs"),
        (Fraction(0), "0 in 1,000 runs"),
    ],
)
def test_odds_are_said_in_runs(chance, words):
    """As people say them."""
    assert odds(chance) == words


def test_the_planted_bug_of_the_full_model_has_a_witness_that_a_timing_run_confirms():
    """The two paths touch for one transfer of the lock's line: the conversion must start within that window."""
    scenario = load(LIBRARY / "fault-vs-convert.yaml")

    def world(k):
        build(k, scenario)

    def timed(k):
        prepare(k, scenario)

    with applied(read(PLANT)):
        (finding,) = explore(world, strategy="pos", executions=400, stop_at_first=True).findings
        answer = witness(timed, finding)
        assert answer.found
        ids = [DrawId(c.thread, c.name, c.nth) for c in answer.changes]
        least = {which: change.least_ns for which, change in zip(ids, answer.changes, strict=True)}
        most = {which: change.most_ns for which, change in zip(ids, answer.changes, strict=True)}
        assert shows(timed, finding, least)
        assert shows(timed, finding, most)
        for which in ids:
            assert not shows(timed, finding, {**least, which: least[which] - 1})
    assert shows(timed, finding, least) is False  # the correct model, at the same latencies
