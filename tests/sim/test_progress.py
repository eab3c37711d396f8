"""Livelock, starvation and partial deadlock: found where they are, and only there."""

from __future__ import annotations

import pytest

from sim import Kernel, explore
from sim.progress import STARVED, Progress
from sim.waits import cycle


def watched(make):
    """The world with the progress checker attached."""

    def world(kernel: Kernel) -> None:
        Progress(kernel)
        make(kernel)

    return world


def polite(kernel):
    """Each backs off when it sees that the other wants to go, and they never agree: the classic livelock."""
    wants = [kernel.cell("wants0", False), kernel.cell("wants1", False)]

    def passer(me):
        while True:
            yield wants[me].write_once(True)
            if not (yield wants[1 - me].read_once()):
                yield wants[me].write_once(False)
                kernel.progressed()
                return
            yield wants[me].write_once(False)
            kernel.retried("pass")

    kernel.thread("a", passer(0))
    kernel.thread("b", passer(1))


def test_a_livelock_is_found_by_a_schedule_that_keeps_them_in_step():
    """The lasso a b a b ...; no step limit is hit."""
    report = explore(watched(polite), strategy="replay:" + "a b " * 200, max_steps=2000)

    (finding,) = report.findings
    assert (finding.kind, report.cut) == ("livelock", 0)


def test_a_loop_that_others_can_end_is_no_livelock():
    """A thread polls a word that another one will set: whoever spins, the other is enabled and has not run."""

    def make(kernel):
        word = kernel.cell("word", 0)

        def poll():
            while not (yield word.read_once()):
                kernel.retried("poll")
            kernel.progressed()

        def set_():
            for _ in range(3):
                yield word.read_once()
            yield word.write_once(1)

        kernel.thread("poll", poll())
        kernel.thread("set", set_())

    for strategy in ("random", "pct:2", "replay:" + "poll " * 500):
        report = explore(watched(make), strategy=strategy, executions=100)
        assert [(finding.kind, finding.title) for finding in report.findings] == []
        assert report.complete == report.executions


def test_a_loop_that_nobody_can_end_is_a_livelock():
    """The word is never set, and the only other thread waits for ever as well."""

    def make(kernel):
        word = kernel.cell("word", 0)
        lock = kernel.mutex("m")

        def poll():
            yield lock.lock()
            while not (yield word.read_once()):
                kernel.retried("poll")

        def wait():
            yield lock.lock()

        kernel.thread("poll", poll())
        kernel.thread("wait", wait())

    report = explore(watched(make), strategy="replay:poll*2 wait*2", max_steps=1000)

    (finding,) = report.findings
    assert finding.kind == "livelock"
    assert finding.details == {"wait": "write-lock m"}


def test_a_counter_that_moves_is_no_livelock():
    """The state is never the same twice, so the step limit decides, not the checker."""

    def make(kernel):
        word = kernel.cell("word", 0)

        def count():
            while (yield word.fetch_add(1)) < 200:
                kernel.retried("count")

        kernel.thread("count", count())

    report = explore(watched(make), strategy="fifo")

    assert report.clean


@pytest.mark.parametrize(("rounds", "kinds"), [(STARVED * 4, ["starvation"]), (STARVED // 4, [])])
def test_a_thread_that_only_ever_retries_beside_others_that_progress_starves(rounds, kinds):
    """It polls a flag that is up whenever it looks; the other one gets on with its work."""

    def make(kernel):
        flag = kernel.cell("flag", 1)

        def unlucky():
            while (yield flag.fetch_add(0)):
                kernel.retried("flag")

        def lucky():
            for _ in range(rounds):
                yield flag.fetch_add(1)
                kernel.progressed()
            yield flag.write_once(0)

        kernel.thread("unlucky", unlucky())
        kernel.thread("lucky", lucky())

    report = explore(watched(make), strategy="random", executions=3)

    assert [finding.kind for finding in report.findings][:1] == kinds


def test_a_ring_of_two_is_found_while_a_third_thread_goes_on_for_ever():
    """The step limit is hit, and the report names who waits for whom."""

    def make(kernel):
        a, b = kernel.mutex("a"), kernel.mutex("b")
        word = kernel.cell("word", 0)

        def take(one, two):
            yield one.lock()
            yield two.lock()

        def busy():
            while True:
                yield word.fetch_add(1)

        kernel.thread("t0", take(a, b))
        kernel.thread("t1", take(b, a))
        kernel.thread("busy", busy(), daemon=True)

    report = explore(make, strategy="replay:t0*2 t1*2 t0 t1 busy*500", max_steps=200)

    (finding,) = report.findings
    assert finding.kind == "deadlock"
    assert finding.details == {"cycle": "t0: write-lock b, held by t1; t1: write-lock a, held by t0"}


def test_a_ring_through_a_grace_period_and_a_fair_queue_is_named():
    """r reads in SRCU and waits behind a writer for m; the writer's holder waits for the grace period."""

    def make(kernel):
        srcu, lock = kernel.srcu("srcu"), kernel.rwlock("m")

        def reader():
            yield srcu.read_lock()
            yield lock.read_lock()

        def deleter():
            yield lock.write_lock()
            yield srcu.synchronize()

        kernel.thread("r", reader())
        kernel.thread("d", deleter())

    report = explore(make, strategy="replay:r*2 d*2 r d")

    (finding,) = report.findings
    assert "r: read-lock m, held by d; d: synchronize srcu, held by r" in finding.details["cycle"]


def test_readers_behind_readers_do_not_wait_for_each_other():
    """A fair rwlock with two readers in line behind a writer: the graph has no ring."""

    def make(kernel):
        lock = kernel.rwlock("m")
        word = kernel.cell("word", 0)

        def reader():
            yield lock.read_lock()
            yield word.read_once()
            yield lock.read_unlock()

        def writer():
            yield lock.write_lock()
            yield word.read_once()
            yield lock.write_unlock()

        threads = [kernel.thread(f"r{n}", reader()) for n in range(3)] + [kernel.thread("w", writer())]
        kernel.always("no ring", lambda: not cycle(threads))

    assert explore(make, strategy="random", executions=200).clean
