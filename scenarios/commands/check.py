"""`tdsim check`: is this a scenario?"""

from __future__ import annotations

import json

import click

from scenarios.commands.options import output_options, overrides, scenario_options
from scenarios.errors import ScenarioError


@click.command("check", short_help="Check scenario files, run nothing.")
@click.argument("scenarios", nargs=-1, required=True, metavar="SCENARIO...")
@scenario_options
@output_options
@click.pass_context
def command(
    ctx: click.Context,
    scenarios: tuple[str, ...],
    seed: int | None,
    design: str | None,
    settings: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Check each SCENARIO, overrides applied, and every combination of its sweep."""
    from scenarios.loading import load_all, resolve

    good: list[dict[str, object]] = []
    bad: list[ScenarioError] = []
    for name in scenarios:
        try:
            checked = load_all(resolve(name), overrides(settings, seed, design))
            good += [
                {"scenario": found.name, "vcpus": found.td.vcpus, "threads": len(found.programs())}
                for found in checked
            ]
        except ScenarioError as exc:
            bad.extend(exc.errors)
    if as_json:
        click.echo(json.dumps({"ok": good, "errors": [error.as_dict() for error in bad]}, indent=1))
    elif not quiet:
        for entry in good:
            click.echo(f"{entry['scenario']}: ok, {entry['threads']} threads, {entry['vcpus']} vCPUs")
    for error in bad if not as_json else ():
        click.echo(str(error).encode("utf-8", "backslashreplace").decode(), err=True)
    if bad:
        ctx.exit(2)
