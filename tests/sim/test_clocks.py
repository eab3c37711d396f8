"""Vector clocks: stamps and joins against plain sets of events."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from sim.clocks import Clock


def test_a_release_is_seen_by_who_acquires_it():
    """At its time and earlier, not later."""
    giver, taker = Clock(0), Clock(1)
    before = giver.time
    taker.join(giver.stamp("the handing over"))

    assert taker.knows(0, before)
    assert not taker.knows(0, giver.time)
    assert not giver.knows(1, taker.time)
    assert taker.via[0] == "the handing over"


def test_a_stamp_does_not_change_afterwards():
    """What the thread learns later is not in it, though both share their memory until then."""
    one, two, three, four = (Clock(i) for i in range(4))
    one.join(two.stamp())
    stamp = one.stamp()
    one.join(three.stamp())
    four.join(stamp)

    assert four.knows(1, 1)
    assert not four.knows(2, 1)


def test_everything_of_a_thread_itself_has_happened_before():
    """Program order."""
    clock = Clock(3)

    assert clock.knows(3, clock.time)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.integers(0, 1 << 32))
def test_clocks_agree_with_sets_of_events(seed):
    """Threads stamp and join at random: each knows exactly the events that reached it."""
    random = Random(seed)
    clocks = [Clock(i) for i in range(4)]
    known = [set() for _ in clocks]
    stamps = []
    for _ in range(40):
        i = random.randrange(len(clocks))
        known[i].add((i, clocks[i].time))
        if stamps and random.random() < 0.6:
            stamp, events = random.choice(stamps)
            clocks[i].join(stamp)
            known[i] |= events
        else:
            stamps.append((clocks[i].stamp(), set(known[i])))
        for clock, events in zip(clocks, known, strict=True):
            for event in set().union(*known):
                assert clock.knows(*event) == (event in events)
