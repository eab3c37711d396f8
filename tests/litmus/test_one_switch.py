"""One context switch, at every place: a vCPU runs p steps, then a host thread runs to its end.

The races of the protocol need just this order, and a uniform random walk never makes it (the host takes a hundred steps
while the vCPU takes none). So the plants that `random` misses are proven here, and the correct model is not accused.
"""

from __future__ import annotations

from pathlib import Path

from scenarios.build import build
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from sim import record
from sim.patches import applied, read

PLANTS = Path(__file__).resolve().parents[1] / "plants"


def one_switch(path, steps, plant=None):
    """The kinds of findings over all places of the switch, and what was reached on the way."""
    scenario = load(path)
    kinds = set()
    reached = set()
    with applied(read(PLANTS / plant) if plant else []):
        for p in range(1, steps):
            kernel = record(lambda k: build(k, scenario), f"vcpu0*{p} host0*2000").kernel
            kinds |= {finding.kind for finding in kernel.findings}
            reached |= kernel.met
    return kinds, reached


def test_a_fault_that_was_overtaken_by_a_conversion_is_found_stale():
    """F31 is reached with a stale fault, and nothing goes wrong."""
    kinds, reached = one_switch(LIBRARY / "fault-vs-convert.yaml", 180)

    assert set() == kinds
    assert "fault_found_stale" in reached


def test_dropping_the_locked_recheck_maps_a_frame_that_is_shared_by_now():
    """Without F31 a mirror leaf stays for a shared frame."""
    kinds, _ = one_switch(LIBRARY / "fault-vs-convert.yaml", 180, "drop_is_page_fault_stale.py")

    assert {"stale-spte"} == kinds


def test_a_conversion_beside_a_running_vcpu_is_clean():
    """BLOCK, TRACK, kick, REMOVE while the vCPU touches the next page."""
    kinds, _ = one_switch(PLANTS / "touch-vs-convert-next.yaml", 370)

    assert set() == kinds


def test_removing_without_a_kick_is_refused_by_the_module():
    """Z3 without its kick: a vCPU of the old epoch is still inside, and REMOVE says TLB_TRACKING_NOT_DONE."""
    kinds, _ = one_switch(PLANTS / "touch-vs-convert-next.yaml", 370, "no_kick_after_track.py")

    assert {"kvm-bug"} == kinds
