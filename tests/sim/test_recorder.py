"""The trace: text for people, a digest for machines."""

from __future__ import annotations

from enum import Enum

import pytest

from sim import Kernel, record
from sim.recorder import Recorder, plain
from tests.sim.worlds import bustle, lost_update


def test_a_line_says_step_time_thread_access_value_and_place():
    """One line a step; the place is where the thread yielded."""
    lines = record(lost_update, "a*3").recorder.lines

    assert lines[1].startswith("1 0 a read x = 0  [sim/worlds.py:")
    assert lines[2].startswith("2 0 a write x = None  [")


def test_no_address_reaches_the_trace():
    """Also where a thread waits for a SimPy event."""
    recording = record(bustle, "")

    assert any("resume Timeout" in line for line in recording.recorder.lines)
    assert not any("0x7f" in line or " at 0x" in line for line in recording.recorder.lines)


def test_the_digest_covers_every_step_also_those_no_longer_kept():
    """Only `keep` lines stay; the digest is over all."""
    digests = []
    for keep in (3, 1000):
        k = Kernel()
        recorder = Recorder(keep)
        k.check(recorder)
        bustle(k)
        k.execute()
        digests.append(recorder.digest())
        assert keep == 1000 or len(recorder.lines) <= 6

    assert digests[0] == digests[1]


def test_the_digest_tells_schedules_apart():
    """Another order, another digest."""
    assert record(lost_update, "").recorder.digest() != record(lost_update, "b*3").recorder.digest()


class Colour(Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "None"), (True, "True"), (7, "7"), (255, "0xff"), ("s", "s"), (Colour.RED, "Colour.RED")],
)
def test_values_are_plain(value, text):
    """Small numbers in decimal, others in hexadecimal."""
    assert plain(value) == text


def test_an_object_without_text_of_its_own_is_its_type():
    """Never its address."""
    assert plain(object()) == "object"
    assert plain([object()]) == "list"
