"""`python -m tests.pairwise`: every pair in every reachable state, and the page for the docs.

Pairs are shared out to processes; results are put in the order of the table, so that any number of them gives the same page. Exit
status: 0 if no interleaving broke a rule of the module and nothing was left unsearched, 1 otherwise, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations_with_replacement
from pathlib import Path

from tests.pairwise import page, scenes, settings, settings_page
from tests.pairwise.calls import CALLS
from tests.pairwise.explored import Explored
from tests.pairwise.reach import Reach, reachable
from tests.pairwise.search import PairResult, learn, search_numbered
from tests.pairwise.settings import SettingResult
from tests.pairwise.states import LEVELS, sort_key

COMMAND = "python -m tests.pairwise --jobs 2 --write docs/seamcall-pairs.md"


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    asked = _parser().parse_args(arguments)
    labels = {call.label for call in CALLS}
    if asked.only is not None and asked.only not in labels:
        print(f"--only: no leaf {asked.only!r}: there are {', '.join(sorted(labels))}", file=sys.stderr)
        return 2
    if asked.write is not None and (asked.only is not None or asked.settings_only):
        print(
            "--write: the page is about all leaves, not about --only one or --settings-only", file=sys.stderr
        )
        return 2
    dressed = [] if asked.only is not None else search_settings(asked.jobs)
    for setting in dressed:
        print(settings.line_of(setting))
    seen = [] if asked.only is not None else search_scenes(asked.jobs)
    for scene in seen:
        print(scenes.line_of(scene))
    broken = any(setting.findings or not setting.exhausted for setting in dressed)
    broken |= any(scene.alarms or not scene.exhausted for scene in seen)
    if asked.settings_only:
        return int(broken)
    pairs = [
        (one, other)
        for one, other in combinations_with_replacement(range(len(CALLS)), 2)
        if asked.only in (None, CALLS[one].label, CALLS[other].label)
    ]
    reaches, results = search(pairs, asked.jobs)
    for result in results:
        print(page.line_of(result))
    if asked.write:
        asked.write.parent.mkdir(parents=True, exist_ok=True)
        more = [settings_page.section(dressed), scenes.section(seen)]
        asked.write.write_text(page.page(results, reaches, COMMAND, more), encoding="utf-8")
    return int(broken or any(result.findings or not result.exhausted for result in results))


def search(pairs: Sequence[tuple[int, int]], jobs: int) -> tuple[list[Reach], list[PairResult]]:
    """Search pairs in all states that calls reach one by one, then in those that only pairs of them reach, until there are no more."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        reaches = list(pool.map(reachable, LEVELS))
    known = {state for reach in reaches for state in reach.states}
    results: list[PairResult] = []
    reached = [reach.states for reach in reaches]
    while reached:
        with ProcessPoolExecutor(jobs, mp_context=context, initializer=learn, initargs=(reached,)) as pool:
            found = list(pool.map(search_numbered, pairs))
        for result, more in zip(results or found, found, strict=True):
            if result is not more:
                result.join(more)
        results = results or found
        beyond = {state for result in found for state in result.beyond} - known
        known |= beyond
        reached = [tuple(sorted(beyond, key=sort_key))] if beyond else []
    for result in results:
        result.beyond -= {state for reach in reaches for state in reach.states}
    return reaches, results


def search_settings(jobs: int) -> list[SettingResult]:
    """Search all pairs of all settings."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(settings_page.search_setting_numbered, range(len(settings_page.SETTINGS))))


def search_scenes(jobs: int) -> list[Explored]:
    """Search all worlds that are no pairs."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(scenes.run_numbered, range(len(scenes.all_runs())), chunksize=8))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.pairwise", description="Pairs of SEAMCALLs.")
    parser.add_argument("--jobs", type=_positive, default=1, help="processes (1)")
    parser.add_argument("--only", metavar="LEAF", help="such as PAGE.AUG: only pairs with this one")
    parser.add_argument("--settings-only", action="store_true", help="only L2 VMs, interrupts and the like")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page for the docs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
