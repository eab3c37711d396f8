"""`python -m tests.conformance`: the module against the published tables, row by row.

Exit status: 0 every row that can be expressed agrees, 1 some row does not, 2 a table that cannot be read or wrong usage. With a `--profile` other
than 1.5.01, whose tables these are, differences are expected: they are listed, and the status is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tdx.module import PROFILES, TDX_1_5_01
from tests.conformance.run import Report, run_locks, run_transitions
from tests.conformance.table import (
    LOCKS,
    MORE_TRANSITIONS,
    TRANSITIONS,
    BadTable,
    read_locks,
    read_transitions,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit status."""
    options = _options(arguments)
    try:
        reports = _reports(options)
    except BadTable as bad:
        print(f"tests.conformance: {bad}", file=sys.stderr)
        return 2
    if options.json:
        print(
            json.dumps(
                {"profile": options.profile, "tables": [report.as_json() for report in reports]}, indent=1
            )
        )
    else:
        for report in reports:
            print("\n".join(report.lines()), end="\n\n")
    expected = options.profile != TDX_1_5_01.name
    return 0 if expected or all(report.agrees for report in reports) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description="The module against the published tables, row by row."
    )
    parser.add_argument(
        "--table", type=Path, metavar="CSV", help="a transition table; the published one by default"
    )
    parser.add_argument(
        "--locks", type=Path, metavar="CSV", help="a table of locks; the published one by default"
    )
    parser.add_argument("--jobs", type=_jobs, default=1, metavar="N", help="how many processes")
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument(
        "--profile",
        choices=sorted(PROFILES),
        default=TDX_1_5_01.name,
        help="another release: differences are only listed",
    )
    return parser.parse_args(arguments)


def _jobs(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no number of processes; 1 or more")
    return int(text)


def _reports(options: argparse.Namespace) -> list[Report]:
    """The published tables and ours, or just the ones that are named. Raises: BadTable, before anything is run."""
    both = options.table is None and options.locks is None
    transitions = read_transitions(options.table or TRANSITIONS) if both or options.table else []
    locks = read_locks(options.locks or LOCKS) if both or options.locks else []
    ours = read_transitions(MORE_TRANSITIONS) if both else []
    reports = []
    if transitions:
        reports.append(run_transitions(transitions, profile=options.profile, jobs=options.jobs))
    if locks:
        reports.append(run_locks(locks, profile=options.profile, jobs=options.jobs))
    if ours:
        reports.append(
            run_transitions(ours, profile=options.profile, jobs=options.jobs, title="Rows of our own")
        )
    return reports


if __name__ == "__main__":
    sys.exit(main())
