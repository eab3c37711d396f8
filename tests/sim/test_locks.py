"""Locks: fair, and strict about who releases what."""

from __future__ import annotations

import pytest

from sim import Kernel, explore


def lost_update(k, lock=None):
    """Two increments; with a lock, right."""
    x = k.cell("x", 0)

    def increment():
        if lock is not None:
            yield k_lock.lock()
        value = yield x.read_once()
        yield x.write_once(value + 1)
        if lock is not None:
            yield k_lock.unlock()

    k_lock = k.spinlock("lock")
    k.thread("a", increment())
    k.thread("b", increment())
    k.at_end("both increments count", lambda: x.peek() == 2)


def test_a_lock_prevents_the_lost_update():
    """The control of test_explore's lost update."""
    assert explore(lambda k: lost_update(k, "lock"), executions=200).clean
    assert not explore(lost_update, executions=200).clean


def lock_inversion(k):
    """AB-BA."""
    a, b = k.spinlock("lock A"), k.mutex("lock B")

    def take(first, second):
        yield first.lock()
        yield second.lock()
        yield second.unlock()
        yield first.unlock()

    k.thread("t0", take(a, b))
    k.thread("t1", take(b, a))


def test_lock_inversion_is_a_deadlock_with_names():
    """The finding says who waits for what, and who holds it; its schedule leads there again."""
    report = explore(lock_inversion, executions=100)

    (finding,) = report.findings
    assert finding.kind == "deadlock"
    assert finding.details == {
        "t0": "write-lock lock B held by t1",
        "t1": "write-lock lock A held by t0",
        "cycle": "t0: write-lock lock B, held by t1; t1: write-lock lock A, held by t0",
    }
    assert set(finding.threads) == {"t0", "t1"}
    assert all("test_locks.py" in place for place in finding.where)
    again = explore(lock_inversion, strategy=f"replay:{finding.schedule}")
    assert [f.fingerprint for f in again.findings] == [finding.fingerprint]


def visits(*plan, line_ns=0):
    """Threads (name, mode, arrives, stays) on one rwlock; returns (name, entered, left) in order of entry."""
    k, log = Kernel(), []
    lock = k.rwlock("mmu_lock")
    lock.line_ns = line_ns

    def visit(name, mode, stays):
        yield lock.read_lock() if mode == "read" else lock.write_lock()
        entered = k.now
        k.spend(stays)
        yield lock.read_unlock() if mode == "read" else lock.write_unlock()
        log.append((name, entered, k.now))

    for name, mode, arrives, stays in plan:
        k.thread(name, visit(name, mode, stays), start_ns=arrives)
    k.execute()
    assert k.findings == []
    return sorted(log, key=lambda entry: (entry[1], entry[0]))


def test_readers_go_in_together():
    """Nobody waits."""
    assert visits(("r1", "read", 0, 10), ("r2", "read", 1, 10)) == [("r1", 0, 10), ("r2", 1, 11)]


def test_a_waiting_writer_holds_back_new_readers():
    """r2 comes while r1 is inside, but after the writer: it goes in after it."""
    assert visits(("r1", "read", 0, 100), ("w", "write", 10, 100), ("r2", "read", 20, 100)) == [
        ("r1", 0, 100),
        ("w", 100, 200),
        ("r2", 200, 300),
    ]


def test_consecutive_readers_at_the_head_go_in_together_and_stop_at_a_writer():
    """The queue is first come, first served: r1 and r2 together, then w2, then r3."""
    entered = visits(
        ("w1", "write", 0, 100),
        ("r1", "read", 1, 50),
        ("r2", "read", 2, 50),
        ("w2", "write", 3, 50),
        ("r3", "read", 4, 50),
    )

    assert [(name, at) for name, at, _ in entered] == [
        ("w1", 0),
        ("r1", 100),
        ("r2", 100),
        ("w2", 150),
        ("r3", 200),
    ]


def test_writers_are_served_in_order_of_arrival():
    """No barging, no starvation."""
    entered = visits(*[(f"w{i}", "write", i, 10) for i in range(5)])

    assert [name for name, _, _ in entered] == ["w0", "w1", "w2", "w3", "w4"]
    assert [at for _, at, _ in entered] == [0, 10, 20, 30, 40]


def test_the_lock_word_moves_one_thread_at_a_time():
    """With 5 ns a transfer, the n-th of n readers that come together has its word n transfers later."""
    left = visits(*[(f"r{i}", "read", 0, 0) for i in range(4)], line_ns=5)

    assert sorted(at for _, _, at in left) == [5, 10, 15, 20]


def test_mutual_exclusion_under_every_schedule_tried():
    """Never a writer beside anybody."""

    def world(k):
        lock = k.rwlock("lock")
        inside = []

        def visit(mode):
            yield lock.read_lock() if mode == "r" else lock.write_lock()
            inside.append(mode)
            yield k.cell("x", 0).read_once()
            inside.remove(mode)
            yield lock.read_unlock() if mode == "r" else lock.write_unlock()

        for index, mode in enumerate("rrwrw"):
            k.thread(f"{mode}{index}", visit(mode))
        k.always("a writer is alone", lambda: "w" not in inside or len(inside) == 1)
        k.sometimes("two readers at once", lambda: inside == ["r", "r"])

    report = explore(world, executions=300)
    assert report.clean
    assert report.complete == 300


MISUSES = {
    "release of a lock it does not hold": (
        lambda lock: [lock.read_unlock()],
        "a releases mmu_lock but is not inside",
    ),
    "taken twice": (
        lambda lock: [lock.read_lock(), lock.read_lock()],
        "a takes mmu_lock for read but is already inside",
    ),
    "upgrade": (
        lambda lock: [lock.read_lock(), lock.write_lock()],
        "a takes mmu_lock for write but is already inside",
    ),
    "wrong unlock": (
        lambda lock: [lock.write_lock(), lock.read_unlock()],
        "a releases mmu_lock for read but holds it for write",
    ),
    "wrong unlock of a reader": (
        lambda lock: [lock.read_lock(), lock.write_unlock()],
        "a releases mmu_lock for write but holds it for read",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_of_a_lock_is_a_finding(name):
    """Kind lock-rule, one sentence, the place."""
    make, title = MISUSES[name]
    k = Kernel()
    lock = k.rwlock("mmu_lock")

    def steps():
        for access in make(lock):  # noqa: UP028 - values are sent in, which a list cannot take
            yield access

    k.thread("a", steps())
    k.execute()

    (finding,) = k.findings
    assert (finding.kind, finding.title) == ("lock-rule", title)
    assert "test_locks.py" in finding.where[0]


@pytest.mark.parametrize(
    ("take", "demand", "fine"),
    [
        (None, "assert_held", False),
        ("read_lock", "assert_held", True),
        ("write_lock", "assert_held", True),
        ("read_lock", "assert_held_for_read", True),
        ("write_lock", "assert_held_for_read", False),
        ("read_lock", "assert_held_for_write", False),
        ("write_lock", "assert_held_for_write", True),
    ],
)
def test_lockdep_assertions(take, demand, fine):
    """A precondition that does not hold is a finding of kind lock-rule."""
    k = Kernel()
    lock = k.rwlock("mmu_lock")

    def steps():
        if take is not None:
            yield getattr(lock, take)()
        getattr(lock, demand)()
        yield k.cell("x", 0).read()

    k.thread("a", steps())
    k.execute()

    assert [f.kind for f in k.findings] == ([] if fine else ["lock-rule"])


def test_contended_tells_whether_somebody_waits():
    """What rwlock_needbreak asks."""
    k, seen = Kernel(), []
    lock = k.rwlock("mmu_lock")

    def holder():
        yield lock.write_lock()
        seen.append(lock.contended)
        k.spend(10)
        yield k.cell("x", 0).read()
        seen.append(lock.contended)
        yield lock.write_unlock()

    def waiter():
        k.spend(5)
        yield lock.read_lock()
        yield lock.read_unlock()

    k.thread("holder", holder())
    k.thread("waiter", waiter())
    k.execute()

    assert seen == [False, True]
