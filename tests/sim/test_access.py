"""Cells: the vocabulary of one machine word."""

from __future__ import annotations

import pytest

from sim import Kernel, explore, free_cell
from sim.access import PENDING


def values_of(*make):
    """Run accesses of one cell that holds 5, one after the other; return what each gave and what it left."""
    k = Kernel()
    cell = k.cell("x", 5)
    seen = []

    def steps():
        for access in make:
            seen.append((yield access(cell)))  # noqa: PERF401 - a comprehension cannot yield

    k.thread("a", steps())
    k.execute()
    return seen, cell.peek()


@pytest.mark.parametrize(
    ("access", "given", "left"),
    [
        (lambda x: x.read(), 5, 5),
        (lambda x: x.read_once(), 5, 5),
        (lambda x: x.load_acquire(), 5, 5),
        (lambda x: x.write(9), None, 9),
        (lambda x: x.write_once(9), None, 9),
        (lambda x: x.store_release(9), None, 9),
        (lambda x: x.cmpxchg(5, 9), 5, 9),
        (lambda x: x.cmpxchg(4, 9), 5, 5),
        (lambda x: x.xchg(9), 5, 9),
        (lambda x: x.fetch_add(2), 5, 7),
        (lambda x: x.fetch_or(0b1010), 5, 15),
        (lambda x: x.fetch_and(0b110), 5, 4),
        (lambda x: x.update(lambda v: -v), 5, -5),
        (lambda x: x.wait_until(lambda v: v == 5), 5, 5),
    ],
)
def test_an_access_gives_and_leaves(access, given, left):
    """Reads give the value, writes nothing, read-modify-writes the old value."""
    assert values_of(access) == ([given], left)


def test_an_access_happens_when_it_is_performed_not_when_it_is_made():
    """Making one changes nothing and has no value yet."""
    k = Kernel()
    cell = k.cell("x", 0)
    access = cell.write(1)

    assert (cell.peek(), access.processed, access._value) == (0, False, PENDING)


def test_a_failed_cmpxchg_only_reads():
    """`wrote` tells after the fact."""
    k = Kernel()
    cell = k.cell("x", 0)
    wrote = []
    k.check(lambda _k, _t, access: wrote.append((access.verb, access.wrote)))

    def steps():
        yield cell.cmpxchg(0, 1)
        yield cell.cmpxchg(0, 2)

    k.thread("a", steps())
    k.execute()

    assert wrote == [("start", False), ("cmpxchg", True), ("cmpxchg", False)]


def test_kinds_say_what_race_detection_needs():
    """Plain or marked, reading or writing, acquiring or releasing: one place each."""
    cell = Kernel().cell("x", 0)
    plain = [cell.read(), cell.write(1)]
    marked = [cell.read_once(), cell.write_once(1), cell.load_acquire(), cell.store_release(1), cell.xchg(1)]

    assert [access.marked for access in plain] == [False, False]
    assert all(access.marked for access in marked)
    assert [(a.reads, a.writes) for a in marked[:2]] == [(True, False), (False, True)]
    assert [(a.acquires, a.releases) for a in marked[2:]] == [(True, False), (False, True), (True, True)]


def test_every_access_can_be_read():
    """The text names the verb and the cell; no addresses."""
    cell = Kernel().cell("seq", 0)

    assert [repr(a) for a in (cell.read(), cell.fetch_add(1), cell.store_release(1))] == [
        "plain read seq",
        "fetch_add seq",
        "store-release seq",
    ]


def message_passing(k):
    """Litmus MP with release and acquire: who sees the flag sees the data."""
    data, flag = k.cell("data", 0), k.cell("flag", 0)
    seen = []

    def sender():
        yield data.write_once(42)
        yield flag.store_release(1)

    def receiver():
        ready = yield flag.load_acquire()
        value = yield data.read_once()
        seen.append((ready, value))

    k.thread("sender", sender())
    k.thread("receiver", receiver())
    k.at_end("who sees the flag sees the data", lambda: seen[0] != (1, 0))
    for outcome in [(0, 0), (0, 42), (1, 42)]:
        k.sometimes(f"seen {outcome}", lambda outcome=outcome: outcome in seen)


def test_message_passing():
    """The forbidden outcome never happens; those in which the receiver is early do."""
    report = explore(message_passing, strategy="random", executions=200)

    assert report.findings == []
    assert report.met >= {"seen (0, 0)", "seen (0, 42)"}


def test_wait_until_neither_spins_nor_hangs():
    """A wait is two steps however long it takes: the read that blocks, and the resumption with the word."""
    k = Kernel()
    cell = k.cell("x", 0)
    seen = []

    def waiter():
        seen.append(((yield cell.wait_until(lambda v: v >= 3)), k.now))

    def counter():
        for _ in range(5):
            k.spend(1000)
            yield cell.fetch_add(1)

    k.thread("waiter", waiter())
    k.thread("counter", counter())
    k.execute()

    assert seen == [(3, 3000)]
    assert k.steps == 2 + 2 + 5


def test_wait_until_on_a_word_that_never_changes_is_a_deadlock_that_names_it():
    """The report says who waits for which word."""
    k = Kernel()
    k.thread("waiter", iter_steps(k.cell("flag", 0).wait_until(bool)))
    k.execute()

    (finding,) = k.findings
    assert finding.kind == "deadlock"
    assert finding.details["waiter"] == "wait until flag held by nobody"


def iter_steps(*accesses):
    """A thread that takes these accesses."""
    for access in accesses:  # noqa: UP028 - values are sent in, which a tuple cannot take
        yield access


def test_only_those_whose_condition_holds_are_woken():
    """Others stay, in their order."""
    k = Kernel()
    cell = k.cell("x", 0)
    log = []

    def waiter(name, wanted):
        yield cell.wait_until(lambda v: v == wanted)
        log.append((name, k.now))

    def writer():
        for value in (1, 2):
            k.spend(10)
            yield cell.write_once(value)

    k.thread("two", waiter("two", 2))
    k.thread("one", waiter("one", 1))
    k.thread("also one", waiter("also one", 1))
    k.thread("writer", writer())
    k.execute()

    assert log == [("one", 10), ("also one", 10), ("two", 20)]


@pytest.mark.parametrize(
    "touch",
    [lambda x: x.read(), lambda x: x.write(1), lambda x: x.cmpxchg(0, 1), lambda x: x.fetch_add(1)],
    ids=["read", "write", "cmpxchg", "fetch_add"],
)
def test_touching_a_freed_cell_is_a_finding(touch):
    """The finding names the thread and the word; observers see nothing."""
    k = Kernel()
    cell = k.cell("spte[0x10]", 0)
    access = touch(cell)
    free_cell(cell)
    k.thread("a", iter_steps(access))
    k.execute()

    (finding,) = k.findings
    assert (finding.kind, finding.title) == ("uaf-object", "a touches spte[0x10] after it was freed")
    assert finding.where[0].startswith("a: sim/test_access.py:")
    assert cell.peek() is None
