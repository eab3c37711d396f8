"""The race detector, edge by edge: with it no interleaving races, without it one does; what a finding says; what is accepted."""

from __future__ import annotations

import re

import pytest

from sim import Kernel, explore
from sim.access import TIMED_OUT
from sim.kernel import INFINITY
from sim.races import attach, family
from sim.strategies.replay import Replay


def race_of(world, strategy="dpor"):
    """The data races that any interleaving of the world shows, as text; one of each class of interleavings is tried."""
    report = explore(world, strategy=strategy, max_steps=200)
    assert report.exhausted
    assert {finding.kind for finding in report.findings} <= {"data-race"}
    return [finding.title for finding in report.findings]


# The rule: two unordered accesses, one a write, one plain.

ACCESSES = {
    "plain read": (lambda cell: cell.read(), False, False),
    "read": (lambda cell: cell.read_once(), False, True),
    "load-acquire": (lambda cell: cell.load_acquire(), False, True),
    "plain write": (lambda cell: cell.write(1), True, False),
    "write": (lambda cell: cell.write_once(1), True, True),
    "store-release": (lambda cell: cell.store_release(1), True, True),
    "fetch_add": (lambda cell: cell.fetch_add(1), True, True),
    "xchg": (lambda cell: cell.xchg(1), True, True),
    "cmpxchg": (lambda cell: cell.cmpxchg(0, 1), True, True),
    "failed cmpxchg": (lambda cell: cell.cmpxchg(-1, 1), False, True),
}


@pytest.mark.parametrize("one", ACCESSES)
@pytest.mark.parametrize("other", ACCESSES)
def test_two_accesses_race_by_kcsans_rule(one, other):
    """Conflicting, and not both marked; in either order."""

    def world(k):
        cell = k.cell("x", 0)

        def thread(make):
            yield make(cell)

        k.thread("a", thread(ACCESSES[one][0]))
        k.thread("b", thread(ACCESSES[other][0]))

    (_, one_writes, one_marked), (_, other_writes, other_marked) = ACCESSES[one], ACCESSES[other]
    races = (one_writes or other_writes) and not (one_marked and other_marked)

    assert bool(race_of(world)) == races


# The edges: a world that is told whether to have it.


def program_order(k, kept):
    """The steps of one thread never race."""
    data = k.cell("data", 0)

    def both():
        yield data.write(1)
        yield data.read()

    def other():
        yield data.write(2)

    k.thread("a", both())
    if not kept:
        k.thread("b", other())


def mutex(k, kept):
    """One lock, or two."""
    data = k.cell("data", 0)

    def thread(lock):
        yield lock.lock()
        yield data.write(1)
        yield lock.unlock()

    lock = k.mutex("m")
    k.thread("a", thread(lock))
    k.thread("b", thread(lock if kept else k.spinlock("other")))


def writer_then_reader(k, kept):
    """A rwlock orders its writers with its readers, its readers not with one another."""
    data, lock = k.cell("data", 0), k.rwlock("rw")

    def reader():
        yield lock.read_lock()
        yield data.read()
        yield lock.read_unlock()

    def writer():
        yield lock.write_lock() if kept else lock.read_lock()
        yield data.write(1)
        yield lock.write_unlock() if kept else lock.read_unlock()

    k.thread("reader", reader())
    k.thread("writer", writer())


def release_then_acquire(k, kept):
    """A store-release and the load-acquire that sees it; a store that is only marked publishes nothing."""
    data, flag = k.cell("data", 0), k.cell("flag", 0)

    def publish():
        yield data.write(1)
        yield flag.store_release(1) if kept else flag.write_once(1)

    def use():
        if (yield flag.load_acquire()):
            yield data.read()

    k.thread("a", publish())
    k.thread("b", use())


def acquire_after_release(k, kept):
    """A load that is only marked acquires nothing, not in a read section of RCU either."""
    data, flag = k.cell("data", 0), k.cell("flag", 0)

    def publish():
        yield data.write(1)
        yield flag.store_release(1)

    def use():
        yield k.rcu().read_lock()
        if (yield flag.load_acquire() if kept else flag.read_once()):
            yield data.read()
        yield k.rcu().read_unlock()

    k.thread("a", publish())
    k.thread("b", use())


def unbroken_chain(k, kept):
    """A read-modify-write in between passes the release on, a marked store does not."""
    data, flag = k.cell("data", 0), k.cell("flag", 0)

    def publish():
        yield data.write(1)
        yield flag.store_release(1)

    def between():
        if (yield flag.read_once()) == 1:
            yield flag.fetch_add(1) if kept else flag.write_once(2)

    def use():
        if (yield flag.load_acquire()) == 2:
            yield data.read()

    k.thread("a", publish())
    k.thread("b", between())
    k.thread("c", use())


def chain_of_a_plain_store(k, kept):
    """A plain store breaks the chain as well (and races itself with who waits for it)."""
    data, flag, order = k.cell("data", 0), k.cell("flag", 0), k.mutex("m")

    def publish():
        yield data.write(1)
        yield flag.store_release(1)

    def between():
        yield order.lock()
        if (yield flag.read_once()) == 1:
            yield flag.fetch_add(1) if kept else flag.write(2)
        yield order.unlock()

    def use():
        yield order.lock()
        if (yield flag.load_acquire()) == 2:
            yield data.read()
        yield order.unlock()

    k.thread("a", publish())
    k.thread("b", between())
    k.thread("c", use())


def read_modify_writes(k, kept):
    """One is a release and an acquire; a marked load and store in its place are neither."""
    data, count = k.cell("data", 0), k.cell("count", 0)

    def increment():
        if kept:
            return (yield count.fetch_add(1))
        value = yield count.read_once()
        yield count.write_once(value + 1)
        return value

    def first():
        yield data.write(1)
        yield from increment()

    def second():
        if (yield from increment()):
            yield data.read()

    k.thread("a", first())
    k.thread("b", second())


def failed_cmpxchg_acquires(k, kept):
    """Who fails because of what another thread released has seen that."""
    data, flag = k.cell("data", 0), k.cell("flag", 0)

    def publish():
        yield data.write(1)
        yield flag.store_release(1)

    def use():
        seen = yield flag.cmpxchg(-1, 5) if kept else flag.read_once()
        if seen:
            yield data.read()

    k.thread("a", publish())
    k.thread("b", use())


def failed_cmpxchg_does_not_release(k, kept):
    """Only one that stores does."""
    data, flag = k.cell("data", 0), k.cell("flag", 0)

    def publish():
        yield data.write(1)
        yield flag.cmpxchg(0 if kept else 7, 1)
        yield k.cell("other", 0).write_once(1)

    def use():
        before = yield flag.fetch_add(0)
        if before or not kept:
            yield data.read()

    k.thread("a", publish())
    k.thread("b", use())


def barrier_before_a_marked_store(k, kept):
    """A full barrier (any read-modify-write) between data and flag publishes the data."""
    data, flag, any_word = k.cell("data", 0), k.cell("flag", 0), k.cell("any", 0)

    def publish():
        yield data.write(1)
        yield any_word.fetch_add(1) if kept else any_word.read_once()
        yield flag.write_once(1)

    def use():
        if (yield flag.load_acquire()):
            yield data.read()

    k.thread("a", publish())
    k.thread("b", use())


def barrier_after_a_marked_load(k, kept):
    """A full barrier between flag and data acquires what the flag's store published."""
    data, flag, any_word = k.cell("data", 0), k.cell("flag", 0), k.cell("any", 0)

    def publish():
        yield data.write(1)
        yield flag.store_release(1)

    def use():
        if (yield flag.read_once()):
            yield any_word.fetch_add(1) if kept else any_word.read_once()
            yield data.read()

    k.thread("a", publish())
    k.thread("b", use())


def wait_until(k, kept):
    """A wait for a word acquires what a release of it published, whether it had to wait or not."""
    data, flag = k.cell("data", 0), k.cell("flag", 0)

    def publish():
        yield data.write(1)
        yield flag.store_release(1) if kept else flag.write_once(1)

    def use():
        yield flag.wait_until(bool)
        yield data.read()

    k.thread("a", publish())
    k.thread("b", use())


def wait_until_sees_one_write(k, kept):
    """The wait takes what ended it, not what was stored by the time its thread goes on."""
    data, flag = k.cell("data", 0), k.cell("flag", 0)

    def publish():
        yield flag.store_release(1)
        yield data.write(1)
        yield flag.store_release(2)

    def use():
        seen = yield flag.wait_until(bool)
        if seen == (2 if kept else 1):
            yield data.read()

    k.thread("a", publish())
    k.thread("b", use())


def signal(k, kept):
    """Raising one, and the wait that takes it."""
    data, one = k.cell("data", 0), k.signal("one")
    other = k.signal("other")

    def raiser():
        yield data.write(1)
        yield one.raise_()

    def elsewhere():
        yield other.raise_()

    def waiter():
        yield one.wait() if kept else other.wait()
        yield data.read()

    k.thread("a", raiser())
    k.thread("c", elsewhere())
    k.thread("b", waiter())


def signal_set_by_a_plain_call(k, kept):
    """So does a device, inside another step."""
    data, done = k.cell("data", 0), k.signal("done")

    def device():
        if kept:
            yield data.write(1)
            done.set()
        else:
            done.set()
            yield data.write(1)

    def waiter():
        yield done.wait()
        yield data.read()

    k.thread("a", device())
    k.thread("b", waiter())


def signal_that_was_taken(k, kept):
    """What an earlier waiter took is not there for the next one; the phases are marked, and order nothing."""
    data, phase, one = k.cell("data", 0), k.cell("phase", 0), k.signal("one")

    def first():
        yield data.write(1)
        yield one.raise_()

    def between():
        yield one.wait(take=not kept)
        yield phase.write_once(1)

    def second():
        yield phase.wait_until(bool)
        yield one.raise_()
        yield phase.write_once(2)

    def waiter():
        yield phase.wait_until(lambda value: value == 2)
        yield one.wait()
        yield data.read()

    for thread in (first, between, second, waiter):
        k.thread(thread.__name__, thread())


def start_of_a_thread(k, kept):
    """What its maker did before."""
    data = k.cell("data", 0)

    def child():
        yield data.read()

    def parent():
        yield data.write_once(0)
        if kept:
            yield data.write(1)
            k.thread("child", child())
        else:
            k.thread("child", child())
            yield data.write(1)

    k.thread("parent", parent())


def end_of_a_thread(k, kept):
    """What it did, for who joins it."""
    data = k.cell("data", 0)

    def child():
        yield data.write(1)

    def parent():
        if kept:
            yield k.join(thread)
        yield data.read()

    thread = k.thread("child", child())
    k.thread("parent", parent())


def reader_before_a_grace_period(k, kept):
    """A section that may hold the old data ends before the grace period does."""
    data, pointer, rcu = k.cell("data", 0), k.cell("pointer", 1), k.rcu()

    def reader():
        yield rcu.read_lock()
        if (yield pointer.load_acquire()):
            yield data.read()
        yield rcu.read_unlock()

    def writer():
        yield pointer.write_once(0)
        if kept:
            yield rcu.synchronize()
        yield data.write(1)

    k.thread("reader", reader())
    k.thread("writer", writer())


def reader_after_a_grace_period_began(k, kept):
    """A section that begins after it began sees what was done before it."""
    data, phase, rcu = k.cell("data", 0), k.cell("phase", 0), k.rcu()

    def writer():
        yield data.write(1)
        if kept:
            yield rcu.synchronize()
        yield phase.write_once(1)

    def reader():
        yield rcu.read_lock()
        if (yield phase.read_once()):
            yield data.read()
        yield rcu.read_unlock()

    k.thread("writer", writer())
    k.thread("reader", reader())


def inner_section_is_no_new_one(k, kept):
    """A nested section began when the outermost one did. The reader peeks at the writer, which `dpor` cannot know."""
    data, phase, rcu = k.cell("data", 0), k.cell("phase", 0), k.rcu()

    def writer():
        yield data.write(1)
        yield rcu.synchronize()

    def reader():
        if not kept:
            yield rcu.read_lock()
        yield phase.read_once()
        yield rcu.read_lock()
        if any(thread.blocked_on is not None or thread.done for thread in k.threads[:1]):
            yield data.read()
        yield rcu.read_unlock()
        if not kept:
            yield rcu.read_unlock()

    k.thread("writer", writer())
    k.thread("reader", reader())


def srcu_domains(k, kept):
    """A grace period waits for the readers of its own domain."""
    data, pointer = k.cell("data", 0), k.cell("pointer", 1)
    mine, other = k.srcu("mine"), k.srcu("other")

    def reader():
        yield mine.read_lock()
        if (yield pointer.load_acquire()):
            yield data.read()
        yield mine.read_unlock()

    def writer():
        yield pointer.write_once(0)
        yield (mine if kept else other).synchronize()
        yield data.write(1)

    k.thread("reader", reader())
    k.thread("writer", writer())


def callback_after_a_grace_period(k, kept):
    """rcu_barrier waits for the callbacks, they for the readers."""
    data, pointer, rcu = k.cell("data", 0), k.cell("pointer", 1), k.rcu()

    def reader():
        yield rcu.read_lock()
        if (yield pointer.load_acquire()):
            yield data.read()
        yield rcu.read_unlock()

    def writer():
        yield pointer.write_once(0)
        rcu.call("free", lambda: None)
        if kept:
            yield rcu.barrier()
        yield data.write(1)

    k.thread("reader", reader())
    k.thread("writer", writer())


def callback_of_another_thread(k, kept):
    """Who waits for the callbacks is ordered after who queued one; that it was queued is told by a marked store only."""
    data, queued, rcu = k.cell("data", 0), k.cell("queued", 0), k.rcu()

    def caller():
        yield data.read_once()
        if kept:
            yield data.write(1)
        rcu.call("free", lambda: None)
        if not kept:
            yield data.write(1)
        yield queued.write_once(1)

    def waiter():
        yield queued.wait_until(bool)
        yield rcu.barrier()
        yield data.read()

    k.thread("caller", caller())
    k.thread("waiter", waiter())


EDGES = [
    program_order, mutex, writer_then_reader, release_then_acquire, acquire_after_release, unbroken_chain,
    chain_of_a_plain_store, read_modify_writes, failed_cmpxchg_acquires, failed_cmpxchg_does_not_release,
    barrier_before_a_marked_store, barrier_after_a_marked_load, wait_until, wait_until_sees_one_write, signal,
    signal_set_by_a_plain_call, signal_that_was_taken, start_of_a_thread, end_of_a_thread, reader_before_a_grace_period,
    reader_after_a_grace_period_began, inner_section_is_no_new_one, srcu_domains, callback_after_a_grace_period,
    callback_of_another_thread,
]  # fmt: skip
SEARCH = {inner_section_is_no_new_one: "dfs"}


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.__name__)
def test_an_edge_orders(edge):
    """No interleaving races."""
    assert race_of(lambda k: edge(k, kept=True), SEARCH.get(edge, "dpor")) == []


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.__name__)
def test_without_the_edge_there_is_a_race(edge):
    """The same world without it: some interleaving does."""
    assert race_of(lambda k: edge(k, kept=False), SEARCH.get(edge, "dpor")) != []


# What a finding says, and what is accepted.


def increment(x):
    """The read is plain, the store marked."""
    value = yield x.read()
    yield x.write_once(value + 1)


def two_increments(k):
    """A race of two threads that have met before."""
    x, lock = k.cell("counter[7]", 0), k.mutex("lock")

    def first():
        yield lock.lock()
        yield from increment(x)
        yield lock.unlock()
        yield from increment(x)

    def second():
        yield lock.lock()
        yield from increment(x)
        yield lock.unlock()

    k.thread("a", first())
    k.thread("b", second())


def found(world, schedule):
    """The findings of one execution."""
    k = Kernel(stop_at_finding=False, window_ns=INFINITY)
    world(k)
    attach(k)
    replay = Replay(schedule)
    replay.begin(k, 0)
    k.execute(replay.pick)
    assert replay.misfits == []
    return k.findings


def test_a_finding_tells_both_sides_and_how_they_last_met():
    """The word, each access with its place, step and locks; places name the function, not the thread's outermost one."""
    (finding,) = found(two_increments, "a*5 b*3 a b*2 a")

    assert finding.kind == "data-race"
    assert finding.title == "counter: plain read in increment and write in increment are not ordered"
    assert finding.threads == ("a", "b")
    assert [place.rpartition(" ")[2] for place in finding.where] == ["increment", "increment"]
    assert finding.details["cell"] == "counter[7]"
    assert re.fullmatch(
        r"a: plain read at sim/test_races.py:\d+ increment, step 8, holding no lock", finding.details["one"]
    )
    assert re.fullmatch(
        r"b: write at sim/test_races.py:\d+ increment, step 9, holding lock", finding.details["other"]
    )
    assert finding.details["last common sync"] == "unlock lock by a, step 4"


def test_the_same_race_twice_is_one_finding():
    """By its fingerprint: kind, title and place."""

    def often(k):
        x = k.cell("x", 0)

        def writer():
            for _ in range(3):
                yield x.write(1)

        k.thread("a", writer())
        k.thread("b", writer())

    assert len(found(often, "a b*4 a*3")) == 1


def test_the_search_stops_at_a_race_and_its_schedule_leads_there_again():
    """Like any other finding; `races=False` does not look."""
    report = explore(two_increments, executions=200, stop_at_first=True)
    (finding,) = report.findings
    again = explore(two_increments, strategy=f"replay:{finding.schedule}")

    assert [(f.kind, f.fingerprint) for f in again.findings] == [("data-race", finding.fingerprint)]
    assert finding.steps
    assert explore(two_increments, executions=200, races=False).findings == []


def test_an_accepted_race_is_no_finding_and_is_counted():
    """By the word's family and both functions; another function is not excused."""

    def accepting(function):
        def world(k):
            k.accept_race("counter", "increment", function, "it is only a statistic")
            two_increments(k)

        return world

    assert race_of(accepting("incr*")) == []
    assert race_of(accepting("second")) != []


def test_an_accepted_race_hides_no_other_one():
    """Of two plain reads by one thread the accepted one is not the only one remembered."""

    def world(k):
        x = k.cell("x", 0)
        k.accept_race("x", "meant", "writer", "said so")

        def meant():
            yield x.read()

        def reader():
            yield from meant()
            yield x.read()
            yield from meant()

        def writer():
            yield x.write(1)

        k.thread("reader", reader())
        k.thread("writer", writer())

    assert race_of(world) == ["x: plain read in reader and plain write in writer are not ordered"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vcpu0.mode", "vcpu.mode"),
        ("spte[mirror 4K gfn 0x1000]", "spte"),
        ("table[direct 2M gfn 0x0].role.invalid", "table.role.invalid"),
        ("mmu_invalidate_seq", "mmu_invalidate_seq"),
    ],
)
def test_the_family_of_a_word(name, kind):
    """Its name without numbers and brackets."""
    assert family(name) == kind


def test_a_simpy_event_orders_nothing():
    """Ordinary SimPy processes are no threads of ours: what they wake has not met who ran last."""
    k = Kernel(stop_at_finding=False)
    data = k.cell("data", 0)

    def writer():
        yield data.write(1)

    def sleeper():
        yield k.timeout(5)
        yield data.read()

    k.thread("writer", writer())
    k.thread("sleeper", sleeper())
    attach(k)
    k.execute()

    assert [finding.kind for finding in k.findings] == ["data-race"]


def test_waiting_for_the_end_of_a_thread_the_way_of_simpy_is_a_join():
    """`yield thread` orders as `yield k.join(thread)` does."""
    k = Kernel(stop_at_finding=False)
    data = k.cell("data", 0)

    def writer():
        yield data.write(1)

    def parent():
        yield k.thread("writer", writer())
        yield data.read()

    k.thread("parent", parent())
    attach(k)
    k.execute()

    assert k.findings == []


def test_a_wait_that_timed_out_acquires_nothing():
    """Who did not come in time is not met."""

    def world(k):
        data, done = k.cell("data", 0), k.signal("done")

        def late():
            yield data.write(1)
            yield done.raise_()

        def waiter():
            if (yield done.wait(5)) is TIMED_OUT:
                yield data.read()

        k.thread("late", late())
        k.thread("waiter", waiter())

    assert race_of(world) != []
