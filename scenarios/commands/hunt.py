"""`tdsim hunt`: search a scenario's interleavings. The work is `scenarios.campaign.hunt`; here is how it is told.

On a terminal, a line on stderr shows how it goes. The result is on stdout: a summary, the text of the findings with
`--format text`, or JSON with `--json`. An interrupted hunt tells and writes what it has, and ends with status 130.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import click

from scenarios.commands.options import (
    execution_options,
    output_options,
    overrides,
    patch_files,
    scenario_options,
)

if TYPE_CHECKING:
    from scenarios.campaign.result import HuntResult
    from scenarios.campaign.shares import Progress, Tick

REFRESH_S = 0.1
"""How often the progress line changes."""


@click.command("hunt", short_help="Search a scenario's interleavings for races and broken invariants.")
@click.argument("scenario_name", metavar="SCENARIO")
@click.option(
    "--strategy",
    metavar="S",
    help="fifo, random, pct:D, pos, surw, dfs[:B], dpor[:values], states[:N], exhaustive, pruned, portfolio, replay:SCHEDULE; default: the scenario's.",
)
@click.option("--executions", type=click.IntRange(min=1), metavar="N", help="At most so many executions.")
@click.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), metavar="S", help="At most so many seconds."
)
@click.option(
    "--jobs", type=click.IntRange(1, 256), default=1, show_default=True, metavar="N", help="Worker processes."
)
@click.option("--stop-at-first", is_flag=True, help="End at the first finding.")
@scenario_options
@execution_options
@click.option(
    "--format",
    "layout",
    type=click.Choice(["summary", "text"]),
    default="summary",
    show_default=True,
    help="text: each finding as a block for a mail.",
)
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    scenario_name: str,
    strategy: str | None,
    executions: int | None,
    time_limit: float | None,
    jobs: int,
    stop_at_first: bool,
    seed: int | None,
    design: str | None,
    settings: tuple[str, ...],
    out: Path | None,
    patches: tuple[str, ...],
    layout: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Search the interleavings of SCENARIO, a file or a name of the library, and judge them by its expectations."""
    from scenarios.campaign.hunt import hunt_scenario
    from scenarios.commands.run import output_folder
    from scenarios.loading import load_all, resolve

    files = patch_files(patches)
    found = load_all(resolve(scenario_name), overrides(settings, seed, design))
    results: list[HuntResult] = []
    for scenario in found:
        with progress_line(scenario.name, shown=not quiet) as tick:
            result = hunt_scenario(
                scenario,
                strategy=strategy,
                executions=executions,
                time_limit_s=time_limit,
                jobs=jobs,
                stop_at_first=stop_at_first,
                patches=files,
                out_dir=output_folder(scenario, out, several=len(found) > 1),
                tick=tick,
            )
        results.append(result)
        if result.interrupted:
            break
    if as_json:
        told = [
            result.summary() | {"wall_s": result.wall_s, "out_dir": str(result.out_dir)} for result in results
        ]
        click.echo(json.dumps(told[0] if len(told) == 1 else told, indent=1, ensure_ascii=False))
    elif not quiet:
        for result in results:
            click.echo(texts(result) if layout == "text" else "\n".join(result.lines()))
    ctx.exit(max(result.status for result in results))


def texts(result: HuntResult) -> str:
    """The findings as blocks for a mail; one line if there are none."""
    assert result.out_dir is not None
    blocks = [
        (result.out_dir / "findings" / f"{finding['fingerprint']}.txt").read_text(encoding="utf-8")
        for finding in result.findings
    ]
    return "\n".join(blocks) if blocks else f"{result.verdict}: {result.claim}"


@contextmanager
def progress_line(name: str, *, shown: bool) -> Iterator[Tick | None]:
    """A function that shows progress on stderr while the block lasts; None if stderr is no terminal."""
    if not shown or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    began_s = monotonic()
    next_s = 0.0
    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:

        def tick(now: Progress) -> None:
            nonlocal next_s
            passed_s = monotonic() - began_s
            if passed_s >= next_s:
                next_s = passed_s + REFRESH_S
                live.update(Text(progress_text(name, now, passed_s)), refresh=True)

        yield tick


def progress_text(name: str, now: Progress, passed_s: float) -> str:
    """The progress line."""
    rate = now.executions / passed_s if passed_s > 0 else 0.0
    return (
        f"{name}: {now.executions} executions ({rate:.0f}/s), longest {now.steps_max} steps, {now.classes} classes, "
        f"{now.ids} step ids, {now.pairs} conflicting pairs, {now.findings} findings"
    )


__all__ = ["command", "progress_line", "progress_text", "texts"]
