"""Coverage: classes of executions, and pairs of places that conflicted."""

from __future__ import annotations

import inspect

import pytest

from sim import Kernel, explore
from sim.coverage import Pairs
from tests.sim.literature import filesystem, indexer, lastzero, readers
from tests.sim.worlds import lost_update


@pytest.mark.parametrize(
    ("world", "strategy", "classes"),
    [
        (readers(2), "dfs", 4),
        (readers(3), "random", 8),
        (readers(6), "dpor", 64),
        (lastzero(5), "dpor", 64),
        (indexer(12), "dpor", 8),
        (filesystem(14), "dpor", 2),
        (filesystem(16), "dpor", 8),
    ],
)
def test_classes_are_the_published_traces(world, strategy, classes):
    """However many interleavings of each are made: cells, failed cmpxchg and locks."""
    report = explore(world, strategy=strategy, executions=1000 if strategy == "random" else None)

    assert report.classes == len(report.orders) == classes
    assert sum(report.orders.values()) == report.executions


def two_readers(k, *, writer):
    """Two readers of one rwlock, who also read under SRCU; and, if asked for, a writer of the lock."""
    lock, srcu = k.rwlock("lock"), k.srcu("srcu")

    def read():
        yield lock.read_lock()
        yield lock.read_unlock()
        yield srcu.read_lock()
        yield srcu.read_unlock()

    def write():
        yield lock.write_lock()
        yield lock.write_unlock()

    k.thread("a", read())
    k.thread("b", read())
    if writer:
        k.thread("c", write())


def test_readers_of_a_lock_and_of_rcu_commute():
    """All interleavings are of one class; with a writer, it is before, between (in two ways) or after the readers."""
    assert explore(lambda k: two_readers(k, writer=False), executions=200).classes == 1
    assert explore(lambda k: two_readers(k, writer=True), executions=200).classes == 4


def test_an_estimate_of_what_is_unseen_falls_with_the_executions():
    """And is nothing once everything was seen often."""
    few, many = (explore(readers(6), executions=n) for n in (30, 3000))

    assert many.classes == 64
    assert few.classes < 64
    assert few.unseen > 0.2
    assert many.unseen < 0.01
    assert f"of about {few.unseen:.2g}" in few.claim


def line_of(function, text):
    """`file:line function` of the line in a function's own inner function that holds the text."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [first + i for i, line in enumerate(lines) if text in line]
    return f"sim/worlds.py:{number} increment"


def test_the_pairs_of_the_lost_update():
    """Write after the other's read, read after the other's write, write after write; never read after read."""
    read, write = line_of(lost_update, "x.read_once"), line_of(lost_update, "x.write_once")
    report = explore(lost_update, executions=100, pairs_every=1)

    assert set(report.pairs) == {
        f"{read} -> {write} on x",
        f"{write} -> {read} on x",
        f"{write} -> {write} on x",
    }
    assert list(report.pairs) == sorted(report.pairs)


def test_pairs_are_collected_in_a_sample_and_change_nothing():
    """Every third execution of seven is three; none if nobody asks."""
    looked = {every: explore(lost_update, executions=7, pairs_every=every) for every in (0, 1, 3)}

    assert looked[0].pairs == {}
    assert sum(looked[3].pairs.values()) < sum(looked[1].pairs.values())
    assert len({report.digest for report in looked.values()}) == 1


def pairs_of(schedule, *programs):
    """The pairs of one execution of programs of accesses to a word and a lock, as `first thread, second thread`."""
    k, pairs = Kernel(), Pairs()
    words = {name: k.cell(f"{name}[7]", 0) for name in "xy"}

    def read(word):
        yield words[word].read_once()

    def write(word):
        yield words[word].write_once(1)

    def fail(word):
        yield words[word].cmpxchg(99, 1)

    def steps(program):
        for action, word in program:
            yield from {"r": read, "w": write, "f": fail}[action](word)

    for i, program in enumerate(programs):
        k.thread(str(i), steps(program))
    pairs.attach(k)
    order = [*map(str, range(len(programs))), *schedule]
    k.window_ns = 1 << 62
    k.execute(lambda kernel, candidates: [t.name for t in candidates].index(order[kernel.steps]))
    return {
        (one.split()[-1], other.split()[-1], family): n for (one, other, family), n in pairs.counts.items()
    }


def test_reads_between_do_not_hide_what_they_commute_with():
    """A write is followed by every read after it, and all of them by the next write; one's own steps are no pair."""
    assert pairs_of("0121", ["wx"], ["rx", "wx"], ["rx"]) == {
        ("write", "read", "x"): 2,
        ("read", "write", "x"): 1,
    }
    assert pairs_of("0011", ["wx", "rx"], ["rx", "rx"]) == {("write", "read", "x"): 2}


def test_a_failed_cmpxchg_is_a_read():
    """It conflicts with writes alone."""
    assert pairs_of("01", ["fx"], ["rx"]) == {}
    assert pairs_of("01", ["wx"], ["fx"]) == {("write", "fail", "x"): 1}


def test_words_are_told_apart_and_named_by_their_family():
    """`x[7]` is an `x`; accesses to two words are no pair."""
    assert pairs_of("01", ["wx"], ["wy"]) == {}


def test_locks_have_pairs_too():
    """Their acquisitions conflict, unless both are for read."""

    def world(k, mode):
        lock = k.rwlock("lock")

        def locker():
            yield getattr(lock, f"{mode}_lock")()
            yield getattr(lock, f"{mode}_unlock")()

        k.thread("a", locker())
        k.thread("b", locker())

    assert not explore(lambda k: world(k, "read"), executions=20, pairs_every=1).pairs
    (pair,) = explore(lambda k: world(k, "write"), executions=20, pairs_every=1).pairs
    assert pair.endswith("locker on lock")
