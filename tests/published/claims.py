"""A claim: what was published, what the model measures, how far apart they may be.

Tags are those of the cost reference: CAL, the source set a default of the cost table, so the check is a regression test;
OUT, it was used for no fit, so it is a prediction; EXACT, a count or a rule without tolerance. Nothing here is tuned: a
claim that the model cannot meet stays in its test as a strict expected failure, with the reason.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from scenarios.loading import load
from scenarios.run import RunResult, run_scenario


@dataclass
class Claims:
    """The rows of one published result; `settle` prints them all and then fails if one is missed."""

    name: str
    rows: list[tuple[str, float, float, float, float, str]] = field(default_factory=list)

    def near(
        self, what: str, expected: float, measured: float, tolerance: float, tag: str, *, source: str = ""
    ):
        """`measured` is within `tolerance` (a fraction) of `expected`."""
        low, high = sorted((expected * (1 - tolerance), expected * (1 + tolerance)))
        self.rows.append((f"{what} {source}".strip(), expected, measured, low, high, tag))

    def within(self, what: str, expected: float, measured: float, low: float, high: float, tag: str):
        """`measured` is in [low, high]."""
        self.rows.append((what, expected, measured, low, high, tag))

    def exact(self, what: str, expected: float, measured: float):
        """`measured` is `expected`."""
        self.rows.append((what, expected, measured, expected, expected, "EXACT"))

    def settle(self):
        print(f"\n{self.name}")
        print(f"  {'claim':58} {'expected':>10} {'measured':>10}  {'tolerance':22} {'tag':9} verdict")
        missed = []
        for what, expected, measured, low, high, tag in self.rows:
            met = low <= measured <= high
            bounds = "exact" if low == high else f"{low:.4g} .. {high:.4g}"
            print(
                f"  {what:58} {expected:10.4g} {measured:10.4g}  {bounds:22} {tag:9} {'met' if met else 'MISSED'}"
            )
            if not met:
                missed.append(f"{what}: {measured:.4g}, expected {bounds}")
        assert not missed, "; ".join(missed)


def simulate(text: str, *overrides: str) -> RunResult:
    """Run this scenario as `tdsim run` would, each cost at its mean, write nothing; it must end without a finding."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "published.yaml"
        file.write_text(f"scenario: published\nquestion: What was published?\n{text}", encoding="utf-8")
        scenario = load(file, ("jitter=false", *overrides))
    result = run_scenario(scenario, seed=0, events="off")
    assert not result.findings, result.findings
    return result


def line_fit(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Least squares: slope, intercept and R2 of y over x."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    sxx = sum((x - mean_x) ** 2 for x, _ in points)
    sxy = sum((x - mean_x) * (y - mean_y) for x, y in points)
    syy = sum((y - mean_y) ** 2 for _, y in points)
    slope = sxy / sxx
    return slope, mean_y - slope * mean_x, sxy**2 / (sxx * syy) if syy else 1.0
