"""Findings: one record for all checkers."""

from __future__ import annotations

import json

import pytest

from sim import Finding, Kernel, free_cell


def test_an_unknown_kind_is_a_defect():
    """The kinds are those of DESIGN.md section 4."""
    with pytest.raises(AssertionError, match="no such kind of finding: bad-luck"):
        Finding("bad-luck", "it rained")


def test_the_fingerprint_is_kind_title_and_first_place():
    """Not the schedule, the step, or who else was about."""
    one = Finding("deadlock", "t", where=("a: f.py:1 g < f.py:9 h", "b: x"), schedule="a b", step=3)
    same = Finding("deadlock", "t", where=("a: f.py:1 g < f.py:7 k",), schedule="b", step=9)
    others = [
        Finding("livelock", "t", where=one.where),
        Finding("deadlock", "u", where=one.where),
        Finding("deadlock", "t", where=("a: f.py:2 g",)),
    ]

    assert one.fingerprint == same.fingerprint
    assert one.fingerprint not in {other.fingerprint for other in others}


def test_a_finding_is_plain_json():
    """With a fixed order of keys and its fingerprint last."""
    finding = Finding("unmet", "t", threads=("a",), details={"x": "1"})
    data = json.loads(json.dumps(finding.as_json()))

    assert list(data)[:3] == ["kind", "title", "threads"]
    assert list(data)[-1] == "fingerprint"
    assert data["details"] == {"x": "1"}


def test_where_is_the_whole_chain_of_generators_innermost_first():
    """Every thread that has not ended is in it, the one at fault first."""
    k = Kernel()
    cell = k.cell("x", 0)

    def inner():
        yield cell.read()

    def outer():
        free_cell(cell)
        yield from inner()

    def idle():
        yield k.cell("y", 0).wait_until(bool)

    k.thread("idle", idle())
    k.thread("culprit", outer())
    k.execute()

    (finding,) = k.findings
    assert finding.threads == ("culprit", "idle")
    first, second = finding.where[0].split(" < ")
    assert first.startswith("culprit: sim/test_findings.py:")
    assert first.endswith(" inner")
    assert second.endswith(" outer")
    assert finding.where[1].endswith(" idle")
