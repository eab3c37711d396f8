"""`states` reaches what every interleaving reaches, and refuses what it cannot put into tables."""

from __future__ import annotations

from itertools import pairwise
from math import factorial, prod

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim import explore
from sim.states import Misfit, reduction
from sim.states import search as states
from sim.states.result import Limits
from sim.states.search import Search
from tests.bench.protocols import ROWS, build
from tests.sim.worlds import bustle, lost_update

WORDS = st.integers(0, 1)
OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["read", "write", "add", "swap", "await", "branch"]), WORDS, st.integers(0, 2)),
    st.tuples(st.sampled_from(["reader", "writer", "spin", "raise", "wait", "look"]), WORDS, st.just(0)),
)
LONG = st.lists(OPERATIONS, min_size=1, max_size=4)
STEPS = {"reader": 3, "writer": 3, "spin": 3, "branch": 2}


def interleavings(program):
    """How many there are at most, starts and results included."""
    lengths = [2 + sum(STEPS.get(what, 1) for what, _, _ in operations) for operations in program]
    return factorial(sum(lengths)) // prod(map(factorial, lengths))


SHORT = st.lists(st.lists(OPERATIONS, min_size=1, max_size=3), min_size=2, max_size=3).filter(
    lambda program: interleavings(program) <= 3500
)


def operation(k, words, locks, signals, what, i, n):
    """A few accesses; what they brought is the value."""
    word = words[i]
    if what == "read":
        return (yield word.read_once())
    if what == "write":
        return (yield word.write_once(n))
    if what == "add":
        return (yield word.fetch_add(n))
    if what == "swap":
        return (yield word.cmpxchg(n, n + 1))
    if what == "await":
        return (yield word.wait_until(lambda value: value == n))
    if what == "branch":
        if (yield word.read_once()) == n:
            return (yield words[1 - i].xchg(n))
        return None
    if what == "raise":
        return (yield signals[i].raise_())
    if what == "wait":
        return (yield signals[i].wait(take=i == 0))
    if what == "look":
        if (yield word.read_once()) > 2:
            k.find("overwrite", f"word {i} is large")
        return None
    rw, spin = locks
    take, leave = {
        "reader": (rw.read_lock, rw.read_unlock),
        "writer": (rw.write_lock, rw.write_unlock),
        "spin": (spin.lock, spin.unlock),
    }[what]
    yield take()
    seen = yield word.read_once()
    yield leave()
    return seen


def world_of(program, ends=None, *, watched=False):
    """A world that runs a program; `ends` gets the words' values at every quiet end."""

    def world(k):
        words = [k.cell(f"x{i}", 0) for i in range(2)]
        locks = k.rwlock("rw"), k.spinlock("spin")
        signals = [k.signal(f"s{i}") for i in range(2)]
        results = [k.cell(f"result{t}", None) for t in range(len(program))]

        def run(t, operations):
            seen = ()
            for what, i, n in operations:
                seen = (*seen, (yield from operation(k, words, locks, signals, what, i, n)))
            yield results[t].write_once(seen)

        def note():
            if ends is not None:
                ends.add(tuple(cell.peek() for cell in words + results))
            return words[0].peek() < 4

        for t, operations in enumerate(program):
            k.thread(f"t{t}", run(t, operations))
        k.at_end("x0 stays small", note)
        if watched:
            k.always("never both one", lambda: not words[0].peek() == words[1].peek() == 1)
            k.sometimes("x1 is two", lambda: words[1].peek() == 2)

    return world


def seen_by(strategy, program, *, watched):
    ends = set()
    report = explore(world_of(program, ends, watched=watched), strategy=strategy, races=False)
    return {(f.kind, f.title) for f in report.findings}, ends, report.met


@settings(derandomize=True, deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
@given(program=SHORT, watched=st.booleans())
def test_states_sees_what_every_interleaving_sees(program, watched):
    """Findings, deadlocks, final states and what was met, against brute force."""
    every = seen_by("dfs", program, watched=watched)

    assert seen_by("states", program, watched=watched) == every


def search(program, *, watched, reduce):
    """What one kind of search sees: final words, how many things are found, what is met."""
    ends = set()
    result = Search(world_of(program, ends, watched=watched), reduce=reduce).run()
    return ends, len(result.paths), result.met


@settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(program=st.lists(LONG, min_size=2, max_size=4), watched=st.booleans())
def test_reduction_leaves_out_nothing_that_can_be_seen(program, watched):
    """On programs too long for brute force: all steps against those that are enough."""
    full, reduced = (search(program, watched=watched, reduce=reduce) for reduce in (False, True))

    assert reduced == full


@settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(program=SHORT, watched=st.booleans())
def test_pruned_sees_what_every_interleaving_sees(program, watched):
    """The search that executes, and leaves at a state it knows, against brute force."""
    every = seen_by("dfs", program, watched=watched)

    assert seen_by("pruned", program, watched=watched) == every


def test_pruned_makes_far_fewer_executions():
    """On two threads that share two words there are many more orders than states."""
    program = [[("add", 0, 1), ("add", 1, 1), ("read", 0, 0)], [("add", 1, 1), ("add", 0, 1), ("read", 1, 0)]]
    every, pruned = (explore(world_of(program), strategy=s, races=False) for s in ("dfs", "pruned"))

    assert pruned.proved
    assert pruned.executions * 4 < every.executions


@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(program=st.lists(LONG, min_size=2, max_size=4))
def test_whole_levels_show_what_single_states_show(program):
    """The search with numpy against the one without: as many states, steps and ends, and the same things found."""
    pytest.importorskip("numpy")
    from sim.states import wide

    one = Search(world_of(program), reduce=False)
    other = Search(world_of(program))
    expected, result = one.run(), wide.search(other.automata, other.judge, Limits())

    assert (result.states, result.steps, result.ends) == (expected.states, expected.steps, expected.ends)
    assert sorted(map(len, result.paths)) == sorted(map(len, expected.paths))


def test_reduction_that_forgets_reads_is_caught(monkeypatch):
    """The comparison above can fail: two threads read what the other writes, and a plan that overlooks it loses an end."""
    monkeypatch.setattr(reduction, "_conflict", lambda one, two: bool(one[2] & two[2]))
    program = [[("write", 0, 1), ("read", 1, 0)], [("write", 1, 1), ("read", 0, 0)]]
    full, reduced = (search(program, watched=False, reduce=reduce) for reduce in (False, True))

    assert reduced != full


@pytest.mark.parametrize("row", [row for row in ROWS if row.n == 2 and row.model != "m3"], ids=str)
def test_protocol_row_has_the_verdict_of_the_peers(row):
    """Correct variants are proved, planted bugs are found and replay."""
    report = explore(build(row), strategy="states", races=False)

    assert ("failing" if row.bug else "proved") == report.verdict
    for finding in report.findings:
        again = explore(build(row), strategy=f"replay:{finding.schedule}", races=False)
        assert finding.title in {same.title for same in again.findings}


def test_without_numpy_the_answer_is_the_same(monkeypatch):
    """Beyond a few states numpy takes over where it is installed; a plan of what to leave out where it is not."""
    monkeypatch.setattr(states, "FEW", 500)
    results = []
    for spec in (states.find_spec, lambda _name: None):
        monkeypatch.setattr(states, "find_spec", spec)
        results.append([Search(build(row)).run() for row in (ROWS[0], ROWS[3])])
    some, others = results

    for one, two in zip(some, others, strict=True):
        assert (one.ends, bool(one.paths)) == (two.ends, bool(two.paths))


def test_lost_update_is_found_with_its_schedule():
    report = explore(lost_update, strategy="states")
    (finding,) = report.findings

    assert finding.title == "not true: both increments count"
    assert explore(lost_update, strategy=f"replay:{finding.schedule}").findings


def test_a_limit_proves_nothing():
    report = explore(build(ROWS[0]), strategy="states:100", races=False)

    assert report.verdict == "inconclusive"


def test_waiting_writer_holds_back_new_readers():
    """A reader inside waits for a reader that stands behind a writer: only the kernel's line makes that a deadlock."""

    def world(k):
        lock, done = k.rwlock("lock"), k.cell("done", False)

        def outer():
            yield lock.read_lock()
            yield done.wait_until(bool)
            yield lock.read_unlock()

        def inner():
            yield lock.read_lock()
            yield lock.read_unlock()
            yield done.write_once(True)

        def writer():
            yield lock.write_lock()
            yield lock.write_unlock()

        for name, steps in (("outer", outer), ("inner", inner), ("writer", writer)):
            k.thread(name, steps())

    kinds = [{(f.kind, f.title) for f in explore(world, strategy=s).findings} for s in ("dfs", "states")]

    assert {kind for kind, _ in kinds[1]} == {"deadlock"}
    assert kinds[0] == kinds[1]


def hidden_counter(k):
    x, box = k.cell("x", 0), [0]

    def thread():
        yield x.write_once(1)
        box[0] += 1
        yield x.write_once(2)

    for name in "ab":
        k.thread(name, thread())


def peeking(k):
    x, y = k.cell("x", 0), k.cell("y", 0)

    def thread():
        yield x.write_once(1)
        if y.peek():
            yield x.write_once(2)

    def other():
        yield y.write_once(1)

    k.thread("a", thread())
    k.thread("b", other())


def on_the_fly(k):
    x = k.cell("x", 0)

    def child():
        yield x.write_once(2)

    def thread():
        yield x.write_once(1)
        k.thread("child", child())

    k.thread("a", thread())


def by_the_clock(k):
    x = k.cell("x", 0)

    def thread():
        yield x.write_once(1)
        yield x.write_once(k.now_ns)

    k.thread("a", thread())


def holding_a_list(k):
    x = k.cell("x", [])

    def thread():
        yield x.read_once()

    k.thread("a", thread())


@pytest.mark.parametrize(
    ("world", "why"),
    [
        (hidden_counter, "share a Python object"),
        (peeking, "uses y without saying so"),
        (on_the_fly, "made on the fly"),
        (by_the_clock, "reads the clock"),
        (holding_a_list, "x holds an object that can change"),
        (bustle, "draws random numbers"),
    ],
)
def test_world_that_does_not_fit_is_refused_with_its_reason(world, why):
    with pytest.raises(Misfit, match=why):
        explore(world, strategy="states")


def test_search_is_the_same_twice():
    results = [Search(build(ROWS[0])).run() for _ in range(2)]

    for one, two in pairwise(results):
        assert (one.states, one.steps, one.ends) == (two.states, two.steps, two.ends)
