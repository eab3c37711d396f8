"""`tdsim run`: one timing run, and how its result is told.

The work is `scenarios.run.run_scenario`; here is only what a person or a program reads: a rich table on a terminal,
aligned plain text in a pipe, JSON with `--json`. The result is on stdout, everything else on stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from scenarios.commands.options import (
    execution_options,
    output_options,
    overrides,
    patch_files,
    scenario_options,
)
from scenarios.errors import ScenarioError
from scenarios.units import format_time

if TYPE_CHECKING:
    from scenarios.schema import Scenario

LATENCY_COLUMNS = ("count", "min", "p50", "p90", "p99", "p999", "max", "mean")


class RunResult(Protocol):
    """What a run gives back; `summary.json` has the same fields (DESIGN section 9)."""

    @property
    def scenario(self) -> str: ...
    @property
    def design(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def model_digest(self) -> str: ...
    @property
    def now_ns(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def wall_s(self) -> float: ...
    @property
    def counters(self) -> Mapping[str, int]: ...
    @property
    def latency(self) -> Mapping[str, Mapping[str, Any]]: ...
    @property
    def findings(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def expectations(self) -> Sequence[Mapping[str, Any]]: ...
    @property
    def out_dir(self) -> Path | None: ...


@click.command("run", short_help="Run a scenario once, in virtual time: latencies, counters, findings.")
@click.argument("scenario_name", metavar="SCENARIO")
@scenario_options
@execution_options
@click.option(
    "--events", type=click.Choice(["off", "events", "accesses"]), default="events", show_default=True,
    help="What events.jsonl records.",
)  # fmt: skip
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    scenario_name: str,
    seed: int | None,
    design: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    patches: tuple[str, ...],
    events: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run SCENARIO, a file or a name of the library, and print its latencies, counters and findings."""
    from scenarios.loading import load_all, resolve
    from scenarios.staging import refuse_unwritable

    files = patch_files(patches)
    scenarios = load_all(resolve(scenario_name), overrides(settings, seed, design))
    folders = [output_folder(scenario, out, several=len(scenarios) > 1) for scenario in scenarios]
    for folder in folders:
        refuse_unwritable(folder)
    results = [
        _run_one(scenario, folder, events, (*scenario.patch_files, *files))
        for scenario, folder in zip(scenarios, folders, strict=True)
    ]
    if as_json:
        told = [as_dict(result) for result in results]
        click.echo(json.dumps(told[0] if len(told) == 1 else told, indent=1, ensure_ascii=False))
    elif not quiet:
        for result in results:
            show(result)
    ctx.exit(max(exit_status(result) for result in results))


def output_folder(scenario: Scenario, out: Path | None, *, several: bool = False) -> Path:
    """Where the run's files go: `--out`, below it for each scenario of a sweep, or `out/<scenario>-<seed>`."""
    own = f"{scenario.name}-{scenario.seed}".replace("/", "_")
    if out is None:
        return Path("out") / own
    return out / own if several else out


def exit_status(result: RunResult) -> int:
    """0 nothing found and all met, 1 a finding or an unmet expectation, 3 stopped by a limit without either."""
    if result.findings or any(not expectation["met"] for expectation in result.expectations):
        return 1
    return 3 if getattr(result, "inconclusive", None) else 0


def as_dict(result: RunResult) -> dict[str, Any]:
    """The result as `--json` prints it: `summary.json` and where the files are."""
    return {
        "scenario": result.scenario,
        "design": result.design,
        "seed": result.seed,
        "model_digest": result.model_digest,
        "now_ns": result.now_ns,
        "steps": result.steps,
        "wall_s": result.wall_s,
        "counters": dict(sorted(result.counters.items())),
        "latency": {name: dict(figures) for name, figures in sorted(result.latency.items())},
        "findings": [dict(finding) for finding in result.findings],
        "expectations": [dict(expectation) for expectation in result.expectations],
        "out_dir": str(result.out_dir) if result.out_dir is not None else None,
    }


def show(result: RunResult) -> None:
    """Print the result for a person: tables on a terminal, aligned text in a pipe."""
    if sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        _show_rich(result)
    else:
        click.echo(plain_text(result), nl=False)


def plain_text(result: RunResult) -> str:
    """The result as aligned text."""
    lines = [heading(result)]
    latencies = latency_rows(result)
    if latencies:
        lines += ["", *_aligned([("latency (ns)", *LATENCY_COLUMNS), *latencies])]
    counters = [(name, str(value)) for name, value in sorted(result.counters.items())]
    if counters:
        lines += ["", *_aligned([("counter", "value"), *counters])]
    lines += ["", *verdict_lines(result)]
    return "\n".join(lines) + "\n"


def heading(result: RunResult) -> str:
    """One line: what ran, and how long."""
    return (
        f"{result.scenario}  design {result.design}  seed {result.seed}  "
        f"virtual time {format_time(result.now_ns)}  steps {result.steps}  wall {result.wall_s:.2f} s"
    )


def latency_rows(result: RunResult) -> list[tuple[str, ...]]:
    """One row a latency name, in the order of names."""
    rows = []
    for name, figures in sorted(result.latency.items()):
        values = [figures.get(column) for column in LATENCY_COLUMNS]
        rows.append((name, *("-" if value is None else f"{value:.0f}" for value in values)))
    return rows


def verdict_lines(result: RunResult) -> list[str]:
    """Expectations, findings and where the files are."""
    lines = []
    for expectation in result.expectations:
        detail = f": {expectation['detail']}" if expectation.get("detail") else ""
        lines.append(f"{'met  ' if expectation['met'] else 'UNMET'}  {expectation['text']}{detail}")
    for finding in result.findings:
        lines.append(f"FINDING  {finding.get('kind', '?')}: {finding.get('title', '')}")
        if finding.get("replay"):
            lines.append(f"         {finding['replay']}")
    if not result.findings:
        lines.append("no findings")
    lines += [f"inconclusive: {reason}" for reason in _reasons(result)]
    if result.out_dir is not None:
        lines.append(f"files in {result.out_dir}")
    return lines


def _reasons(result: RunResult) -> list[str]:
    reasons = getattr(result, "inconclusive", None) or ()
    return [reasons] if isinstance(reasons, str) else [str(reason) for reason in reasons]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *values in rows:
        cells = [f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *cells]))
    return lines


def _show_rich(result: RunResult) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(heading(result), style="bold"))
    tables: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = [
        (("latency (ns)", *LATENCY_COLUMNS), latency_rows(result)),
        (("counter", "value"), [(name, str(value)) for name, value in sorted(result.counters.items())]),
    ]
    for header, rows in tables:
        if not rows:
            continue
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for i, column in enumerate(header):
            table.add_column(column, justify="right" if i else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console.print(table)
    for line in verdict_lines(result):
        bad = line.startswith(("UNMET", "FINDING"))
        console.print(Text(line, style="bold red" if bad else "green" if line.startswith("met") else ""))


def _run_one(scenario: Scenario, folder: Path, events: str, patches: tuple[Path, ...]) -> RunResult:
    from importlib import import_module

    run_scenario = import_module("scenarios.run").run_scenario
    try:
        result: RunResult = run_scenario(
            scenario, seed=scenario.seed, out_dir=folder, events=events, patches=patches
        )
    except OSError as exc:
        if exc.filename is None or folder.absolute() not in (
            Path(exc.filename).absolute(),
            *Path(exc.filename).absolute().parents,
        ):
            raise
        raise ScenarioError(
            f"cannot write: {exc.strerror}", str(exc.filename), remedy="choose another --out"
        ) from exc
    return result
