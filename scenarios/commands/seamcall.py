"""`tdsim seamcall`: the TDX module by hand. The work is `scenarios.seamcall`; here is how scripts are told."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import click

from scenarios.commands.options import output_options

if TYPE_CHECKING:
    from scenarios.seamcall.script import Script, Told

WIDTH = 100


@click.command("seamcall", short_help="Call the TDX module's leaves by hand, or from a script.")
@click.argument("script", required=False, metavar="[SCRIPT]")
@click.option(
    "--profile", metavar="P", help="Release of the module for a session, as 1.5.01, 2.0 or 1.5.28+dpamt."
)
@click.option("--list", "listing", is_flag=True, help="List the scripts of the library.")
@output_options
@click.pass_context
def command(
    ctx: click.Context, script: str | None, profile: str | None, listing: bool, as_json: bool, quiet: bool
) -> None:
    """Build a TD and call the module's leaves one by one; see the status by name, what changed, which locks were tried.

    Without SCRIPT it reads lines: `help` says which. SCRIPT is a YAML file, or a name that --list shows. With --json each step of
    a script is one object on a line of its own.

    Exit status: 0 all expectations met, 1 one was not, 2 a line could not be understood.
    """
    if listing:
        _list(as_json=as_json)
    elif script is not None:
        if profile is not None:
            raise click.UsageError("a script names its module itself: --profile is for sessions")
        ctx.exit(_run(script, as_json=as_json, quiet=quiet))
    elif as_json or quiet:
        raise click.UsageError("--json and --quiet are for scripts")
    else:
        from scenarios.seamcall.repl import run_interactive
        from scenarios.seamcall.session import DEFAULT_PROFILE, Session

        try:
            session = Session(profile or DEFAULT_PROFILE)
        except ValueError as exc:
            raise click.BadParameter(str(exc), param_hint="--profile") from None
        ctx.exit(2 if run_interactive(session) else 0)


def _list(*, as_json: bool) -> None:
    from scenarios.seamcall.script import script_entries

    entries = script_entries()
    if as_json:
        click.echo(json.dumps(entries, indent=1, ensure_ascii=False))
        return
    width = max(len(entry["script"]) for entry in entries)
    for entry in entries:
        first, *more = textwrap.wrap(entry["about"], WIDTH - width)
        click.echo(f"{entry['script']:<{width}}  {first}")
        for line in more:
            click.echo(f"{'':<{width}}  {line}")


def _run(name: str, *, as_json: bool, quiet: bool) -> int:
    """Run a script and tell it. Returns: the exit status."""
    from scenarios.seamcall.script import find_script, load_script, run_script

    script = load_script(find_script(name))
    judged: list[bool] = []
    if not as_json and not quiet:
        _tell_head(script)
    for told in run_script(script):
        judged += [met for _, met in told.expectations]
        if as_json:
            _tell_json(told)
        elif not quiet:
            _tell(told)
    unmet = judged.count(False)
    if not as_json and not quiet and judged:
        verdict = (
            f"{unmet} of {len(judged)} expectations not met"
            if unmet
            else f"all {len(judged)} expectations met"
        )
        click.echo(f"\n{verdict}")
    return 1 if unmet else 0


def _tell_head(script: Script) -> None:
    click.echo(f"{script.name}: {script.about}")
    click.echo(f"TDX module {script.module}")


def _tell(told: Told) -> None:
    from scenarios.seamcall.show import lines_of

    click.echo("")
    if told.step.say:
        for paragraph in told.step.say.strip().split("\n\n"):
            click.echo(textwrap.fill(" ".join(paragraph.split()), WIDTH))
        return
    click.echo(f"> {told.step.line}")
    for report in told.reports:
        for line in lines_of(report):
            click.echo(line)
    for text, met in told.expectations:
        if not met:
            click.echo(click.style(f"  NOT MET {text}", fg="red", bold=True))


def _tell_json(told: Told) -> None:
    if told.step.say:
        click.echo(json.dumps({"say": told.step.say.strip()}, ensure_ascii=False))
        return
    expectations = [{"text": text, "met": met} for text, met in told.expectations]
    for report in told.reports:
        last = report is told.reports[-1]
        judged = {"expectations": expectations} if last and expectations else {}
        click.echo(json.dumps({**report.as_json(), **judged}, ensure_ascii=False))
