"""A `dpor` search in parts: together they are the whole, whoever does which."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim import INFINITY, Kernel
from sim.strategies.dpor import Dpor
from sim.strategies.dpor_split import roots
from tests.sim.brute_force import search
from tests.sim.literature import filesystem, lastzero, readers
from tests.sim.test_dpor_random import CELLS, FINDINGS, WAITS, programs


def search_part(world, root, outcome):
    """What one part sees."""
    plan = Dpor(root=root)
    outcomes = []
    executions = 0
    while True:
        kernel = Kernel(window_ns=INFINITY)
        if not plan.begin(kernel, executions):
            return outcomes
        world(kernel)
        kernel.execute(plan.pick)
        plan.end(kernel)
        executions += 1
        if not plan.redundant:
            outcomes.append(outcome())


@pytest.mark.parametrize("width", [1, 5, 30])
@pytest.mark.parametrize(
    ("program", "size", "traces"), [(readers, 5, 32), (lastzero, 5, 64), (filesystem, 16, 8)]
)
def test_every_class_is_complete_in_exactly_one_part(program, size, traces, width):
    """The published numbers, summed over the parts."""
    world = program(size)
    parts = roots(world, width)

    assert len(parts) >= min(width, 2)
    assert sum(len(search_part(world, root, lambda: None)) for root in parts) == traces


def test_a_part_can_be_sent_elsewhere():
    """It is plain data: names and footprints."""
    world = lastzero(4)
    for root in roots(world, 8):
        sent = pickle.loads(pickle.dumps(root))
        assert search_part(world, sent, lambda: 1) == search_part(world, root, lambda: 1)


@settings(
    derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.filter_too_much]
)
@given(programs(st.one_of(CELLS, WAITS)), st.sampled_from([2, 6, 20]))
def test_parts_reach_what_the_whole_reaches(program, width):
    """Random programs: as many complete executions, and the same outcomes."""
    whole = search(program, "dpor")
    seen = [
        outcome for root in roots(program, width) for outcome in search_part(program, root, program.outcome)
    ]

    assert set(seen) == set(whole.outcomes)
    if all(isinstance(outcome[0][0], int) for outcome in whole.outcomes):
        assert len(seen) == len(whole.outcomes)


@settings(
    derandomize=True, deadline=None, max_examples=40, suppress_health_check=[HealthCheck.filter_too_much]
)
@given(programs(st.one_of(CELLS, FINDINGS)), st.sampled_from([2, 6, 20]))
def test_parts_find_what_the_whole_finds(program, width):
    """Findings end executions, in the steps that lead to a part as well."""
    seen = {
        outcome for root in roots(program, width) for outcome in search_part(program, root, program.outcome)
    }

    assert seen == set(search(program, "dpor").outcomes)
