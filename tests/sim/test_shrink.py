"""Shrinking reaches the fewest context switches, as brute force over all interleavings counts them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.build import build
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from sim import explore, record
from sim.patches import applied, read
from sim.shrink import Size, shrink, shrink_text
from sim.strategies.dfs import Dfs
from sim.trace import Setting, same_bug
from tests.sim.worlds import lost_update

PLANT = Path(__file__).resolve().parents[1] / "plants" / "drop_is_page_fault_stale.py"


def abba(k):
    """The deadlock of two locks taken in both orders, with some harmless work around it."""
    a, b = k.mutex("A"), k.mutex("B")
    own = [k.cell(f"own{i}", 0) for i in range(2)]

    def take(index, first, second):
        yield own[index].write_once(1)
        yield first.lock()
        yield second.lock()
        yield second.unlock()
        yield first.unlock()

    k.thread("t0", take(0, a, b))
    k.thread("t1", take(1, b, a))


def relay(k):
    """A bug of three threads: the third sees the mark of the second, who saw a passing state of the first."""
    x, y = k.cell("x", 0), k.cell("y", 0)

    def first():
        yield x.write_once(1)
        yield x.write_once(0)

    def second():
        if (yield x.read_once()):
            yield y.write_once(1)

    def third():
        yield x.read_once()
        if (yield y.read_once()) and not (yield x.read_once()):
            k.find("unmet", "a mark without its state")

    k.thread("third", third())
    k.thread("second", second())
    k.thread("first", first())


def one_way(*programs):
    """A world of straight-line programs on two words; right is what they leave when run one after the other."""
    expected = [sum(n for op, cell, n in (o for p in programs for o in p) if cell == c) for c in (0, 1)]

    def world(k):
        cells = [k.cell("x", 0), k.cell("y", 0)]

        def run(program):
            for atomic, cell, n in program:
                if atomic:
                    yield cells[cell].fetch_add(n)
                else:
                    value = yield cells[cell].read_once()
                    yield cells[cell].write_once(value + n)

        for index, program in enumerate(programs):
            k.thread(f"t{index}", run(program))
        k.at_end("no addition is lost", lambda: [cell.peek() for cell in cells] == expected)

    return world


def fewest_switches(world, finding):
    """By brute force: the fewest context switches of all interleavings that show the finding."""
    best = None
    plan = Dfs()

    def choose(kernel, candidates):
        index = plan.pick(kernel, candidates)
        picks.append(candidates[index].name)
        return index

    picks: list[str] = []
    execution = 0
    while plan.begin(None, execution):
        picks.clear()
        kernel = Setting(world).execute(choose)
        plan.end(kernel)
        execution += 1
        if same_bug(kernel, finding) is not None:
            switches = Size.of(picks).switches
            best = switches if best is None else min(best, switches)
    return best


def longest_found(world, executions=60):
    """The finding of a random walk with the most context switches."""
    found = [
        finding
        for seed in range(executions)
        for finding in explore(world, executions=3, seed=seed, stop_at_first=True).findings
    ]
    return max(found, key=lambda f: (len(f.schedule.split()), f.seed), default=None)


@pytest.mark.parametrize("world", [lost_update, abba, relay])
def test_the_known_bugs_shrink_to_the_fewest_switches(world):
    """Lost update, ABBA and the relay of three threads."""
    finding = longest_found(world)

    shrunk = shrink(world, finding)

    assert shrunk.after.switches == fewest_switches(world, finding)
    assert shrunk.fewest
    assert not shrunk.capped
    assert shrunk.after <= shrunk.before


operations = st.tuples(st.booleans(), st.integers(0, 1), st.integers(1, 2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.tuples(st.lists(operations, min_size=1, max_size=2), st.lists(operations, min_size=1, max_size=2)),
        st.tuples(*[st.lists(operations, min_size=1, max_size=1)] * 3),
    )
)
def test_generated_programs_shrink_to_the_fewest_switches(programs):
    """Every one of them: the last pass counts exhaustively."""
    world = one_way(*programs)
    finding = longest_found(world, 8)
    if finding is None:
        return

    shrunk = shrink(world, finding)

    assert shrunk.after.switches == fewest_switches(world, finding)


def test_a_shrunk_schedule_replays_to_the_same_finding():
    """Its text alone is enough, and it is the schedule of the finding that comes back."""
    finding = longest_found(abba)

    shrunk = shrink(abba, finding)

    replayed = record(abba, shrunk.schedule, seed=finding.seed)
    assert [f.fingerprint for f in replayed.kernel.findings] == [finding.fingerprint]
    assert replayed.misfits == []
    assert shrunk.finding.schedule == shrunk.schedule
    assert shrunk.finding.steps
    assert len(shrunk.schedule.split()) == shrunk.after.switches + 1


def test_shrinking_is_deterministic():
    """The same finding gives the same schedule by the same passes."""
    finding = longest_found(relay)

    assert shrink(relay, finding) == shrink(relay, finding)


def test_independent_threads_are_put_in_a_row_without_a_search():
    """Commuting alone joins what does not depend on each other: one traced and one verifying execution."""

    def crowd(k):
        cells = [k.cell(f"c{i}", 0) for i in range(4)]

        def work(cell):
            for value in range(6):
                yield cell.write_once(value)

        for index, cell in enumerate(cells):
            k.thread(f"t{index}", work(cell))
        k.at_end("never", lambda: False)

    finding = explore(crowd, executions=1).findings[0]

    shrunk = shrink(crowd, finding, budget=3)

    assert shrunk.before.switches > 10
    assert shrunk.after.switches == 3


def test_steps_that_the_failing_step_does_not_depend_on_are_cut():
    """A bystander's steps are no part of the story."""

    def world(k):
        x, other = k.cell("x", 0), k.cell("other", 0)

        def bystander():
            for value in range(10):
                yield other.write_once(value)

        def failing():
            yield x.write_once(1)
            yield x.read_once()
            k.find("unmet", "as planted")

        k.thread("bystander", bystander())
        k.thread("failing", failing())

    finding = shrink(world, explore(world, strategy="pos").findings[0]).finding

    assert finding.schedule == "failing*3"


def test_the_budget_keeps_the_best_so_far_and_says_so():
    """One execution: the finding as it was."""
    finding = longest_found(lost_update)

    shrunk = shrink(lost_update, finding, budget=1)

    assert shrunk.capped
    assert shrunk.executions == 1
    assert shrunk.after == shrunk.before
    assert "limit of executions" in str(shrunk)


def test_progress_is_told_with_every_gain():
    """Sizes only get smaller."""
    told = []
    shrink(abba, longest_found(abba), progress=lambda size, executions: told.append((size, executions)))

    assert told == sorted(told, key=lambda entry: (-entry[0].switches, -entry[0].steps))
    assert len(told) > 1


def test_a_finding_of_another_world_is_not_reproduced():
    """Nothing is shrunk, and the answer says why."""
    finding = longest_found(lost_update)

    shrunk = shrink(abba, finding)

    assert not shrunk.reproduced
    assert "does not show the finding" in str(shrunk)


def test_text_alone_can_be_shrunk():
    """Only `run(schedule)` is known: words and counts that are not needed go."""

    def run(text):
        findings = record(lost_update, text).kernel.findings
        return findings[0] if findings else None

    text, calls = shrink_text(run, "a*2 zz*9 b*40 a b*3 a*7 +5")

    assert run(text) is not None
    assert sum(int(word.rpartition("*")[2]) for word in text.split()) <= 4
    assert calls < 100
    with pytest.raises(ValueError, match="finds nothing"):
        shrink_text(run, "a*9")


def test_the_planted_bug_of_the_full_model_shrinks_to_two_switches():
    """Without F31: the vCPU up to its unlocked check, the whole conversion, and the vCPU maps what is gone."""
    scenario = load(LIBRARY / "fault-vs-convert.yaml")

    def world(k):
        build(k, scenario)

    with applied(read(PLANT)):
        (finding,) = explore(world, strategy="pos", executions=400, stop_at_first=True).findings
        shrunk = shrink(world, finding)
        again = record(world, shrunk.schedule).kernel

    assert shrunk.before.switches > shrunk.after.switches
    assert [word.partition("*")[0] for word in shrunk.schedule.split()] == ["vcpu0", "host0", "vcpu0"]
    assert shrunk.fewest
    assert [f.fingerprint for f in again.findings] == [finding.fingerprint]
