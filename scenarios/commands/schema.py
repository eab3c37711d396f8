"""`tdsim schema`: the JSON Schema of scenario files."""

from __future__ import annotations

import click


@click.command("schema", short_help="Print the JSON Schema of scenario files.")
def command() -> None:
    """Print the JSON Schema of scenario files; editors complete and check from it."""
    from scenarios.schema_json import schema_text

    click.echo(schema_text(), nl=False)
