"""Streams: the same numbers everywhere, independent by name, evenly spread."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from sim.streams import Streams

PROGRAM = (
    "from sim.streams import Streams; s = Streams(7).stream('faults'); print([s.bits64() for _ in range(3)])"
)


def test_a_stream_is_known_to_the_bit() -> None:
    """The numbers are part of what a seed means: a change here changes every recorded run."""
    stream = Streams(7).stream("faults")
    assert [stream.bits64() for _ in range(3)] == [
        9287465014384122319,
        14898347974079979021,
        2480773465530218974,
    ]


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_a_stream_does_not_depend_on_the_hash_seed(hash_seed: str) -> None:
    stream = Streams(7).stream("faults")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str([stream.bits64() for _ in range(3)])


def test_drawing_from_one_stream_leaves_the_others_alone() -> None:
    busy, idle = Streams(1), Streams(1)
    busy.stream("a").bits64()
    assert busy.stream("b").bits64() == idle.stream("b").bits64()


def test_a_stream_continues_when_it_is_asked_for_again() -> None:
    streams = Streams(1)
    first = streams.stream("a").bits64()
    assert streams.stream("a").bits64() != first


def test_seeds_names_and_children_give_different_streams() -> None:
    firsts = [
        Streams(seed).stream(name).bits64()
        for seed in (0, 1, -1, 2**80, "x")
        for name in ("", "a", "b", "ab")
    ]
    firsts += [Streams(0).child(name).stream("a").bits64() for name in ("1", "2")]
    assert len(set(firsts)) == len(firsts)


def test_below_is_even_and_stays_in_range() -> None:
    stream = Streams(3).stream("dice")
    seen = Counter(stream.below(6) for _ in range(60_000))
    assert sorted(seen) == list(range(6))
    assert all(abs(n - 10_000) < 500 for n in seen.values())


@pytest.mark.parametrize("bound", [0, -1, 2**64 + 1])
def test_below_refuses_an_impossible_bound(bound: int) -> None:
    with pytest.raises(ValueError, match="expected a bound"):
        Streams(3).stream("dice").below(bound)


def test_choice_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a bound"):
        Streams(3).stream("dice").choice([])


def test_uniform01_fills_the_unit_interval() -> None:
    stream = Streams(3).stream("u")
    values = [stream.uniform01() for _ in range(20_000)]
    assert 0 <= min(values) < 0.001
    assert 0.999 < max(values) < 1
    assert abs(sum(values) / len(values) - 0.5) < 0.01


def test_shuffle_reaches_every_order_evenly() -> None:
    stream = Streams(5).stream("cards")
    orders: Counter[tuple[int, ...]] = Counter()
    for _ in range(12_000):
        cards = [0, 1, 2]
        stream.shuffle(cards)
        orders[tuple(cards)] += 1
    assert len(orders) == 6
    assert all(abs(n - 2000) < 250 for n in orders.values())


def test_every_bit_of_the_output_is_balanced() -> None:
    stream = Streams(11).stream("bits")
    ones = [0] * 64
    for _ in range(4000):
        word = stream.bits64()
        for bit in range(64):
            ones[bit] += word >> bit & 1
    assert all(abs(n - 2000) < 200 for n in ones)
