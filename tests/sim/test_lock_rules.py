"""Lock rules: what may be nested in what, and in which order, whether or not it went wrong."""

from __future__ import annotations

import pytest

from sim import Kernel, explore
from sim.lock_rules import LockRules


def world(*threads):
    """Threads on locks a and b, a mutex m, a semaphore s, an SRCU domain and RCU, under the rules."""

    def make(kernel: Kernel) -> None:
        rules = LockRules(kernel)
        locks = {name: kernel.spinlock(name) for name in "abg"}
        locks["m"] = kernel.mutex("m")
        locks["s"] = kernel.rwsem("s")
        locks["srcu"] = kernel.srcu("srcu")
        locks["rcu"] = kernel.rcu()
        kernel.check(lambda _kernel, thread, access: rules.observe(thread, access))
        for n, body in enumerate(threads):
            kernel.thread(f"t{n}", body(locks))

    return make


def nested(*names):
    """Take spinlocks or mutexes in this order, and release them in the other."""

    def body(locks):
        for name in names:
            yield locks[name].lock()
        for name in reversed(names):
            yield locks[name].unlock()

    return body


def kinds(make, strategy="fifo"):
    report = explore(make, strategy=strategy, executions=200)
    return {(finding.kind, finding.title) for finding in report.findings}


def test_an_inversion_is_found_in_an_execution_that_does_not_deadlock():
    """One thread after the other: `fifo` with a head start."""
    (found,) = kinds(world(nested("a", "b"), nested("b", "a")), "replay:t0*9 t1*9")

    assert found == ("lock-rule", "lock-order cycle: a > b > a")


def test_the_same_order_in_both_threads_is_fine():
    """No cycle."""
    assert kinds(world(nested("a", "b"), nested("a", "b")), "dfs") == set()


def test_a_common_gate_keeps_an_inversion_from_counting():
    """Both hold g exclusively, so they never meet (races.md R93)."""
    assert kinds(world(nested("g", "a", "b"), nested("g", "b", "a")), "dfs") == set()


def test_one_thread_that_takes_both_orders_is_no_cycle():
    """Nobody is there to meet it."""

    def body(locks):
        yield from nested("a", "b")(locks)
        yield from nested("b", "a")(locks)

    assert kinds(world(body)) == set()


def test_a_ring_of_three_locks_is_found():
    """a > b, b > g, g > a."""
    (found,) = kinds(world(nested("a", "b"), nested("b", "g"), nested("g", "a")), "replay:t0*9 t1*9 t2*9")

    assert found[1] == "lock-order cycle: a > b > g > a"


def test_a_grace_period_under_a_lock_that_a_reader_wants_is_a_cycle():
    """m > srcu by the one that waits, srcu > m by the reader."""

    def waiter(locks):
        yield locks["m"].lock()
        yield locks["srcu"].synchronize()
        yield locks["m"].unlock()

    def reader(locks):
        yield locks["srcu"].read_lock()
        yield locks["m"].lock()
        yield locks["m"].unlock()
        yield locks["srcu"].read_unlock()

    (found,) = kinds(world(waiter, reader), "replay:t0*9 t1*9")

    assert found == ("lock-rule", "lock-order cycle: m > srcu > m")


def _in_rcu(locks):
    yield locks["rcu"].read_lock()
    yield locks["m"].lock()


def _synchronize_under_spinlock(locks):
    yield locks["a"].lock()
    yield locks["rcu"].synchronize()


def _semaphore_under_spinlock(locks):
    yield locks["a"].lock()
    yield locks["s"].read_lock()


@pytest.mark.parametrize(
    ("body", "title"),
    [
        (nested("a", "m"), "a sleeping call under a: write-lock m"),
        (_semaphore_under_spinlock, "a sleeping call under a: read-lock s"),
        (_synchronize_under_spinlock, "a sleeping call under a: synchronize rcu"),
        (_in_rcu, "a sleeping call in a read section of rcu: write-lock m"),
    ],
)
def test_a_sleeping_call_where_none_may_be_is_found(body, title):
    """Before it sleeps: that it might is enough."""
    assert kinds(world(body)) == {("lock-rule", title)}


def test_sleeping_under_sleeping_locks_is_fine():
    """Mutex in semaphore, in an SRCU read section, and a spinlock inside."""

    def body(locks):
        yield locks["srcu"].read_lock()
        yield locks["s"].write_lock()
        yield from nested("m", "a")(locks)
        yield locks["s"].write_unlock()
        yield locks["srcu"].read_unlock()

    assert kinds(world(body)) == set()


def test_a_long_run_remembers_so_many_orders_and_no_more(monkeypatch):
    """What is known already is still judged: the cycle is closed by locks that were met before."""
    monkeypatch.setattr("sim.lock_rules.ORDERS_MAX", 3)

    def world(kernel):
        rules = LockRules(kernel)
        kernel.check(lambda _kernel, thread, access: rules.observe(thread, access))
        a, *pages = (kernel.mutex(name) for name in "abcdef")

        def steps():
            for page in pages:
                yield a.lock()
                yield page.lock()
                yield page.unlock()
                yield a.unlock()
            assert len(rules._known) == 3

        kernel.thread("t", steps())

    assert explore(world, strategy="fifo").clean
