"""`dpor` on the programs of the literature, and what it promises at the edges."""

from __future__ import annotations

import pytest

from sim import INFINITY, Kernel, explore
from sim.access import Access
from tests.sim.brute_force import search
from tests.sim.literature import PUBLISHED, PUBLISHED_LONG, filesystem, readers
from tests.sim.worlds import lost_update


def check_published(program, size, traces):
    report = explore(program(size), strategy="dpor", races=False)

    assert (report.complete, report.executions) == (traces, traces)
    assert report.proved


@pytest.mark.parametrize(
    ("program", "size", "traces"), PUBLISHED, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_as_many_executions_as_published_traces(program, size, traces):
    """None is redundant, and none is begun in vain."""
    check_published(program, size, traces)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("program", "size", "traces"), PUBLISHED_LONG, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_as_many_executions_as_published_traces_in_long_programs(program, size, traces):
    """The same, for those that take a while."""
    check_published(program, size, traces)


def test_a_data_race_is_found_and_replays():
    """As with every strategy: the finding has a schedule that leads there again."""
    report = explore(lost_update, strategy="dpor")
    (finding,) = report.findings
    again = explore(lost_update, strategy=f"replay:{finding.schedule}")

    assert [f.fingerprint for f in again.findings] == [finding.fingerprint]


def test_the_same_search_twice():
    """There is no randomness in it."""
    one, two = (explore(filesystem(16), strategy="dpor", seed=seed, races=False) for seed in (1, 1))

    assert one.digest == two.digest


def test_a_time_window_is_refused():
    """Which accesses a window lets past depends on time, and equivalent orders differ in time."""
    with pytest.raises(ValueError, match="full interleaving"):
        explore(readers(2), strategy="dpor", window_ns=100)


def test_an_unknown_argument_is_refused():
    """There is `values`."""
    with pytest.raises(ValueError, match="no strategy 'dpor:speed'"):
        explore(readers(2), strategy="dpor:speed")


def test_an_access_that_says_nothing_is_dependent_on_everything():
    """Right, and as slow as it can be."""

    class Poke(Access):
        __slots__ = ()
        writes = True

        def perform(self, thread):
            self.target.append(thread.name)

    order = []

    def world(k):
        order.clear()

        def thread():
            yield Poke(order)

        for name in "abc":
            k.thread(name, thread())

    assert len(set(search(world, "dpor", lambda: "".join(order)).outcomes)) == 6


def two_words(k):
    """Two words that are never equal to (1, 0) at the end, but on the way."""
    x, y = k.cell("x", 0), k.cell("y", 0)

    def one():
        yield x.write_once(1)

    def other():
        yield y.write_once(1)

    k.thread("one", one())
    k.thread("other", other())
    return x, y


def test_a_property_that_must_hold_after_every_step_sees_every_state():
    """The two stores commute, but what is between them is looked at."""

    def world(k, bad):
        x, y = two_words(k)
        k.always("not this one", lambda: (x.peek(), y.peek()) != bad)

    for bad in [(0, 1), (1, 0)]:
        report = explore(lambda k, bad=bad: world(k, bad), strategy="dpor")
        assert [finding.title for finding in report.findings] == ["not true: not this one"]
    assert explore(lambda k: world(k, (2, 2)), strategy="dpor").proved


def test_a_predicate_that_some_state_meets_is_met():
    """`sometimes` looks after every step as well."""

    def world(k):
        x, y = two_words(k)
        k.sometimes("only y", lambda: (x.peek(), y.peek()) == (0, 1))
        k.sometimes("only x", lambda: (x.peek(), y.peek()) == (1, 0))

    assert explore(world, strategy="dpor").unmet == []


def test_a_sometimes_that_the_model_reaches_costs_nothing():
    """It belongs to a step of its own thread."""

    def world(k):
        two_words(k)
        k.sometimes("reached by the model")

    assert explore(world, strategy="dpor").executions == 1


def test_what_is_judged_at_the_end_costs_nothing():
    """All equivalent executions end in the same state."""

    def world(k):
        x, y = two_words(k)
        k.at_end("both", lambda: x.peek() == y.peek() == 1)

    report = explore(world, strategy="dpor")
    assert (report.executions, report.proved) == (1, True)


def test_a_finding_does_not_hide_what_later_steps_of_others_would_have_done():
    """The store that avoids the finding comes late in its thread, far beyond where the execution ended."""

    def world(k):
        x = k.cell("x", 0)
        own = k.cell("own", 0)

        def looks():
            seen = yield x.read_once()
            k.find("kvm-bug", f"saw {seen}")

        def stores():
            for i in range(5):
                yield own.write_once(i)
            yield x.write_once(1)

        k.thread("looks", looks())
        k.thread("stores", stores())

    report = explore(world, strategy="dpor")
    assert sorted(finding.title for finding in report.findings) == ["saw 0", "saw 1"]


def test_a_step_limit_leaves_the_search_inconclusive():
    """A loop that never ends is cut, and nothing is proved."""

    def world(k):
        x = k.cell("x", 0)

        def spins():
            while not (yield x.read_once()):
                pass

        def stores():
            yield x.write_once(1)

        k.thread("spins", spins())
        k.thread("stores", stores())

    report = explore(world, strategy="dpor", executions=50, max_steps=500)
    assert (report.verdict, report.proved) == ("inconclusive", False)
    assert report.cut
    assert report.complete


def awaiting(k):
    """A thread that waits for a word which is right for a moment only."""
    x = k.cell("x", 0)
    seen = []

    def waits():
        seen.append((yield x.wait_until(lambda value: value == 1)))

    def stores():
        yield x.write_once(1)
        yield x.write_once(2)

    k.thread("waits", waits())
    k.thread("stores", stores())


def test_values_take_a_wait_as_one_step():
    """When the wait begins does not count; that it may miss the moment does."""
    plain = explore(awaiting, strategy="dpor")
    values = explore(awaiting, strategy="dpor:values")

    assert [f.kind for f in plain.findings] == [f.kind for f in values.findings] == ["deadlock"]
    assert (plain.complete, values.complete) == (2, 1)
    assert (plain.executions, values.executions) == (3, 2)


def test_values_take_a_store_that_changes_nothing_as_a_read():
    """n threads raise a flag that is up already: one order, where plain `dpor` sees n! of them."""

    def world(k):
        flag = k.cell("flag", True)

        def raises():
            yield flag.write_once(True)

        for i in range(3):
            k.thread(f"t{i}", raises())

    assert explore(world, strategy="dpor").complete == 6
    assert explore(world, strategy="dpor:values").complete == 1


def test_nothing_is_left_listening_after_a_search():
    """Notes are taken for the search that wants them alone."""
    from sim.dependence import Notes

    explore(readers(2), strategy="dpor", executions=2)
    assert Notes.taken is None
    Kernel(window_ns=INFINITY)
