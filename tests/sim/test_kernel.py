"""The clock, the threads, and the two loops that decide who goes next."""

from __future__ import annotations

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import INFINITY, Kernel, ModelBug
from sim.recorder import Recorder
from sim.strategies import first_by_time


def pick_first_by_time(_kernel, candidates):
    return first_by_time(candidates)


def pick_last_by_time(_kernel, candidates):
    return max(range(len(candidates)), key=lambda i: (candidates[i].due_ns, candidates[i].tie))


def clocked(k, log, name, *spends):
    """Touch a cell, spend, touch again, and so on; note when each access happened."""
    cell = k.cell(name, 0)
    for ns in spends:
        k.spend(ns)
        yield cell.read()
        log.append((name, k.now))


def test_spend_delays_the_next_access():
    """Time that a thread spends costs no step; its next access is due that much later."""
    k, log = Kernel(), []
    k.thread("a", clocked(k, log, "a", 10, 5))
    k.execute()

    assert log == [("a", 10), ("a", 15)]
    assert k.steps == 3  # the start and two accesses


def test_threads_spend_their_time_side_by_side():
    """Two threads that each spend 10 ns and end leave the clock at 10, not at 20."""
    k = Kernel()

    def spend_and_end():
        yield k.cell("x", 0).read()
        k.spend(10)

    k.thread("a", spend_and_end())
    k.thread("b", spend_and_end())
    k.execute()

    assert k.now == 10


def test_a_thread_may_start_later():
    """`start_ns` is from now."""
    k, log = Kernel(), []
    k.thread("late", clocked(k, log, "late", 1), start_ns=100)
    k.thread("early", clocked(k, log, "early", 1))
    k.execute()

    assert log == [("early", 1), ("late", 101)]


def test_now_ns_includes_what_the_thread_has_spent():
    """The running thread's clock is ahead of the world's until its next access."""
    k, seen = Kernel(), []

    def steps():
        yield k.cell("x", 0).read()
        k.spend(7)
        seen.append((k.now, k.now_ns))

    k.thread("a", steps())
    k.execute()

    assert seen == [(0, 7)]


def order_under(window_ns):
    k, log = Kernel(window_ns=window_ns), []
    k.thread("a", clocked(k, log, "a", 0), start_ns=10)
    k.thread("b", clocked(k, log, "b", 0), start_ns=50)
    k.thread("c", clocked(k, log, "c", 0), start_ns=90)
    k.execute(pick_last_by_time)
    return log


def test_window_0_leaves_no_choice_but_ties():
    """Whatever the strategy wants, the earliest goes first."""
    assert order_under(0) == [("a", 10), ("b", 50), ("c", 90)]


def test_a_window_lets_pass_what_is_due_within_it():
    """With 40 ns, b (50) may overtake a (10); then a, which is late, is due at 50, and c (90) overtakes it too."""
    assert order_under(40) == [("b", 50), ("c", 90), ("a", 90)]
    assert order_under(39) == [("a", 10), ("b", 50), ("c", 90)]


def test_an_infinite_window_allows_every_order_and_time_never_runs_backwards():
    """Who is overtaken is late: the clock stays where it was."""
    assert order_under(INFINITY) == [("c", 90), ("b", 90), ("a", 90)]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(0, 7), max_size=30),
    st.sampled_from([0, 5, 20, INFINITY]),
)
def test_time_never_runs_backwards(spends, picks, window_ns):
    """Under any strategy and window, the clock only goes forwards."""
    k, log = Kernel(window_ns=window_ns), []
    for index, program in enumerate(spends):
        k.thread(f"t{index}", clocked(k, log, f"t{index}", *program))
    choices = iter(picks)
    k.execute(lambda _kernel, candidates: next(choices, 0) % len(candidates))

    times = [now for _, now in log]
    assert len(times) == sum(map(len, spends))
    assert times == sorted(times)


def test_ties_are_broken_by_the_seed():
    """Seed 0 keeps the order of filing; other seeds draw one, always the same."""

    def order(seed):
        k, log = Kernel(seed), []
        for name in "abcdef":
            k.thread(name, clocked(k, log, name, 0, 0))
        k.execute()
        return "".join(name for name, _ in log)

    assert order(0) == "abcdefabcdef"
    assert order(1) == order(1)
    assert len({order(seed) for seed in range(10)}) > 5


def test_ordinary_simpy_processes_run_in_a_kernel():
    """Timeouts, processes and resources of SimPy keep their meaning beside threads."""
    k, log = Kernel(), []
    machine = simpy.Resource(k, capacity=1)

    def customer(name):
        with machine.request() as request:
            yield request
            yield k.timeout(10)
            log.append((name, k.now))

    k.process(customer("p"))
    k.process(customer("q"))
    k.thread("a", clocked(k, log, "a", 15))
    k.execute()

    assert log == [("p", 10), ("a", 15), ("q", 20)]


def test_a_thread_can_wait_for_a_simpy_event():
    """The thread gets the event's value, at the event's time."""
    k, seen = Kernel(), []

    def steps():
        value = yield k.timeout(25, "rung")
        seen.append((value, k.now))
        yield k.cell("x", 0).read()

    k.thread("a", steps())
    k.execute()

    assert seen == [("rung", 25)]
    assert k.findings == []


def test_a_simpy_process_can_wait_for_a_thread_also_for_one_that_has_ended():
    """A thread is a SimPy process: it can be yielded and has a value."""
    k, seen = Kernel(), []

    def steps():
        k.spend(5)
        yield k.cell("x", 0).read()
        return "done"

    thread = k.thread("a", steps())

    def watcher(delay):
        yield k.timeout(delay)
        value = yield thread
        seen.append((value, k.now))

    k.process(watcher(0))
    k.process(watcher(30))
    k.execute()

    assert seen == [("done", 5), ("done", 30)]


def test_run_until_a_time_stops_before_it():
    """Like SimPy's: what is due at `until` has not happened, and the clock stands there."""
    k, log = Kernel(), []
    k.thread("a", clocked(k, log, "a", 10, 10, 10))
    k.run(until=20)

    assert log == [("a", 10)]
    assert k.now == 20
    k.run()
    assert log == [("a", 10), ("a", 20), ("a", 30)]


def test_run_until_an_event_stops_at_it():
    """Nothing that comes after the event has happened, be it SimPy's or a thread's; a thread is an event too."""
    k, log = Kernel(), []

    def ticker():
        while True:
            yield k.timeout(1)
            log.append(k.now)

    def steps():
        k.spend(3)
        yield k.cell("x", 0).read()
        return "value"

    k.process(ticker())
    bell = k.timeout(2, "bell")
    thread = k.thread("a", steps())

    assert k.run(until=bell) == "bell"
    assert k.now == 2
    assert k.run(until=thread) == "value"
    assert k.now == 3
    assert max(log) <= 3


def test_join_waits_for_the_end_and_gives_the_value():
    """Joining a thread that has ended already returns at once."""
    k, seen = Kernel(), []

    def worker():
        k.spend(40)
        yield k.cell("x", 0).read()
        k.spend(2)
        return "result"

    def boss():
        seen.append(((yield k.join(thread)), k.now))
        seen.append(((yield k.join(thread)), k.now))

    thread = k.thread("worker", worker())
    k.thread("boss", boss())
    k.execute()

    assert seen == [("result", 42), ("result", 42)]
    assert not thread.is_alive


def test_a_world_of_exactly_max_steps_ends_and_one_more_is_exhausted():
    """The bound is on steps taken; only who wants more than it is cut."""

    def exhausted(max_steps, pick):
        k = Kernel(max_steps=max_steps, window_ns=INFINITY if pick else 0)
        k.thread("a", clocked(k, [], "a", 0, 0))
        k.execute(pick)
        return k.exhausted, k.steps

    for pick in (None, pick_first_by_time):
        assert exhausted(3, pick) == (False, 3)
        assert exhausted(2, pick) == (True, 2)


def test_a_thread_that_yields_nonsense_is_a_defect_of_the_model():
    """The message says who, what and where."""
    k = Kernel()

    def steps():
        yield 42

    k.thread("a", steps())
    with pytest.raises(ModelBug, match=r"a yielded 42, which is not an access .*test_kernel.py:\d+ steps"):
        k.execute()


def test_prepare_runs_steps_while_the_world_is_built():
    """No thread, no time, no step; what would have to wait is a defect."""
    k = Kernel()
    cell = k.cell("x", 0)

    def build():
        yield cell.write(3)
        return (yield cell.read())

    def wait():
        yield cell.wait_until(lambda value: value == 9)

    assert k.prepare(build()) == 3
    assert (k.now, k.steps) == (0, 0)
    with pytest.raises(ModelBug, match="world building waits for wait until x"):
        k.prepare(wait())


def test_closing_drops_what_still_runs():
    """A thread that the end of the execution cuts off sees GeneratorExit, once."""
    k, log = Kernel(max_steps=2), []

    def steps():
        try:
            while True:
                yield k.cell("x", 0).read()
        except GeneratorExit:
            log.append("closed")
            raise

    k.thread("a", steps())
    k.execute()

    assert log == ["closed"]


OPERATIONS = st.one_of(
    st.tuples(st.just("spend"), st.integers(0, 5)),
    st.tuples(st.just("add"), st.integers(0, 2)),
    st.tuples(st.just("swap"), st.integers(0, 2)),
    st.tuples(st.just("read section"), st.integers(0, 1)),
    st.tuples(st.just("write section"), st.integers(0, 1)),
    st.tuples(st.just("raise"), st.integers(0, 1)),
    st.tuples(st.just("await"), st.integers(0, 20)),
    st.tuples(st.just("timeout"), st.integers(1, 9)),
    st.tuples(st.just("rcu"), st.just(0)),
    st.tuples(st.just("call"), st.just(0)),
)


def program(k, cells, locks, signal, operations):
    """A small program made of everything the engine offers."""
    for verb, n in operations:
        if verb == "spend":
            k.spend(n)
        elif verb == "add":
            value = yield cells[n].read_once()
            yield cells[n].write_once(value + 1)
        elif verb == "swap":
            yield cells[n].cmpxchg(1, 7)
        elif verb == "read section":
            yield locks[n].read_lock()
            yield cells[n].read()
            yield locks[n].read_unlock()
        elif verb == "write section":
            yield locks[n].write_lock()
            yield cells[n].fetch_add(1)
            yield locks[n].write_unlock()
        elif verb == "raise":
            yield signal.raise_()
        elif verb == "await":
            yield signal.wait(n)
        elif verb == "timeout":
            yield k.timeout(n)
        elif verb == "rcu":
            yield k.rcu().read_lock()
            yield cells[0].read()
            yield k.rcu().read_unlock()
        else:
            k.rcu().call("note", lambda: None)
    k.spend(len(operations))


def digest_of(programs, seed, pick):
    k = Kernel(seed)
    recorder = Recorder()
    k.check(recorder)
    cells = [k.cell(f"x{i}", 0) for i in range(3)]
    locks = [k.rwlock(f"l{i}") for i in range(2)]
    locks[0].line_ns = 3
    signal = k.signal("s")
    for index, operations in enumerate(programs):
        k.thread(f"t{index}", program(k, cells, locks, signal, operations), start_ns=index % 2)
    k.execute(pick)
    return recorder.digest(), k.steps, k.now, [cell.peek() for cell in cells], [f.title for f in k.findings]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(st.lists(OPERATIONS, max_size=6), min_size=1, max_size=4),
    st.sampled_from([0, 1, 2**40]),
)
def test_loops_agree(programs, seed):
    """The by-time loop and the by-choice loop under fifo's pick take the same steps at the same times."""
    assert digest_of(programs, seed, None) == digest_of(programs, seed, pick_first_by_time)
