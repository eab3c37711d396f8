"""The smoke tier: each plant is found by its best strategy within its budget, and what it was planted into is clean."""

from __future__ import annotations

import pytest

from tests.corpus.catalogue import CONTROLS, ENTRIES
from tests.corpus.search import Budget, hunt_clean, hunt_control, hunt_plant

SMOKE = [entry for entry in ENTRIES if entry.tier == "smoke"]
CLEAN = list({entry.scenario: entry for entry in ENTRIES}.values())
NO_LIMIT_S = 1e6


@pytest.mark.parametrize("entry", SMOKE, ids=lambda entry: entry.id)
def test_a_planted_race_is_found(entry):
    """By one of the oracles that ought to fire."""
    attempt = hunt_plant(entry, entry.best, entry.seed, Budget(entry.within, NO_LIMIT_S))

    assert attempt.found, (
        f"{entry.best} with seed {entry.seed} found nothing in {attempt.executions} executions"
    )
    assert set(attempt.kinds) & set(entry.expected), attempt.titles


@pytest.mark.parametrize("entry", CLEAN, ids=lambda entry: entry.scenario)
def test_without_a_plant_the_scenario_is_clean(entry):
    """Nothing found, nothing cut short."""
    attempt = hunt_clean(entry, "portfolio", 0, Budget(12, NO_LIMIT_S))

    assert (attempt.titles, attempt.cut) == ((), 0)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.id)
def test_a_negative_control_raises_no_alarm(control):
    """What looks racy and is right is not reported."""
    attempt = hunt_control(control, "portfolio", 0, Budget(40, NO_LIMIT_S))

    assert (attempt.titles, attempt.cut) == ((), 0)
