"""Searching small worlds: what a report says, and that what was found can be found again."""

from __future__ import annotations

import pytest

from sim import INFINITY, Broken, Kernel, explore, record
from tests.sim.worlds import bustle, lost_update


def test_random_finds_the_lost_update():
    """It needs a switch between the read and the write; the finding has everything a reader wants."""
    report = explore(lost_update, strategy="random", executions=100)

    (finding,) = report.findings
    assert report.verdict == "failing"
    assert (finding.kind, finding.title) == ("unmet", "not true: both increments count")
    assert finding.count > 1
    assert any("plain" not in step and "read x = 0" in step for step in finding.steps)
    assert all("test_explore" not in step or "worlds.py" in step for step in finding.steps)


def test_a_finding_replays_from_its_schedule():
    """By text alone: through `replay:`, and through `record`, without misfits."""
    (finding,) = explore(lost_update, executions=100).findings
    again = explore(lost_update, strategy=f"replay:{finding.schedule}")
    recording = record(lost_update, finding.schedule)

    assert [f.fingerprint for f in again.findings] == [finding.fingerprint]
    assert recording.misfits == []
    assert recording.schedule == finding.schedule
    assert tuple(recording.recorder.lines) == finding.steps


def test_fifo_does_not_find_it_when_time_keeps_the_threads_apart():
    """The timing run is one execution, and then there is nothing left to try."""

    def apart(k):
        lost_update(k)
        k.threads[1].due_ns = 100
        k._file(k.threads[1])

    report = explore(apart, strategy="fifo", executions=5)
    assert (report.executions, report.exhausted, report.findings) == (1, True, [])


def test_the_window_bounds_what_can_be_found():
    """Increments 100 ns apart are lost with 100 ns of jitter, and not with less."""

    def world(k):
        x = k.cell("x", 0)

        def increment():
            value = yield x.read_once()
            yield x.write_once(value + 1)

        k.thread("a", increment())
        k.thread("b", increment(), start_ns=100)
        k.at_end("both increments count", lambda: x.peek() == 2)

    assert explore(world, executions=200, window_ns=99).findings == []
    assert explore(world, executions=200, window_ns=100).findings
    assert explore(world, executions=200, window_ns=INFINITY).findings


def test_executions_of_one_search_differ_and_a_search_repeats():
    """Each execution draws for itself; the whole depends on the seed alone."""
    outcomes = []

    def world(k):
        bustle(k)
        outcomes.append(k)

    one = explore(world, executions=20, seed=3)
    two = explore(world, executions=20, seed=3)
    other = explore(world, executions=20, seed=4)

    assert len({(k.steps, k.now) for k in outcomes[:20]}) > 5
    assert one.digest == two.digest != other.digest
    assert one.clean


def test_stop_at_first_stops():
    """The report tells how many executions it took."""
    report = explore(lost_update, executions=1000, stop_at_first=True)

    assert len(report.findings) == 1
    assert report.executions < 50


def test_a_time_limit_ends_a_search():
    """No time means no execution, and no claim."""
    assert explore(lost_update, time_limit_s=0).executions == 0


def test_a_cut_execution_makes_the_search_inconclusive():
    """Never "none found" when a bound was hit."""

    def endless(k):
        def steps():
            while True:
                yield k.cell("x", 0).read()

        k.thread("a", steps())

    report = explore(endless, executions=3, max_steps=50)
    assert (report.verdict, report.clean) == ("inconclusive", False)
    assert (report.executions, report.complete, report.cut) == (3, 0, 3)
    assert report.steps == 150


def test_always_is_judged_after_every_step():
    """A truth that is broken for one step only is found, with the values that show it."""

    def world(k):
        x = k.cell("x", 0)

        def dip():
            yield x.write(-1)
            yield x.write(0)

        def never_negative():
            return Broken(x=x.peek()) if x.peek() < 0 else None

        k.thread("a", dip())
        k.always("x is never negative", never_negative, kind="refcount")

    (finding,) = explore(world, executions=1).findings
    assert (finding.kind, finding.details, finding.step) == ("refcount", {"x": "-1"}, 1)


def test_sometimes_must_be_met_in_some_execution():
    """What no execution met is told, and is a failure."""

    def world(k):
        x = k.cell("x", 0)

        def steps():
            yield x.write(1)
            k.reached("wrote")
            yield x.write(2)

        k.thread("a", steps())
        k.sometimes("wrote")
        k.sometimes("x is 2", lambda: x.peek() == 2)
        k.sometimes("x is 3", lambda: x.peek() == 3)

    report = explore(world, executions=2)
    assert report.unmet == ["x is 3"]
    assert report.met == {"wrote", "x is 2"}
    assert report.verdict == "failing"


def test_at_end_is_judged_only_when_all_have_ended():
    """Not in an execution that was cut."""

    def world(k):
        x = k.cell("x", 0)

        def steps():
            for _ in range(3):
                yield x.write(1)

        k.thread("a", steps())
        k.at_end("never", lambda: False)

    assert explore(world, executions=1, max_steps=2).findings == []
    assert explore(world, executions=1).findings[0].title == "not true: never"


def test_a_world_that_is_not_deterministic_is_told():
    """A finding that its own schedule does not show again says so."""
    flips = iter([0, 1, 1, 1])

    def world(k):
        flip = next(flips)
        x = k.cell("x", 0)

        def steps():
            yield x.write(flip)

        k.thread("a", steps())
        k.at_end("x is 1", lambda: x.peek() == 1)

    (finding,) = explore(world, executions=1).findings
    assert finding.details["replay"] == "did not show it again: the world is not deterministic"


def test_the_memory_model_is_named():
    """An unknown one is refused with those there are."""
    with pytest.raises(ValueError, match="no memory model 'arm': there is sc"):
        explore(lost_update, memory_model="arm")


def test_findings_may_be_gathered_instead_of_ending_the_execution():
    """A timing run goes on; the same bug twice is one finding."""
    k = Kernel(stop_at_finding=False)

    def steps():
        for _ in range(2):
            yield k.cell("x", 0).read()
            k.find("kvm-bug", "again")

    k.thread("a", steps())
    k.execute()

    assert [f.title for f in k.findings] == ["again"]
    assert k.threads[0].done
