"""`tdsim replay`: make a finding, or a schedule, happen again; with `--shrink` make it smaller.

The work is `scenarios.replay`; here is how it is told. Exit status: 1 the finding shows (or the schedule makes one), 0 it
does not, 3 the execution was cut.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scenarios.commands.options import output_options, overrides, patch_files, scenario_options
from scenarios.errors import ScenarioError

if TYPE_CHECKING:
    from scenarios.campaign.case import Case, Opened
    from scenarios.replay import Replayed, Told

WIDTH = 100
"""Columns of the screen's layout, if the terminal is not narrower."""

MISFITS = 10
"""Misfits that are told one by one."""


@click.command("replay", short_help="Make a finding happen again and show it; --shrink makes it smaller.")
@click.argument("file", metavar="FINDING", type=click.Path(path_type=Path))
@click.option(
    "--scenario", "scenario_name", metavar="SCENARIO", help="For a schedule: the scenario it is of."
)
@scenario_options
@click.option(
    "--patch", "patches", multiple=True, metavar="F", help="One more patch (does it mend it?); repeatable."
)
@click.option(
    "--shrink", "shrinking", is_flag=True, help="Make scenario and schedule smaller; writes a new JSON."
)
@click.option("--executions", type=click.IntRange(min=1), metavar="N", help="At most so many, for --shrink.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where --shrink writes; default: FINDING with .shrunk.json at its end.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["screen", "text"]),
    default="screen",
    show_default=True,
    help="text: a block for a mail, 75 columns wide.",
)
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    file: Path,
    scenario_name: str | None,
    seed: int | None,
    design: str | None,
    settings: tuple[str, ...],
    patches: tuple[str, ...],
    shrinking: bool,
    executions: int | None,
    out: Path | None,
    layout: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Replay FINDING, the JSON file of a finding, or a file with a schedule of --scenario."""
    from scenarios.campaign.case import patch_sources
    from scenarios.replay import read, replay

    case, told = read(file, scenario_name, overrides(settings, seed, design))
    case = case.with_patches((*case.patches, *patch_sources(patch_files(patches))))
    to = None
    if shrinking:
        to = out or file.with_name(f"{file.stem.removesuffix('.shrunk')}.shrunk.json")
        if not to.parent.is_dir() or not os.access(to.parent, os.W_OK):  # before the work, not after it
            raise ScenarioError("cannot be written", str(to), remedy="choose another --out")
        case, told = _shrink(case, told, to, executions, quiet=quiet or as_json)
    with case.opened() as opened:
        result = replay(opened, told)
        if as_json:
            written = {"written": str(to) if to is not None else None}
            click.echo(json.dumps(result.as_json() | written, indent=1, ensure_ascii=False))
        elif not quiet:
            show(opened, result, layout)
    ctx.exit(result.status)


def _shrink(case: Case, told: Told, to: Path, executions: int | None, *, quiet: bool) -> tuple[Case, Told]:
    from scenarios.replay import make_smaller, read
    from scenarios.shrink import EXECUTIONS

    def tell(what: str, made: int) -> None:
        if not quiet and sys.stderr.isatty():
            click.echo(f"{made:6} executions: {what}", err=True)

    small = make_smaller(case, told, to, executions=executions or EXECUTIONS, progress=tell)
    if not quiet:
        for line in small.lines():
            click.echo(line)
        click.echo(f"written to {to}\n")
    return read(to, None, ())


def show(opened: Opened, result: Replayed, layout: str) -> None:
    """Print the columns, and before them what to know about this replay."""
    from shutil import get_terminal_size

    from scenarios.columns import MAIL_WIDTH, block

    places = Counter(result.misfits)
    for (step, thread), times in list(places.items())[:MISFITS]:
        often = f" ({times} times)" if times > 1 else ""
        click.echo(f"step {step}: {thread} cannot go here{often}; the schedule no longer fits, fifo goes on")
    if len(places) > MISFITS:
        click.echo(f"... and misfits at {len(places) - MISFITS} more places")
    if result.other_model:
        click.echo("the model or its patches are not those the finding was made with")
    told = result.told
    if result.found is None:
        cut = ", cut by the limit of steps" if result.cut else ""
        what = f"{told['kind']} does not show: " if told["kind"] else ""
        click.echo(f"{what}nothing found in {result.made.recording.kernel.steps} steps{cut}")
        return
    if told["kind"] and not result.same:
        click.echo(f"not {told['kind']} ({told['title']}), but:")
    width = MAIL_WIDTH if layout == "text" else min(WIDTH, get_terminal_size((WIDTH, 24)).columns)
    click.echo(block(opened, result.shown, width=width, made=result.made), nl=False)
