"""Schedules as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import BadSchedule
from sim.schedule import FIFO, parse, text

NAMES = st.sampled_from(["v0", "v1", "h0", "rcu", "host-1"])


def expand(schedule):
    """The picks one by one."""
    return [name for name, times in parse(schedule) for _ in range(times)]


@given(st.lists(st.tuples(NAMES, NAMES), max_size=40))
def test_a_schedule_survives_the_round_trip(pairs):
    """What is read back is what was picked, with fifo's pick wherever the text leaves it to fifo."""
    picks = [pick for pick, _ in pairs]
    by_fifo = [fifo for _, fifo in pairs]
    read = expand(text(picks, by_fifo))
    read += [FIFO] * (len(picks) - len(read))

    assert [name or fifo for name, fifo in zip(read, by_fifo, strict=True)] == picks


@given(st.lists(st.tuples(st.sampled_from([FIFO, "v0", "h0"]), st.integers(1, 99)), max_size=10))
def test_every_word_is_read_as_it_is_written(words):
    """`name`, `name*4` and `+12`."""
    written = " ".join(f"+{n}" if not name else f"{name}*{n}" for name, n in words)

    assert parse(written) == words


def test_a_schedule_is_its_deviations_from_fifo():
    """Runs are counted, what fifo does at the end is left out, and fifo's own run is empty."""
    assert text(list("aabbab"), list("aaabab")) == "+2 b"
    assert text(list("aaa"), list("aaa")) == ""
    assert text(list("bbb"), list("aaa")) == "b*3"
    assert parse("v0*4 h0*2 v0 +12") == [("v0", 4), ("h0", 2), ("v0", 1), (FIFO, 12)]


@pytest.mark.parametrize("word", ["v0*", "v0*x", "*3", "v0*0", "+", "+x", "+0", "v0*-1"])
def test_a_bad_word_is_told_with_what_was_expected(word):
    """The message quotes the word."""
    with pytest.raises(BadSchedule) as told:
        parse(f"v0*2 {word} v1")

    expected = f"{word!r} is no pick: write a thread's name, `name*4`, or `+12` for twelve picks by fifo"
    assert str(told.value) == expected
