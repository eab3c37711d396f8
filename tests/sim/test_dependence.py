"""What accesses say about themselves: modes, notes, and that accesses declared independent do commute."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import INFINITY, Kernel
from sim.dependence import ALL, EVERYTHING, MANY, READ, UPDATE, WRITE, Notes, conflict, note, unnoted

KEYS = st.one_of(st.integers(0, 200).map(str), st.sampled_from(["x", "y"]), st.just(ALL))
MODES = st.sampled_from([READ, READ, READ, READ, UPDATE, WRITE])
FOOTPRINTS = st.lists(st.tuples(KEYS, MODES), min_size=MANY - 2, max_size=MANY + 8)


@pytest.mark.parametrize("one", [READ, UPDATE, WRITE])
@pytest.mark.parametrize("two", [READ, UPDATE, WRITE])
def test_only_equal_modes_that_are_no_stores_commute(one, two):
    """Two reads, two updates; everything else conflicts, in both directions."""
    expected = one != two or one == WRITE

    assert conflict((("x", one),), (("x", two),)) == expected
    assert conflict((("x", two),), (("x", one),)) == expected


def test_other_keys_never_conflict_and_everything_always_does():
    """What says nothing is dependent on all that touches anything."""
    assert not conflict((("x", WRITE),), (("y", WRITE),))
    assert conflict(EVERYTHING, (("y", READ),))
    assert conflict((("y", READ),), EVERYTHING)
    assert not conflict(EVERYTHING, ())


@given(FOOTPRINTS, FOOTPRINTS)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_footprints_of_many_keys_are_compared_alike(one, two):
    """However many touches there are: two of one key in modes that conflict, or one of everything."""
    expected = any(
        (key == other or ALL in (key, other)) and (mode != other_mode or mode == WRITE)
        for key, mode in one
        for other, other_mode in two
    )

    assert conflict(tuple(one), tuple(two)) == expected


def test_notes_are_taken_only_while_somebody_listens():
    """And never of what a predicate looks at."""
    k = Kernel()
    x = k.cell("x", 0)
    note("unheard", WRITE)
    Notes.taken = []
    try:
        note("heard", WRITE)
        x.peek()
        assert unnoted(x.peek) == 0
        heard = Notes.taken
    finally:
        Notes.taken = None

    assert heard == [("heard", WRITE), ("x", READ)]


def accesses(k):
    """One of each kind, all on the same few objects; for one thread each."""
    x = k.cell("x", 0)
    lock = k.rwlock("lock")
    rcu = k.rcu()
    signal = k.signal("signal")
    return {
        "read": x.read,
        "load-acquire": x.load_acquire,
        "write": lambda: x.write(1),
        "cmpxchg that fails": lambda: x.cmpxchg(7, 8),
        "cmpxchg that succeeds": lambda: x.cmpxchg(0, 2),
        "fetch_add": lambda: x.fetch_add(3),
        "wait that need not": lambda: x.wait_until(lambda value: value < 9),
        "wait that must": lambda: x.wait_until(lambda value: value > 9),
        "read-lock": lock.read_lock,
        "write-lock": lock.write_lock,
        "rcu enter": rcu.read_lock,
        "synchronize": rcu.synchronize,
        "raise": signal.raise_,
        "await": lambda: signal.wait(take=False),
        "take": signal.wait,
    }


KINDS = list(accesses(Kernel()))


def state_after(order):
    """What both threads got, and what is left, after one access of each kind in this order."""
    k = Kernel(window_ns=INFINITY)
    make = accesses(k)
    got = {}

    def thread(kind):
        got[kind] = str((yield make[kind]()))

    threads = {kind: k.thread(kind, thread(kind)) for kind in sorted(order)}
    touched = {}
    picks = [*sorted(order), *order]  # all start, then the accesses

    def pick(_kernel, candidates):
        wanted = picks.pop(0)
        return next(i for i, candidate in enumerate(candidates) if candidate.name == wanted)

    k.check(lambda _kernel, thread, access: touched.setdefault(thread.name, []).append(access.touched()))
    k.max_steps = 4
    k.execute(pick)
    blocked = {kind: thread.blocked_on is not None for kind, thread in threads.items()}
    return got, blocked, {name: kinds[1] for name, kinds in touched.items()}


@pytest.mark.parametrize("one", KINDS)
def test_accesses_declared_independent_commute(one):
    """Both orders give both threads the same; gates apart, where who waits goes on later."""
    for two in KINDS:
        if two == one:
            continue
        got, blocked, touched = state_after([one, two])
        if not conflict(touched[one], touched[two]):
            assert (got, blocked) == state_after([two, one])[:2], two
