"""`python -m tests.corpus`: every plant under every strategy, every negative control, and the scoreboard.

Searches are shared out to processes; results are put in order of the catalogue, so that any number of them gives the same
table. Exit status: 0 if no control raised an alarm, 1 otherwise, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

from tests.corpus import scoreboard
from tests.corpus.catalogue import CONTROLS, ENTRIES, STRATEGIES, Entry
from tests.corpus.search import Attempt, Budget, hunt_control, hunt_plant

SHARE = 1000
"""Executions of a control that are one task."""
CONTROL_STRATEGY = "portfolio"
NO_LIMIT_S = 1e6


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    asked = _parser().parse_args(arguments)
    seeds = asked.seeds or (1 if asked.quick else 5)
    budget = Budget(asked.executions or (200 if asked.quick else 1000), asked.seconds)
    wanted = set(asked.only.split(",")) if asked.only else {part.id for part in (*ENTRIES, *CONTROLS)}
    unknown = wanted - {part.id for part in (*ENTRIES, *CONTROLS)}
    if unknown:
        known = ", ".join(part.id for part in (*ENTRIES, *CONTROLS))
        print(f"--only: no entry {', '.join(sorted(unknown))}: there are {known}", file=sys.stderr)
        return 2
    entries = [entry for entry in ENTRIES if entry.id in wanted]
    controls = [control for control in CONTROLS if control.id in wanted]
    shares = -(-(asked.controls or (1000 if asked.quick else 10_000)) // SHARE)

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(asked.jobs, mp_context=context) as pool:
        plants = {
            (entry.id, strategy): [
                pool.submit(hunt_plant, entry, strategy, seed, budget)
                for seed in range(_seeds(strategy, seeds))
            ]
            for entry in entries
            for strategy in STRATEGIES
        }
        alarms = {
            control.id: [
                pool.submit(hunt_control, control, CONTROL_STRATEGY, share, Budget(SHARE, NO_LIMIT_S))
                for share in range(shares)
            ]
            for control in controls
        }
        print(f"executions and seconds to the first detection, median of {seeds} seeds\n")
        rows = _rows(entries, plants, budget)
        results = [(control, [task.result() for task in alarms[control.id]]) for control in controls]
    if results:
        print(scoreboard.as_text(scoreboard.controls_table(results)))
    if asked.write:
        page = scoreboard.page(rows, results, budget, seeds, _command(asked))
        asked.write.parent.mkdir(parents=True, exist_ok=True)
        asked.write.write_text(page, encoding="utf-8")
    return int(any(attempt.found for _, attempts in results for attempt in attempts))


def _seeds(strategy: str, seeds: int) -> int:
    return 1 if strategy == "dpor" else seeds


def _rows(
    entries: list[Entry], plants: dict[tuple[str, str], list[Future[Attempt]]], budget: Budget
) -> list[scoreboard.Row]:
    """The rows, each printed once it and those before it are complete."""
    if not entries:
        return []
    widths = scoreboard.widths(entries)
    print(scoreboard.as_columns(scoreboard.heading(), widths), flush=True)
    rows = []
    for entry in entries:
        row = scoreboard.Row(
            entry,
            {strategy: [task.result() for task in plants[entry.id, strategy]] for strategy in STRATEGIES},
        )
        print(scoreboard.as_columns(scoreboard.line_of(row, budget, seconds=True), widths), flush=True)
        rows.append(row)
    print()
    return rows


def _command(asked: argparse.Namespace) -> str:
    """What makes the same page again; where it goes and how many processes make it does not matter."""
    options = {name: value for name, value in vars(asked).items() if name not in {"write", "jobs"}}
    parser = _parser()
    changed = [
        f"--{name}"
        if value is True
        else f"--{name} {value:g}"
        if isinstance(value, float)
        else f"--{name} {value}"
        for name, value in options.items()
        if value != parser.get_default(name)
    ]
    return " ".join(["python -m tests.corpus", *changed]) if changed else "make corpus"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description="The race scoreboard.")
    parser.add_argument("--quick", action="store_true", help="1 seed, 200 executions, 1000 of each control")
    parser.add_argument("--only", metavar="IDS", help="such as R41,N2: only these")
    parser.add_argument("--seeds", type=_positive, help="seeds for each strategy (5)")
    parser.add_argument("--executions", type=_positive, help="budget of one search (1000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="net below the budget (60)")
    parser.add_argument("--controls", type=_positive, help="executions of each negative control (10000)")
    parser.add_argument("--jobs", type=_positive, default=1, help="processes (1)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page for the docs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
