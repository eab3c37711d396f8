"""Picks in another order, or fewer of them: what `sim.shrink` tries, worked out without running anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TypeVar

T = TypeVar("T")

FRONT_MAX = 256
"""How many half-done orders `fewest_switches` keeps: exact for the worlds of the tests, a bound for wild ones."""


@dataclass(frozen=True, slots=True, order=True)
class Size:
    """How long a schedule is, in the order of what readers mind: switches from thread to thread, then steps."""

    switches: int
    steps: int

    @classmethod
    def of(cls, picks: Sequence[str]) -> Size:
        """The size of a list of picks by thread name."""
        return cls(sum(a != b for a, b in pairwise(picks)), len(picks))

    def __str__(self) -> str:
        return f"{self.switches} context switches, {self.steps} steps"


def steps_of(mask: int, picks: Sequence[str]) -> dict[str, list[int]]:
    """The numbers of the steps in a bit mask, by thread."""
    by_thread: dict[str, list[int]] = {}
    for number, name in enumerate(picks):
        if mask >> number & 1:
            by_thread.setdefault(name, []).append(number)
    return by_thread


def fewest_switches(steps: Mapping[str, Sequence[int]], pasts: Sequence[int]) -> list[str]:
    """The picks of an order of these steps that respects what happened before what, with fewest switches.

    Breadth first over how far each thread has come. A thread that runs, runs as far as it can: going on never forbids
    anything. So the first order that is complete has the fewest switches (while no more than FRONT_MAX are looked at).
    """
    names = list(steps)
    kept = sum(1 << number for numbers in steps.values() for number in numbers)
    front: dict[tuple[int, ...], tuple[int, list[str]]] = {(0,) * len(names): (0, [])}
    goal = tuple(len(steps[name]) for name in names)
    while goal not in front:
        following: dict[tuple[int, ...], tuple[int, list[str]]] = {}
        for reached, (done, order) in front.items():
            for which, name in enumerate(names):
                at, now = reached[which], done
                numbers = steps[name]
                while at < len(numbers) and not pasts[numbers[at]] & kept & ~now:
                    now |= 1 << numbers[at]
                    at += 1
                if at > reached[which]:
                    place = (*reached[:which], at, *reached[which + 1 :])
                    following.setdefault(place, (now, order + [name] * (at - reached[which])))
        most_first = sorted(following.items(), key=lambda entry: (-sum(entry[0]), entry[0]))
        front = dict(most_first[:FRONT_MAX])
    return front[goal][1]


def joined(picks: Sequence[str]) -> Iterator[list[str]]:
    """Orders with one run of a thread less: moved to the thread's next one or the one before, or left out."""
    runs = [(name, list(run)) for name, run in groupby(picks)]
    for i, (name, run) in enumerate(runs):
        rest = [*runs[:i], *runs[i + 1 :]]
        after = next((j for j in range(i, len(rest)) if rest[j][0] == name), None)
        before = next((j for j in range(i - 1, -1, -1) if rest[j][0] == name), None)
        for place in (after, None if before is None else before + 1):
            if place is not None:
                yield [pick for _, part in [*rest[:place], (name, run), *rest[place:]] for pick in part]
        yield [pick for _, part in rest for pick in part]


def ddmin(items: list[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """The items without those that `fails` does not need: delta debugging, down to single ones, until none can go."""
    parts = 2
    while items:
        size = max(1, len(items) // parts)
        for start in range(0, len(items), size):
            rest = items[:start] + items[start + size :]
            if fails(rest):
                items = rest
                parts = max(2, parts - 1)
                break
        else:
            if size == 1:
                return items
            parts = min(len(items), parts * 2)
    return items
