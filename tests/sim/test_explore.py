"""Searching small worlds: what a report says, and that what was found can be found again."""

from __future__ import annotations

from importlib import import_module

import pytest

from sim import INFINITY, Broken, Kernel, estimates, explore, record
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
    report = explore(lost_update, time_limit_s=0)
    assert (report.executions, report.verdict) == (0, "inconclusive")
    assert report.claim == "no execution was made"


class Clock:
    """A `monotonic` that goes on by one second whenever it is asked."""

    def __init__(self):
        self.now_s = 0

    def __call__(self):
        self.now_s += 1
        return self.now_s


@pytest.mark.parametrize(
    ("strategy", "executions", "out_of_time"),
    [
        ("random", 100, True),
        ("random", None, False),
        ("dfs", None, True),
        ("dfs", 100, True),
        ("fifo", None, False),
    ],
)
def test_a_time_limit_that_ends_a_search_early_is_inconclusive(
    monkeypatch, strategy, executions, out_of_time
):
    """Early is: before the executions asked for, or before its own end. Time alone may be the budget of a walk."""
    monkeypatch.setattr(import_module("sim.explore"), "monotonic", Clock())
    report = explore(bustle, strategy=strategy, executions=executions, time_limit_s=10)

    assert report.executions == (1 if strategy == "fifo" else 9)
    assert report.out_of_time is out_of_time
    assert report.verdict == ("inconclusive" if out_of_time else "none found")
    assert ("the time limit ended the search after 9 executions" in report.claim) is out_of_time


def test_a_time_limit_that_ends_with_the_search_is_no_limit(monkeypatch):
    """Nothing was left to do."""
    monkeypatch.setattr(import_module("sim.explore"), "monotonic", Clock())
    whole = explore(lambda k: increments(k, locked=True), strategy="dfs")
    again = explore(lambda k: increments(k, locked=True), strategy="dfs", time_limit_s=whole.executions + 1)

    assert (again.executions, again.verdict) == (whole.executions, "proved")


def increments(k, *, locked):
    """`lost_update`, with or without the lock that makes it right."""
    lock, x = k.mutex("lock"), k.cell("x", 0)

    def increment():
        if locked:
            yield lock.lock()
        value = yield x.read_once()
        yield x.write_once(value + 1)
        if locked:
            yield lock.unlock()

    k.thread("a", increment())
    k.thread("b", increment())
    k.at_end("both increments count", lambda: x.peek() == 2)


@pytest.mark.parametrize("strategy", ["dfs", "dpor"])
def test_an_exhaustive_search_proves_or_fails(strategy):
    """With the number of executions as its claim."""
    right = explore(lambda k: increments(k, locked=True), strategy=strategy)
    wrong = explore(lambda k: increments(k, locked=False), strategy=strategy)

    assert (right.verdict, right.clean, right.drawn) == ("proved", True, False)
    assert right.claim.startswith(
        f"every interleaving of this world under sequential consistency, in {right.executions} executions"
    )
    assert (wrong.verdict, wrong.clean) == ("failing", False)
    assert wrong.claim == f"{wrong.failed} of {wrong.executions} executions failed"


def test_a_window_bounds_what_is_proved():
    """The claim says so."""
    report = explore(lambda k: increments(k, locked=False), strategy="dfs", window_ns=0)
    assert report.verdict == "failing"
    report = explore(lambda k: increments(k, locked=True), strategy="dfs", window_ns=7)
    assert report.claim.startswith("every interleaving within 7 ns of time order of this world")


def test_a_walk_that_finds_claims_a_rate():
    """The interval is Wilson's, and overlaps with that of another search."""
    report = explore(lost_update, executions=400)
    low, high = estimates.wilson(report.failed, 400)
    other = explore(lost_update, executions=400, seed=1)

    assert report.claim.startswith(
        f"{report.failed} of 400 executions failed: a rate of {report.failed / 400:.3g}, "
        f"with 95 % confidence {low:.3g} to {high:.3g}. "
    )
    other_low, other_high = estimates.wilson(other.failed, 400)
    assert low < other_high
    assert other_low < high
    assert report.hits == {"random": report.failed}


def test_a_walk_that_finds_nothing_claims_the_rule_of_three_and_the_unseen_mass():
    """And never that there is nothing."""
    report = explore(lambda k: increments(k, locked=True), executions=300)

    assert (report.verdict, report.clean, report.proved) == ("none found", True, False)
    assert report.claim == (
        "nothing found in 300 executions: the next one fails with a probability below 0.01 (95 % confidence). "
        "2 orders of conflicting accesses seen; the next execution shows a new one with a probability of about 0"
    )


def test_what_was_never_met_is_in_the_claim():
    """It is why the search failed."""

    def world(k):
        increments(k, locked=True)
        k.sometimes("pigs fly")

    report = explore(world, executions=10)
    assert report.verdict == "failing"
    assert report.claim.startswith("never met in 10 executions: pigs fly. nothing found in 10 executions")


def test_the_step_limit_names_the_loop():
    """The thread, the function it never left, the lines of it that went round, and how much of the end it made."""

    def world(k):
        flag, word = k.cell("flag", False), k.cell("word", 0)

        def look():
            return (yield flag.read_once())

        def spin():
            yield word.write_once(1)
            while not (yield from look()):
                yield word.fetch_add(1)

        def once():
            yield word.read_once()

        k.thread("spinner", spin())
        k.thread("other", once())

    for max_steps in (300, 40):  # longer and shorter than the part that is looked at
        report = explore(world, executions=20, max_steps=max_steps)
        whole = min(max_steps, 64)
        assert sum(report.loops.values()) == report.cut == report.executions == 20
        assert all(name.startswith("spinner in spin, sim/test_explore.py:") for name in report.loops)
        assert all(name.endswith(f" of the last {whole} steps)") for name in report.loops)
        assert f"20 of 20 executions hit the step limit: {next(iter(report.loops))} in " in report.claim
    (name,) = explore(world, executions=20, max_steps=300).loops
    assert name.endswith("(64 of the last 64 steps)")


def test_the_step_limit_is_the_same_whether_its_end_is_looked_at_or_not():
    """An execution just as long as the limit is not cut; one step less, and it is, after the same picks."""
    (steps,) = {k.steps for k in ended(max_steps=10_000)}
    whole = ended(max_steps=steps)
    cut = ended(max_steps=steps - 1)

    assert (whole[0].exhausted, cut[0].exhausted) == (False, True)
    assert [thread.name for thread in cut[0].picks] == [thread.name for thread in whole[0].picks][:-1]


def ended(**options):
    """The kernel of one execution."""
    kernels = []
    explore(bustle, executions=1, after=kernels.append, **options)
    return kernels


def test_hooks_end_a_search_and_see_its_executions():
    """`stop` is asked before, `after` told after every execution, findings and all."""
    kernels = []
    report = explore(lost_update, executions=100, stop=lambda: len(kernels) == 7, after=kernels.append)

    assert report.executions == len(kernels) == 7
    assert sum(bool(k.findings) for k in kernels) == report.failed > 0


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
    assert "fails with a probability" not in report.claim


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
