"""`tdsim races`: the data races of a recorded run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from scenarios.commands.options import output_options


@click.command("races", short_help="Find the data races of a recorded log.")
@click.argument("log", metavar="EVENTS.jsonl", type=click.Path(path_type=Path))
@output_options
@click.pass_context
def command(ctx: click.Context, log: Path, as_json: bool, quiet: bool) -> None:
    """Find two accesses of one word that nothing orders, in the log of a run with `--events accesses`.

    Exit status: 0 none, 1 at least one, 2 the file is no such log.
    """
    from scenarios.race_log import races_of_log

    findings = races_of_log(log)
    if as_json:
        click.echo(json.dumps({"findings": [finding.as_json() for finding in findings]}, indent=1))
    elif not quiet:
        for finding in findings:
            click.echo(f"FINDING  {finding.kind}: {finding.title}")
            for name in ("cell", "one", "other", "last common sync"):
                click.echo(f"         {name}: {finding.details[name]}")
        if not findings:
            click.echo("no data races")
    ctx.exit(1 if findings else 0)
