"""Small searches: the model is clean, and a planted bug is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.build import build
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from sim import explore
from sim.patches import applied, read

PLANTS = Path(__file__).resolve().parents[1] / "plants"
TINY = PLANTS / "touch-vs-punch-holes.yaml"


def hunt(path, *overrides, plant=None):
    """200 executions of random, seed 0, on the scenario's world."""
    scenario = load(path, overrides)
    with applied(read(PLANTS / plant) if plant else []):
        return explore(lambda k: build(k, scenario), executions=200, seed=0, stop_at_first=plant is not None)


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (LIBRARY / "vcpus-vs-one-page.yaml", ["td.vcpus=2"]),
        (LIBRARY / "fault-vs-convert.yaml", []),
        (TINY, []),
    ],
    ids=["vcpus-vs-one-page", "fault-vs-convert", "touch-vs-punch-holes"],
)
def test_the_model_is_clean(path, overrides):
    """The negative control: no findings, and no execution cut short."""
    report = hunt(path, *overrides)

    assert [(finding.kind, finding.title) for finding in report.findings] == []
    assert report.complete == 200


def test_a_dropped_stale_check_is_found():
    """Without F31 a fault installs a page that is gone; the schedule leads there again."""
    report = hunt(TINY, plant="drop_is_page_fault_stale.py")

    (finding,) = report.findings
    assert finding.kind in {"diverged", "stale-spte", "kvm-bug", "td-dead", "uaf-page"}
    scenario = load(TINY)
    with applied(read(PLANTS / "drop_is_page_fault_stale.py")):
        again = explore(lambda k: build(k, scenario), strategy=f"replay:{finding.schedule}")
    assert [f.fingerprint for f in again.findings] == [finding.fingerprint]
