"""Options that several subcommands share, and what they mean for a scenario."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def scenario_options(function: F) -> F:
    """`--seed --design --set`: options that change the scenario itself."""
    options = [
        click.option(
            "--seed", type=click.IntRange(min=0), metavar="N", help="Seed; default: the scenario's, else 0."
        ),
        click.option("--design", metavar="D", help="Published design to follow; default: the scenario's."),
        click.option(
            "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set any scenario key; repeatable."
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def execution_options(function: F) -> F:
    """`--out --patch`: where the files go, and what of the model is replaced."""
    function = click.option(
        "--patch",
        "patches",
        multiple=True,
        metavar="F",
        help="Python file that replaces functions; repeatable.",
    )(function)
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Output folder; default: out/<scenario>-<seed>.",
    )(function)


def output_options(function: F) -> F:
    """`--json --quiet`: how the result is told."""
    function = click.option("--quiet", "-q", is_flag=True, help="Print nothing; the exit status tells.")(
        function
    )
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else."
    )(function)


def overrides(settings: tuple[str, ...], seed: int | None, design: str | None) -> list[str]:
    """All options that change the scenario, as `key=value`; the particular ones win over `--set`."""
    result = list(settings)
    if seed is not None:
        result.append(f"seed={seed}")
    if design is not None:
        result.append(f"design={design}")
    return result


def patch_files(patches: tuple[str, ...]) -> tuple[Path, ...]:
    """Files of `--patch`, which must exist."""
    for patch in patches:
        if not Path(patch).is_file():
            raise click.BadParameter(f"no file {patch!r}", param_hint="--patch")
    return tuple(Path(patch) for patch in patches)
