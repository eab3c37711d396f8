"""How many calls of the TDX module a second, leaf by leaf, and how long the whole conformance run takes.

Each call is made in a fresh world in which it succeeds and takes all its locks (the worlds of the conformance run's table of
locks); only the call itself is timed, register words in, registers out.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import NamedTuple

from sim import Steps
from sim.access import Access
from tdx.module import TDX_1_5_01, TdExit
from tests.conformance.calling import call
from tests.conformance.calls import CALLS
from tests.conformance.lock_worlds import levels, ready
from tests.conformance.run import run_locks, run_transitions
from tests.conformance.table import LOCKS, TRANSITIONS, read_locks, read_transitions

REPETITIONS = 9


class Rate(NamedTuple):
    """One leaf at one level."""

    name: str
    level: str
    steps: int
    """Accesses that the call makes."""
    per_second: float


def rates() -> Iterator[Rate]:
    """All leaves, by name."""
    for name, leaf in sorted(CALLS.items()):
        for level in levels(leaf):
            more = {"guest": leaves_at_once} if name == "TDH.VP.ENTER" else {}
            accesses: list[Access] = []
            call(ready(leaf, level), accesses.append, **more)
            seconds = []
            for _ in range(REPETITIONS):
                world = ready(leaf, level)
                began_s = perf_counter()
                call(world, **more)
                seconds.append(perf_counter() - began_s)
            yield Rate(name, level.short if leaf.levels else "", len(accesses), 1 / median(seconds))


def leaves_at_once() -> Steps[TdExit]:
    """What runs inside TDH.VP.ENTER."""
    return TdExit.external_interrupt()
    yield


def conformance_s() -> float:
    """The whole run, in one process."""
    began_s = perf_counter()
    run_transitions(read_transitions(TRANSITIONS), profile=TDX_1_5_01.name)
    run_locks(read_locks(LOCKS), profile=TDX_1_5_01.name)
    return perf_counter() - began_s
