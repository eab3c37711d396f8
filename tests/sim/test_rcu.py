"""RCU: what a grace period waits for, and the use after free that comes of not waiting."""

from __future__ import annotations

from sim import Kernel, explore, free_cell


def unlink_and_free(k, *, wait):
    """A reader follows a pointer; a writer unlinks the object and frees it, with call_rcu or at once."""
    rcu = k.rcu()
    target = k.cell("object", 7)
    pointer = k.cell("pointer", target)

    def reader():
        yield rcu.read_lock()
        found = yield pointer.load_acquire()
        if found is not None:
            k.reached("the reader holds the object")
            yield found.read_once()
        yield rcu.read_unlock()

    def writer():
        yield pointer.store_release(None)
        if wait:
            rcu.call("free the object", lambda: free_cell(target))
        else:
            free_cell(target)
        yield k.cell("done", 0).write_once(1)

    k.thread("reader", reader())
    k.thread("writer", writer())
    k.sometimes("the reader holds the object")


def test_freeing_too_early_is_a_use_after_free():
    """Without a grace period the reader may still hold the object."""
    report = explore(lambda k: unlink_and_free(k, wait=False), executions=200)

    (finding,) = report.findings
    assert (finding.kind, finding.title) == ("uaf-object", "reader touches object after it was freed")
    again = explore(lambda k: unlink_and_free(k, wait=False), strategy=f"replay:{finding.schedule}")
    assert [f.fingerprint for f in again.findings] == [finding.fingerprint]


def test_freeing_after_a_grace_period_is_right():
    """call_rcu waits for every reader that may hold the object."""
    report = explore(lambda k: unlink_and_free(k, wait=True), executions=500)

    assert report.clean
    assert report.complete == 500


def test_synchronize_waits_for_the_sections_open_at_its_start_only():
    """A section that opens during the grace period does not prolong it; nested sections close with the outermost."""
    k, log = Kernel(), []
    rcu = k.rcu()

    def reader(enters, leaves):
        k.spend(enters)
        yield rcu.read_lock()
        yield rcu.read_lock()
        yield rcu.read_unlock()
        k.spend(leaves - enters)
        yield rcu.read_unlock()

    def writer():
        k.spend(10)
        yield rcu.synchronize()
        log.append(k.now)
        k.spend(1000)
        yield rcu.synchronize()
        log.append(k.now)

    k.thread("before", reader(0, 50))
    k.thread("during", reader(20, 90))
    k.thread("writer", writer())
    k.execute()

    assert log == [50, 1050]
    assert k.findings == []


def test_barrier_waits_for_the_callbacks_queued_so_far():
    """rcu_barrier: they have run when it returns, in their order."""
    k, log = Kernel(), []
    rcu = k.rcu()

    def steps():
        yield rcu.barrier()
        rcu.call("first", lambda: log.append("first"))
        rcu.call("second", lambda: log.append("second"))
        yield rcu.barrier()
        log.append("after")

    k.thread("a", steps())
    k.execute()

    assert log == ["first", "second", "after"]


def test_a_callback_may_queue_another():
    """It runs after a grace period of its own."""
    k, log = Kernel(), []
    rcu = k.rcu()

    def first():
        log.append("first")
        rcu.call("second", lambda: log.append("second"))

    def steps():
        rcu.call("first", first)
        yield k.cell("x", 0).read()

    k.thread("a", steps())
    k.execute()

    assert log == ["first", "second"]


def test_synchronize_inside_a_read_section_is_a_deadlock():
    """The thread would wait for itself."""
    k = Kernel()

    def steps():
        yield k.rcu().read_lock()
        yield k.rcu().synchronize()

    k.thread("a", steps())
    k.execute()

    assert [f.kind for f in k.findings] == ["deadlock"]


def test_leaving_a_section_that_was_never_entered_is_a_finding():
    """Kind lock-rule, like any unbalanced unlock."""
    k = Kernel()

    def steps():
        yield k.rcu().read_unlock()

    k.thread("a", steps())
    k.execute()

    assert [(f.kind, f.title) for f in k.findings] == [
        ("lock-rule", "a leaves rcu but is not in a read section")
    ]


def test_assert_inside():
    """rcu_read_lock_held."""
    k = Kernel(stop_at_finding=False)

    def steps():
        yield k.rcu().read_lock()
        k.rcu().assert_inside()
        yield k.rcu().read_unlock()
        k.rcu().assert_inside()

    k.thread("a", steps())
    k.execute()

    assert [f.title for f in k.findings] == ["a is required to be in a read section of rcu"]


def test_srcu_domains_do_not_wait_for_each_other():
    """A reader of one domain does not hold up another's grace period."""
    k, log = Kernel(), []
    one, two = k.srcu("one"), k.srcu("two")

    def reader():
        yield one.read_lock()
        k.spend(100)
        yield one.read_unlock()

    def writer():
        k.spend(1)
        yield two.synchronize()
        log.append(k.now)
        yield one.synchronize()
        log.append(k.now)

    k.thread("reader", reader())
    k.thread("writer", writer())
    k.execute()

    assert log == [1, 100]
