"""`python -m tests.bench.peers.one ROW STRATEGY [shrink]`: one row under tdsim, as a process of its own; prints one line of JSON.

Imports nothing but `sim` and the world, because start-up is part of what is measured.
"""

from __future__ import annotations

import json
import sys

from sim import explore
from tests.bench.protocols import ROWS, build

EXECUTIONS = 20_000
"""Of a strategy that has no end of its own; planted bugs show after a hundred at most."""
MAX_STEPS = 300
"""More than twice what the longest execution without a livelock takes."""


def main(row: str, strategy: str, *, shrinks: bool) -> dict[str, object]:
    """Run one row, up to the first finding, and say what came of it."""
    world = build(ROWS[int(row)])
    exhaustive = strategy.startswith(("states", "dpor"))
    report = explore(
        world,
        strategy=strategy,
        executions=None if exhaustive else EXECUTIONS,
        stop_at_first=True,
        max_steps=MAX_STEPS,
        races=False,
    )
    first = report.findings[0] if report.findings else None
    result: dict[str, object] = {
        "verdict": "fail"
        if first
        else {"proved": "ok", "none found": "ok"}.get(report.verdict, report.verdict),
        "executions": report.executions,
        "claim": report.claim,
        "first": first.step if first else None,
        "title": first.title if first else None,
    }
    if shrinks and first is not None:
        from sim.shrink import shrink

        shrunk = shrink(world, first, max_steps=MAX_STEPS)
        result["shrunk"] = shrunk.finding.step
        result["switches"] = len(shrunk.schedule.split()) - 1
    return result


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], shrinks=sys.argv[3:] == ["shrink"])))
