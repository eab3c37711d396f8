"""`dfs`: every interleaving, once each; with a bound, those within it; and what it may claim."""

from __future__ import annotations

from itertools import pairwise
from math import factorial, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Kernel, explore
from sim.strategies.dfs import Dfs


def alone(lengths):
    """Threads of so many reads each, which never wait."""

    def world(k):
        x = k.cell("x", 0)

        def reader(length):
            for _ in range(length):
                yield x.read_once()

        for i, length in enumerate(lengths):
            k.thread(f"t{i}", reader(length))

    return world


def locked(lengths):
    """Threads of so many reads each inside one mutex."""

    def world(k):
        x, lock = k.cell("x", 0), k.mutex("lock")

        def reader(length):
            yield lock.lock()
            for _ in range(length):
                yield x.read_once()
            yield lock.unlock()

        for i, length in enumerate(lengths):
            k.thread(f"t{i}", reader(length))

    return world


def two_locks(k, *, inverted):
    """Two locks, taken by two threads in one order or in two."""
    one, two = k.mutex("one"), k.mutex("two")

    def take(first, second):
        yield first.lock()
        yield second.lock()
        yield second.unlock()
        yield first.unlock()

    k.thread("a", take(one, two))
    k.thread("b", take(two, one) if inverted else take(one, two))


def inversion(k):
    """The wrong way."""
    two_locks(k, inverted=True)


def schedules_of(world, strategy):
    """The schedules of a search, by thread name, in the order in which they were made."""
    schedules = []
    explore(world, strategy=strategy, after=lambda k: schedules.append(tuple(t.name for t in k.picks)))
    return schedules


def within(programs, bound):
    """How many schedules of these programs have at most `bound` preemptions: an interpreter of its own, by brute force.

    A program is a string of steps: `L` takes the one lock, first come first served, `U` gives it up, anything else is a step.
    A thread that waited in line makes a step more to go on.
    """

    def count(positions, waits, holder, line, last, left):
        ready = [t for t, program in enumerate(programs) if positions[t] < len(program) and t not in line]
        if not ready:
            return 1
        total = 0
        for t in ready:
            cost = int(last in ready and t != last)
            if cost > left:
                continue
            now, then, queue = list(positions), holder, line
            still = waits
            if t in waits:
                still = waits - {t}
                now[t] += 1
            else:
                step = programs[t][positions[t]]
                if step == "L" and holder is not None:
                    queue = (*line, t)
                else:
                    now[t] += 1
                    if step == "L":
                        then = t
                    elif step == "U":
                        then = line[0] if line else None
                        still = waits | set(line[:1])
                        queue = line[1:]
            total += count(tuple(now), still, then, queue, t, left - cost)
        return total

    return count((0,) * len(programs), frozenset(), None, (), -1, bound)


@pytest.mark.parametrize("lengths", [(0,), (3,), (1, 1), (2, 3), (4, 4), (1, 1, 1), (2, 1, 2), (0, 1, 0, 1)])
def test_the_interleavings_are_counted_by_the_multinomial_coefficient(lengths):
    """Of threads that never wait; each has a step more, its start. No interleaving is made twice."""
    steps = [length + 1 for length in lengths]
    report = explore(alone(lengths), strategy="dfs")

    assert report.executions == report.complete == factorial(sum(steps)) // prod(map(factorial, steps))
    schedules = schedules_of(alone(lengths), "dfs")
    assert len(set(schedules)) == len(schedules) == report.executions


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=3), st.integers(0, 3), st.booleans())
def test_the_bound_keeps_what_brute_force_keeps(lengths, bound, with_lock):
    """With and without blocking: a switch away from a thread that waits or has ended is free."""
    world = locked(lengths) if with_lock else alone(lengths)
    programs = ["s" + ("L" + "r" * n + "U" if with_lock else "r" * n) for n in lengths]
    schedules = schedules_of(world, f"dfs:{bound}")

    assert len(set(schedules)) == len(schedules) == within(programs, bound)


def test_without_a_bound_locks_are_counted_by_brute_force_too():
    """The same interpreter, with more preemptions than there are steps."""
    report = explore(locked([1, 1]), strategy="dfs")

    assert report.executions == within(["sLrU", "sLrU"], 99)
    assert report.verdict == "proved"


def test_a_deadlock_is_found_and_its_absence_is_proved():
    """Two locks in two orders, and in one."""
    report = explore(inversion, strategy="dfs")

    assert [finding.kind for finding in report.findings] == ["deadlock"]
    assert (report.verdict, report.exhausted, report.proved) == ("failing", True, True)
    assert 0 < report.failed < report.executions
    assert explore(lambda k: two_locks(k, inverted=False), strategy="dfs").verdict == "proved"


def test_one_preemption_is_what_the_deadlock_needs():
    """None with no preemption, and that is no proof."""
    none = explore(inversion, strategy="dfs:0")
    one = explore(inversion, strategy="dfs:1")

    assert (none.verdict, none.exhausted, none.proved) == ("none found", True, False)
    assert none.claim.endswith(f"dfs: {none.executions} interleavings, all with at most 0 preemptions")
    assert one.verdict == "failing"


def test_a_bound_that_never_bites_proves():
    """As many preemptions as anybody could make; and one fewer than that, which bites."""
    lengths = (2, 2)
    everything = explore(alone(lengths), strategy="dfs")
    bites = [explore(alone(lengths), strategy=f"dfs:{bound}") for bound in range(6)]

    assert everything.verdict == "proved"
    assert [report.verdict for report in bites] == ["none found"] * 4 + ["proved"] * 2
    assert [report.executions < everything.executions for report in bites] == [True] * 4 + [False] * 2
    assert all(report.exhausted for report in bites)


@pytest.mark.parametrize(("executions", "proved"), [(34, False), (35, True), (36, True)])
def test_a_limit_of_executions_proves_only_if_nothing_was_left(executions, proved):
    """35 interleavings: 34 are not all of them, and the claim says how many there may be."""
    report = explore(alone((2, 3)), strategy="dfs", executions=executions)

    assert (report.executions, report.exhausted, report.proved) == (min(executions, 35), proved, proved)
    assert report.verdict == ("proved" if proved else "none found")
    assert ("of an estimated" in report.claim) == (not proved)


def test_the_step_limit_is_no_proof():
    """Executions that were cut have ends that nobody saw."""
    report = explore(alone((3, 3)), strategy="dfs", max_steps=7)

    assert report.cut == report.executions
    assert (report.exhausted, report.proved, report.verdict) == (True, False, "inconclusive")


def test_the_estimate_grows_to_the_whole():
    """The part of the tree behind us never shrinks, begins above nothing and ends at one."""
    plan, parts = Dfs(), []
    for execution in range(10**6):
        k = Kernel(window_ns=1 << 62)
        if not plan.begin(k, execution):
            break
        alone((2, 2))(k)
        k.execute(plan.pick)
        plan.end(k)
        parts.append(plan.explored)

    assert len(parts) == 20
    assert parts[0] > 0
    assert all(one < two for one, two in pairwise(parts))
    assert parts[-1] == pytest.approx(1)


def test_a_world_that_is_not_a_function_of_its_picks_is_refused():
    """It would be searched in vain."""
    lengths = iter([(2, 2), (0, 2)])

    def world(k):
        alone(next(lengths))(k)

    with pytest.raises(AssertionError, match="the world is not deterministic"):
        explore(world, strategy="dfs", executions=2)
