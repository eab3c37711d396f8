"""What is done with a finding once the search is over: a shorter schedule, the nearest one that passes, its timing witness.

All are bounded and depend on the finding alone, so they are the same for any number of jobs. A smaller scenario is
`scenarios.shrink`'s, on request: it takes longer.
"""

from __future__ import annotations

from typing import Any

from scenarios.campaign.case import Opened
from sim import Finding
from sim.nearest import nearest
from sim.shrink import shrink
from sim.witness import witness

SHORTENED = 150
"""Executions that go into a shorter schedule."""

REVERSALS = 100
"""Races of a finding that are turned round, one execution each."""

TIMED = 150
"""Timing runs that look for a witness."""


def as_plain(finding: Finding) -> dict[str, Any]:
    """The finding as JSON has it: lists for tuples."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in finding.as_json().items()
    }


def shortened(opened: Opened, finding: Finding) -> Finding:
    """The same finding by a schedule with fewer context switches, if one is found quickly."""
    if not finding.schedule:
        return finding
    return shrink(
        opened.world,
        finding,
        budget=SHORTENED,
        window_ns=opened.window_ns,
        max_steps=opened.case.max_steps,
    ).finding


def nearest_passing(opened: Opened, finding: Finding) -> dict[str, Any]:
    """The one race that decides, and the schedule on which it passes; empty if the finding does not show again."""
    if not finding.schedule:
        return {}
    try:
        found = nearest(
            opened.world,
            finding,
            budget=REVERSALS,
            window_ns=opened.window_ns,
            max_steps=opened.case.max_steps,
        )
    except ValueError:
        return {}
    return {"schedule": found.schedule, "tried": found.tried, "text": str(found)}


def timing_witness(opened: Opened, finding: Finding) -> dict[str, Any]:
    """Which latencies make it happen in a timing run, and how likely that is; empty for what was found in time order."""
    if not finding.schedule or opened.case.timed:
        return {}
    found = witness(opened.timed_world, finding, budget=TIMED, max_steps=opened.case.max_steps)
    return {"found": found.found, "runs": found.runs, "text": str(found)}
