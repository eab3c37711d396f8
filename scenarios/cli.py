"""The command line: a thin door. Each subcommand is a module that is imported when it is used.

Exit status: 0 nothing found and expectations met; 1 a finding or an unmet expectation; 2 wrong input or usage;
3 inconclusive, a limit was hit; 4 a defect of tdsim itself; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from enum import IntEnum
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from scenarios.errors import ScenarioError

COMMANDS: Final = {
    "run": "Run a scenario once, in virtual time: latencies, counters, findings.",
    "hunt": "Search a scenario's interleavings for races and broken invariants.",
    "replay": "Make a finding happen again and show it; --shrink makes it smaller.",
    "races": "Find the data races of a recorded log.",
    "seamcall": "Call the TDX module's leaves by hand, or from a script.",
    "check": "Check scenario files, run nothing.",
    "list": "List the scenarios of the library and their questions.",
    "schema": "Print the JSON Schema of scenario files.",
}
"""Subcommands and their short help; each is `scenarios.commands.<name>.command`."""


class Exit(IntEnum):
    """Exit status of the program."""

    OK = 0
    FOUND = 1
    USAGE = 2
    INCONCLUSIVE = 3
    DEFECT = 4
    INTERRUPTED = 130


class LazyGroup(click.Group):
    """Knows its commands by name, imports the one that is used, and turns what they raise into an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"scenarios.commands.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands' short help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; everything it raises ends in one message and an exit status."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except ScenarioError as exc:
            for error in exc.errors:
                click.echo(str(error).encode("utf-8", "backslashreplace").decode(), err=True)
            ctx.exit(Exit.USAGE)
        except (KeyboardInterrupt, click.Abort):
            click.echo("interrupted", err=True)
            ctx.exit(Exit.INTERRUPTED)
        except Exception as exc:  # noqa: BLE001 - the last door: whatever comes here is our defect, kept and told
            kept = _keep_evidence()
            click.echo(f"tdsim has a defect: {type(exc).__name__}: {str(exc)[:300]}", err=True)
            click.echo(
                f"the traceback is in {kept}; please report it with the scenario and the seed", err=True
            )
            ctx.exit(Exit.DEFECT)


def _keep_evidence() -> Path:
    """Write the traceback of the current exception to a file that stays."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="tdsim-defect-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(f"command: {sys.argv}\npython: {sys.version}\n\n{traceback.format_exc()}")
    return Path(file.name)


def _version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"tdsim {version('tdsim')}")
        except PackageNotFoundError:
            click.echo("tdsim (not installed)")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def tdsim() -> None:
    """Deterministic simulator of Intel TDX guests with many vCPUs.

    SCENARIO is a YAML file or a name that `tdsim list` shows.

    Exit status: 0 nothing found and expectations met, 1 a finding or an unmet expectation, 2 wrong input or usage,
    3 inconclusive (a limit was hit), 4 a defect of tdsim itself, 130 interrupted.
    """


def main() -> None:
    """The program `tdsim`."""
    try:
        status = tdsim.main(prog_name="tdsim", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        sys.exit(exc.exit_code)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        # The reader has gone (`| head`): say nothing, and let the interpreter's last flush go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)
    sys.exit(status if isinstance(status, int) else Exit.OK)
