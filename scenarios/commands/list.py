"""`tdsim list`: the library, and what each scenario asks."""

from __future__ import annotations

import json
import textwrap

import click


@click.command("list", short_help="List the scenarios of the library and their questions.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def command(as_json: bool) -> None:
    """List the scenarios of the library, which any command takes by name, and the question each one asks."""
    from scenarios.library_index import library_entries

    entries = library_entries()
    if as_json:
        click.echo(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    width = max((len(entry["scenario"]) for entry in entries), default=0)
    for entry in entries:
        lines = textwrap.wrap(entry["question"], 100 - width) or [""]
        click.echo(f"{entry['scenario']:<{width}}  {lines[0]}")
        for line in lines[1:]:
            click.echo(f"{'':<{width}}  {line}")
    click.echo("\nThe scripts of `tdsim seamcall`, for the module alone: tdsim seamcall --list")
