"""Planted data races of the full model: found by a random walk, while the model as it is shows none in as many executions.

Other oracles would often be first (an assertion on the lock's mode, the SPTE ledger). Here an execution goes on after a
finding, so that each test is about the race detector.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from scenarios.accepted_races import ACCEPTED_RACES
from scenarios.build import build
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from sim import Kernel
from sim.kernel import INFINITY
from sim.patches import applied, read
from sim.races import attach

ROOT = Path(__file__).resolve().parents[2]
PLANTS = ROOT / "tests" / "plants"
WORLDS = PLANTS / "scenarios"

CASES = {
    "r95_window_closed_after_unlock": (WORLDS / "r95-convert-vs-punch-hole.yaml", "mmu_invalidate", 20),
    "r11_root_count_read_then_written": (WORLDS / "r11-roots-got-and-put.yaml", "root_count", 20),
    "races_plain_spte_store": (WORLDS / "races-two-touch-one.yaml", "spte", 10),
    "races_conversion_under_read_lock": (WORLDS / "races-accepts-vs-converts.yaml", "mmu_invalidate", 20),
    "races_uptodate_after_unlock": (WORLDS / "two-accept-one.yaml", "uptodate", 40),
}
"""Plant, the scenario that shows it, a part of the racing word's name, and within how many executions."""


def walks(scenario, executions):
    """The detector of each of so many random walks."""
    for number in range(executions):
        kernel = Kernel(0, window_ns=INFINITY, stop_at_finding=False, max_steps=20_000)
        build(kernel, scenario)
        detector = attach(kernel)
        random = Random(number)
        kernel.execute(lambda _kernel, ready, random=random: random.randrange(len(ready)))
        yield detector


def words_that_race(path, executions, *, plant=None):
    """The names of the racing words, from the first execution that has any."""
    scenario = load(path)
    with applied(read(PLANTS / f"{plant}.py") if plant else []):
        for detector in walks(scenario, executions):
            if detector.findings:
                return [finding.details["cell"] for finding in detector.findings]
    return []


@pytest.mark.parametrize("plant", CASES)
def test_a_planted_race_is_found(plant):
    """Within so many executions, in the word that it is about."""
    path, word, executions = CASES[plant]

    assert any(word in name for name in words_that_race(path, executions, plant=plant))


@pytest.mark.parametrize("path", sorted({path for path, _, _ in CASES.values()}), ids=lambda path: path.stem)
def test_the_model_as_it_is_shows_no_race(path):
    """The negative control: the same scenarios, at least as many executions."""
    assert words_that_race(path, 40) == []


def test_a_plain_store_under_the_read_lock_is_wrong_even_when_nobody_else_runs():
    """The lint of the SPTE ledger needs no unlucky schedule: one vCPU, in time order."""
    scenario = load(WORLDS / "one-page-plain.yaml")
    with applied(read(PLANTS / "races_plain_spte_store.py")):
        kernel = Kernel()
        build(kernel, scenario)
        kernel.execute()

    assert [(finding.kind, finding.title) for finding in kernel.findings] == [
        ("lock-rule", "a plain store to an SPTE under mmu_lock for read")
    ]


def test_each_accepted_race_does_happen():
    """An entry that excuses nothing would only be a hole."""
    excused = {
        tuple(entry)
        for name in ("convert-vs-convert", "build-vs-teardown")
        for detector in walks(load(LIBRARY / f"{name}.yaml"), 2)
        for entry in detector.excused
    }

    assert excused == set(ACCEPTED_RACES)
