"""`exhaustive` takes the search that is cheaper, says which, and finds what that finds."""

from __future__ import annotations

import re

import pytest

from sim import explore, record
from sim.strategies.exhaustive import PROBE, chao1
from tests.bench.protocols import m2
from tests.sim.literature import indexer, lastzero


def test_few_classes_are_for_dpor():
    """Published: 8; the states are very many."""
    report = explore(indexer(12), strategy="exhaustive")

    assert (report.verdict, report.complete) == ("proved", 8)
    assert "exhaustive chose dpor:values" in report.claim


def test_more_states_than_classes_are_worth_are_for_dpor():
    """Published: 3328 classes; neither search ends within its probe."""
    report = explore(lastzero(10), strategy="exhaustive", races=False)

    assert (report.verdict, report.complete) == ("proved", 3328)
    assert re.search(r"chose dpor:values: about \d+ classes .* against more than \d+ states", report.claim)


def test_few_states_are_for_states():
    """M2 has thousands of classes."""
    report = explore(m2.world(2), strategy="exhaustive", races=False)

    assert report.verdict == "proved"
    assert "exhaustive chose states" in report.claim


def test_what_states_finds_can_be_replayed():
    """The bug of M2 without a shootdown."""
    world = m2.world(2, bug=1)
    report = explore(world, strategy="exhaustive", races=False)

    assert report.verdict == "failing"
    for finding in report.findings:
        again = record(world, finding.schedule, seed=finding.seed, races=False)
        assert finding.fingerprint in {same.fingerprint for same in again.kernel.findings}


def test_a_world_for_no_table_is_for_dpor():
    """A checker sees steps, not states; there are more classes than the probe has executions."""

    def world(kernel):
        lastzero(8)(kernel)
        kernel.check(lambda _kernel, _thread, _access: None)

    report = explore(world, strategy="exhaustive")
    by_dpor = explore(world, strategy="dpor:values")

    assert report.executions == by_dpor.executions > PROBE
    assert (report.verdict, report.digest) == ("proved", by_dpor.digest)
    assert (
        "exhaustive chose dpor:values: states cannot search this world: the world has checkers"
        in report.claim
    )


def test_unseen_classes_are_counted_in():
    """Chao's estimate; nothing is added if nothing was seen only once."""
    assert chao1([2, 3, 5]) == 3
    assert chao1([1, 1, 1, 2]) == 4 + 3 * 2 // 4


@pytest.mark.parametrize(("strategy", "patience"), [("states", 3), ("exhaustive", PROBE + 20)])
def test_states_are_asked_to_stop_within_the_search(strategy, patience):
    """And nothing is proved then."""
    asked = iter(range(10**9))
    report = explore(m2.world(3), strategy=strategy, races=False, stop=lambda: next(asked) > patience)

    assert report.verdict != "proved"
    assert not report.proved
