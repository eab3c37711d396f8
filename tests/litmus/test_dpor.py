"""`dpor` on the full model: small worlds are proved, a plant is found, and no other search sees more.

Dependence is declared by each operation and by the plain calls that look at shared state (`sim.dependence.note`). Here the
declarations meet the model: whatever `random` reaches, the exhausted search must have reached.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.build import build
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from sim import Kernel, explore
from sim.patches import applied, read
from tests.sim.brute_force import search

PLANTS = Path(__file__).resolve().parents[1] / "plants"
SCENARIO = load(LIBRARY / "prefault-vs-convert.yaml")


class Built:
    """The scenario as a world; remembers the last one that was built, for its outcome."""

    def __call__(self, kernel):
        self.kernel = kernel
        self.world = build(kernel, SCENARIO)

    def outcome(self):
        """Where it ended: findings, counters, every present SPTE, every leaf of the Secure EPT."""
        tdx = self.world.tdx
        return (
            tuple((finding.kind, finding.title) for finding in self.kernel.findings),
            tuple(sorted(self.kernel.counters.items())),
            tuple(sorted((str(sp), *entry) for sp in self.world.kvm.page_tables for entry in sp.present())),
            tuple(tdx.module.leaves(tdx.td)),
        )


@pytest.fixture(scope="module")
def exhausted():
    """Every class of interleavings of a prefault and a conversion of one page."""
    return search(Built(), "dpor")


def test_a_prefault_beside_a_conversion_is_proved(exhausted):
    """Nothing is found in any order, none was begun in vain, and the search vouches for having seen all."""
    assert exhausted.proved
    assert exhausted.cut == 0
    assert {findings for findings, *_ in exhausted.outcomes} == {()}


def test_no_other_search_reaches_an_outcome_that_dpor_has_not(exhausted):
    """Random walks with few and with many switches."""
    known = set(exhausted.outcomes)
    for strategy in ("random", "pos", "pct:3"):
        world = Built()
        seen = set()
        explore(
            world,
            strategy=strategy,
            executions=300,
            seed=1,
            after=lambda _kernel, world=world, seen=seen: seen.add(world.outcome()),
        )
        assert seen <= known


def test_values_reach_the_same_outcomes(exhausted):
    """With fewer executions."""
    values = search(Built(), "dpor:values")

    assert set(values.outcomes) == set(exhausted.outcomes)
    assert len(values.outcomes) < len(exhausted.outcomes)


def test_the_dropped_recheck_is_found():
    """The plant is one reversed race away."""
    with applied(read(PLANTS / "drop_is_page_fault_stale.py")):
        report = explore(lambda kernel: build(kernel, SCENARIO), strategy="dpor", stop_at_first=True)

    assert [finding.kind for finding in report.findings] == ["stale-spte"]
    assert report.executions < 10


@pytest.mark.parametrize("name", ["touch-vs-convert-next", "touch-vs-punch-holes"])
def test_longer_worlds_repeat_their_prefixes(name):
    """No step that was possible is missing when a prefix is run again, over a few hundred executions."""
    scenario = load(PLANTS / f"{name}.yaml")
    report = explore(lambda kernel: build(kernel, scenario), strategy="dpor", executions=60)

    assert report.executions == 60
    assert report.findings == []


def test_every_access_of_the_model_says_what_it_touches():
    """None falls back to everything."""
    seen = {}

    def watch(_kernel, _thread, access):
        seen[type(access)] = access.touches()

    scenario = load(PLANTS / "touch-vs-convert-next.yaml")
    kernel = Kernel(window_ns=0)
    build(kernel, scenario)
    kernel.check(watch)
    kernel.execute()
    said = {kind.__name__ for kind, touches in seen.items() if ("*", 2) in touches}

    assert len(seen) > 20
    assert said <= {"Reclaim"}
