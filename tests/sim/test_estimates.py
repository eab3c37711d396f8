"""Estimates: the published figures, and the properties that make them intervals and bounds."""

from __future__ import annotations

from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import estimates
from sim.estimates import PctBound


@pytest.mark.parametrize(
    ("hits", "executions", "low", "high"),
    [
        (0, 0, 0, 1),
        (0, 10, 0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1),
        (15, 148, 0.0624, 0.1605),
    ],
)
def test_wilson_gives_the_published_intervals(hits, executions, low, high):
    """Newcombe, Statistics in Medicine 17 (1998) has 15 of 148; the others are textbook."""
    assert estimates.wilson(hits, executions) == pytest.approx((low, high), abs=1e-4)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 400), st.data())
def test_wilson_holds_the_rate(executions, data):
    """And is inside [0, 1], and smaller with more executions of the same rate."""
    hits = data.draw(st.integers(0, executions))
    low, high = estimates.wilson(hits, executions)
    low_more, high_more = estimates.wilson(4 * hits, 4 * executions)

    assert 0 <= low <= hits / executions <= high <= 1
    assert high_more - low_more < high - low


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_wilson_covers_as_often_as_it_says(rate):
    """The chance that 50 executions give an interval with the true rate in it is 95 %, within 2.5 points."""
    n = 50
    covered = sum(
        comb(n, hits) * rate**hits * (1 - rate) ** (n - hits)
        for hits in range(n + 1)
        if estimates.wilson(hits, n)[0] <= rate <= estimates.wilson(hits, n)[1]
    )

    assert covered == pytest.approx(estimates.CONFIDENCE, abs=0.025)


@pytest.mark.parametrize("executions", [30, 100, 1000, 10_000])
def test_the_rule_of_three_is_the_exact_bound_within_a_few_percent(executions):
    """What fails with that rate is missed by all executions in at most 5 % of searches."""
    bound = estimates.rule_of_three(executions)

    assert (1 - bound) ** executions <= 0.05
    assert (1 - bound) ** executions >= 0.04


def test_no_execution_bounds_nothing():
    """One is the only safe bound."""
    assert estimates.rule_of_three(0) == estimates.unseen_mass([]) == 1
    assert estimates.rule_of_three(2) == 1


def test_the_unseen_mass_is_what_was_seen_once():
    """Good 1953: classes seen once, per execution."""
    assert estimates.unseen_mass([1, 1, 1]) == 1
    assert estimates.unseen_mass([5, 3, 1, 1]) == pytest.approx(0.2)
    assert estimates.unseen_mass([2, 2]) == 0


def test_pct_needs_the_published_numbers_of_executions():
    """n = 5, k = 60: 898 executions find a bug of depth 2 with 95 %, 53 900 one of depth 3."""
    assert estimates.pct_executions(5, 60, 2) == 898
    assert estimates.pct_executions(5, 60, 3) == pytest.approx(53_900, rel=0.001)
    assert estimates.pct_executions(1, 60, 1) == 1


def test_bounds_of_independent_searches_multiply():
    """Missed by both."""
    one, two = PctBound(2, 3, 10, -0.5), PctBound(2, 4, 9, -1.0)
    both = one.together(two)

    assert both == (2, 4, 10, -1.5)
    assert both.missed_below == pytest.approx(one.missed_below * two.missed_below)


def test_a_bound_says_what_it_is_of():
    """Or that there is none yet."""
    assert "no bound yet" in str(PctBound(2, 3, 10, 0.0))
    assert "a bug of depth 2 (n = 3 threads, k = 10 steps) was missed with probability at most 0.607" in str(
        PctBound(2, 3, 10, -0.5)
    )
