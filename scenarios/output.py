"""The files of a run (DESIGN.md section 9).

The same scenario, seed and model give the same bytes: no wall-clock time is in any file (`wall_s` is null in
summary.json; the terminal and `--json` show it), keys are in a fixed order, names are sorted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.staging import put_in_place, write_text
from sim import Access, Event, Kernel, Thread
from sim.histogram import Histogram, write_hlog
from sim.races import FactTeller, LoggedSync
from sim.recorder import plain

if TYPE_CHECKING:
    from scenarios.run import RunResult

SUMMARY = (
    "scenario", "design", "seed", "model_digest", "now_ns", "steps", "wall_s", "counters", "latency", "findings",
    "expectations", "not_reached", "inconclusive",
)  # fmt: skip


class StepTaken(Event):
    """One access (only with `--events accesses`); from `op` on what `tdsim races` needs, see `sim.races.Facts`."""

    name = "step"
    verb: str
    cell: str
    value: str
    op: str
    word: int
    tid: int
    done: bool
    at: str
    syncs: list[LoggedSync]


def log_accesses(kernel: Kernel) -> None:
    """Log every access of the kernel's execution."""
    teller = FactTeller(kernel)

    def log_access(kernel: Kernel, thread: Thread, access: Access) -> None:
        text, target = repr(access), str(access.target)
        verb = text.removesuffix(f" {target}")
        value = plain(access.value) if access.processed else "blocked"
        kernel.emit(
            StepTaken(verb, target if verb != text else "", value, *teller.facts(kernel, thread, access))
        )

    kernel.check(log_access)


def write(staging: Path, out_dir: Path, result: RunResult, histograms: dict[str, Histogram]) -> None:
    """Write every file into `staging`, then move them to `out_dir`, replacing what an earlier run left there."""
    summary: dict[str, Any] = {name: getattr(result, name) for name in SUMMARY} | {"wall_s": None}
    write_text(staging / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_text(staging / "schedule.txt", "")  # a timing run is what fifo picks: no deviation
    for name in sorted(histograms):
        with (staging / f"latency.{name}.hgrm").open("w", encoding="utf-8", newline="\n") as file:
            histograms[name].write_hgrm(file, name=name)
    with (staging / "latency.hlog").open("w", encoding="utf-8", newline="\n") as file:
        write_hlog(file, {name: histograms[name] for name in sorted(histograms)}, length_ns=result.now_ns)
    (staging / "findings").mkdir()
    for finding in result.findings:
        write_text(
            staging / "findings" / f"{finding['fingerprint']}.json", json.dumps(finding, indent=1) + "\n"
        )
    put_in_place(staging, out_dir)
