"""`dpor` against every interleaving of small random programs: the same outcomes, and one execution a class."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.sim.brute_force import Program, every_interleaving, search

CELL = st.integers(0, 1)
VALUE = st.integers(1, 2)

CELLS = st.one_of(
    st.tuples(st.just("read"), CELL),
    st.tuples(st.just("write"), CELL, VALUE),
    st.tuples(st.just("cmpxchg"), CELL, st.integers(0, 1), VALUE),
    st.tuples(st.just("add"), CELL),
    st.tuples(st.just("xchg"), CELL, VALUE),
)
WAITS = st.one_of(
    st.tuples(st.just("until"), CELL, VALUE),
    st.tuples(st.just("raise"), CELL),
    st.tuples(st.just("await"), CELL, st.sampled_from([None, 5]), st.booleans()),
)
DEFERRED = st.one_of(
    st.tuples(st.just("call"), CELL),
    st.tuples(st.just("contended"), CELL),
    st.tuples(st.just("join"), st.sampled_from([None, "t0", "t1"])),
)
FINDINGS = st.tuples(st.just("bug"), CELL, st.integers(0, 2))


def sections(leaf, most):
    """Lists of operations, in which some are inside of others."""

    def inside(operations):
        body = st.lists(operations, max_size=2)
        return st.one_of(
            st.tuples(st.just("locked"), CELL, body),
            st.tuples(st.just("reading"), body),
            st.tuples(st.just("writing"), body),
            st.tuples(st.just("inside"), CELL, body),
        )

    operation = st.one_of(
        leaf, leaf, st.tuples(st.just("synchronize"), CELL), inside(st.one_of(leaf, inside(leaf)))
    )
    return st.lists(operation, min_size=1, max_size=most)


def programs(leaf):
    """Two threads of up to four operations, three of up to two, or two of which one starts another."""
    spawned = st.tuples(st.just("spawn"), st.lists(leaf, min_size=1, max_size=2))
    starting = st.tuples(st.lists(leaf, max_size=1), spawned, st.lists(leaf, max_size=1)).map(
        lambda parts: [*parts[0], parts[1], *parts[2]]
    )
    return st.one_of(
        st.tuples(sections(leaf, 4), sections(leaf, 3)),
        st.tuples(*[st.lists(leaf, min_size=1, max_size=2)] * 3),
        st.tuples(starting, st.lists(leaf, min_size=1, max_size=2)),
    ).map(lambda threads: Program(*threads))


def everything(program):
    """What every interleaving shows; programs with too many are left out."""
    seen = every_interleaving(program, executions=1200)
    assume(seen is not None)
    return seen


SETTINGS = settings(
    derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much]
)


@SETTINGS
@given(programs(st.one_of(CELLS, WAITS)))
def test_one_execution_a_class_of_interleavings(program):
    """Words, locks, RCU, signals, waits, threads: every outcome, every class once, and nothing begun in vain."""
    seen = everything(program)
    found = search(program, "dpor")

    assert {execution.outcome for execution in seen} == set(found.outcomes)
    if all(isinstance(execution.outcome[0][0], int) for execution in seen):  # no finding cut any short
        assert len({execution.trace for execution in seen}) == len(found.outcomes)
        assert found.cut == 0


@SETTINGS
@given(programs(st.one_of(CELLS, DEFERRED)))
def test_what_plain_calls_touch_is_seen(program):
    """Deferred callbacks and looks at a lock's queue: the same; some executions may be begun in vain."""
    seen = everything(program)
    found = search(program, "dpor")

    assert {execution.outcome for execution in seen} == set(found.outcomes)
    assert len({execution.trace for execution in seen}) == len(found.outcomes)


@SETTINGS
@given(programs(st.one_of(CELLS, FINDINGS)))
def test_every_finding_is_found_wherever_others_end_the_execution(program):
    """A finding hides what would have come; the same findings and the same other outcomes are reached."""
    seen = everything(program)
    found = search(program, "dpor")

    assert {execution.outcome for execution in seen} == set(found.outcomes)


@pytest.mark.parametrize(
    "leaf", [CELLS, WAITS, st.one_of(CELLS, FINDINGS), st.one_of(CELLS, WAITS, DEFERRED)], ids=str
)
def test_values_leave_out_no_outcome(leaf):
    """`dpor:values` reaches the same outcomes in at most as many executions."""

    @settings(SETTINGS, max_examples=40)
    @given(programs(leaf))
    def check(program):
        seen = everything(program)
        found = search(program, "dpor:values")

        assert {execution.outcome for execution in seen} == set(found.outcomes)
        assert len(found.outcomes) <= len(search(program, "dpor").outcomes)

    check()
