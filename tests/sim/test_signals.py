"""Wake-ups, bounded waits, acknowledged messages."""

from __future__ import annotations

import pytest

from sim import TIMED_OUT, Kernel, explore


def wait_for(k, signal, log, name="waiter", *, after=0, bound_ns=None, take=True):
    """Wait once; note what came and when."""
    k.spend(after)
    log.append((name, (yield signal.wait(bound_ns, take=take)), k.now))


def raise_at(k, signal, *times):
    """Raise the signal at these times."""
    for at in times:
        k.spend(at - k.now)
        yield signal.raise_()


@pytest.mark.parametrize(("raised_ns", "after_ns", "when_ns"), [(30, 0, 30), (0, 30, 30)])
def test_a_signal_is_not_lost(raised_ns, after_ns, when_ns):
    """Raised before or after the wait begins: the waiter gets it."""
    k, log = Kernel(), []
    signal = k.signal("s")
    k.thread("waiter", wait_for(k, signal, log, after=after_ns))
    k.thread("raiser", raise_at(k, signal, raised_ns))
    k.execute()

    assert log == [("waiter", True, when_ns)]
    assert signal.value is False


def test_one_signal_wakes_one_taker():
    """The second taker waits for the second signal."""
    k, log = Kernel(), []
    signal = k.signal("s")
    k.thread("first", wait_for(k, signal, log, "first"))
    k.thread("second", wait_for(k, signal, log, "second", after=1))
    k.thread("raiser", raise_at(k, signal, 10, 20))
    k.execute()

    assert log == [("first", True, 10), ("second", True, 20)]


def test_a_latch_wakes_all_and_stays():
    """With `take=False` nobody clears it, early or late."""
    k, log = Kernel(), []
    signal = k.signal("s")
    for index, after in enumerate([0, 5, 30]):
        k.thread(f"w{index}", wait_for(k, signal, log, f"w{index}", after=after, take=False))
    k.thread("raiser", raise_at(k, signal, 10))
    k.execute()

    assert log == [("w0", True, 10), ("w1", True, 10), ("w2", True, 30)]
    assert signal.value is True


def test_a_bounded_wait_times_out():
    """After its bound the thread goes on with TIMED_OUT, and a later signal finds no waiter."""
    k, log = Kernel(), []
    signal = k.signal("s")
    k.thread("waiter", wait_for(k, signal, log, bound_ns=25))
    k.thread("raiser", raise_at(k, signal, 40))
    k.execute()

    assert log == [("waiter", TIMED_OUT, 25)]
    assert signal.value is True
    assert signal.waiters == []


def test_a_bounded_wait_that_is_answered_does_not_time_out():
    """Its time-out leaves no trace, nor does it hold up the end."""
    k, log = Kernel(), []
    signal = k.signal("s")
    k.thread("waiter", wait_for(k, signal, log, bound_ns=25))
    k.thread("raiser", raise_at(k, signal, 10))
    k.execute()

    assert log == [("waiter", True, 10)]
    assert k.now == 10


def test_a_search_sees_both_ends_of_a_bounded_wait():
    """With an infinite window a time-out may come before the signal, and the signal before the time-out."""

    def world(k):
        log = []
        signal = k.signal("s")
        k.thread("waiter", wait_for(k, signal, log, bound_ns=25))
        k.thread("raiser", raise_at(k, signal, 40))
        k.sometimes("answered", lambda: bool(log) and log[0][1] is True)
        k.sometimes("timed out", lambda: bool(log) and log[0][1] is TIMED_OUT)
        k.at_end("one of the two", lambda: len(log) == 1)
        # `sometimes` is asked after steps: give it one to be asked after.
        k.thread("observer", raise_at(k, k.signal("end"), 50, 60))

    assert explore(world, executions=200).clean


def test_an_acknowledged_message_is_two_signals():
    """What IPIs are built on: the sender goes on when the target has answered."""
    k, log = Kernel(), []
    kick, acknowledged = k.signal("kick"), k.signal("acknowledged")

    def target():
        while True:
            yield kick.wait()
            k.spend(700)
            yield acknowledged.raise_()

    def sender():
        for _ in range(2):
            yield kick.raise_()
            yield acknowledged.wait()
            log.append(k.now)

    k.thread("target", target(), daemon=True)
    k.thread("sender", sender())
    k.execute()

    assert log == [700, 1400]
    assert k.findings == []  # a daemon that waits at the end is no deadlock


def test_a_wait_that_nobody_answers_is_a_deadlock():
    """The title names the waiter, the details the signal."""
    k = Kernel()
    k.thread("waiter", wait_for(k, k.signal("kick"), []))
    k.execute()

    (finding,) = k.findings
    assert (finding.kind, finding.title) == ("deadlock", "nobody can move: waiter")
    assert finding.details == {"waiter": "wait for kick held by nobody"}
