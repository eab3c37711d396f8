"""Every scenario of the library runs and keeps its promises."""

from __future__ import annotations

import pytest

from scenarios.library_index import LIBRARY
from scenarios.loading import load_all
from scenarios.run import run_scenario

SOAK = {"big-first-touch"}
"""Scenarios that take minutes."""

SCENARIOS = [
    pytest.param(scenario, id=scenario.name, marks=pytest.mark.soak if path.stem in SOAK else ())
    for path in sorted(LIBRARY.glob("*.yaml"))
    for scenario in load_all(path)
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_library_scenario_finds_nothing_and_meets_its_expectations(scenario):
    """A timing run of the file ends, without findings, with every expectation met; `sometimes` is for hunts."""
    result = run_scenario(scenario, seed=0, out_dir=None, events="off")

    assert [(finding["kind"], finding["title"]) for finding in result.findings] == []
    assert [told for told in result.expectations if not told["met"]] == []
    assert result.inconclusive == ""
