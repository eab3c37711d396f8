"""Data races in a recorded log: the detector gives the same answer there as beside the execution itself.

What counts is the format: `events.jsonl` as `--events accesses` writes it, whichever command wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from scenarios.accepted_races import ACCEPTED_RACES
from scenarios.errors import ScenarioError
from sim.findings import Finding
from sim.races import OPS, Detector, Facts, LoggedStep, LoggedSync, replay
from sim.syncs import HOWS, STARTS, WAKES

THREADS_MAX: Final = 1 << 20
"""More threads than any world has: a number that is larger is no thread's."""

RECORD: Final = "tdsim run SCENARIO --events accesses"


class _Line(msgspec.Struct, gc=False):
    """What every line of a log has, and what a step has besides (`scenarios.output.StepTaken`)."""

    event: str
    now_ns: int = 0
    step: int = 0
    thread: str = ""
    verb: str = ""
    cell: str = ""
    op: str = ""
    word: int = 0
    tid: int = -1
    done: bool = True
    at: str = ""
    syncs: list[LoggedSync] = []


def races_of_log(path: Path) -> list[Finding]:
    """The data races of a recorded execution.

    Raises: ScenarioError: the file cannot be read, is no log of tdsim, or was recorded without accesses.
    """
    return replay(Detector(ACCEPTED_RACES), logged_steps(path))


def logged_steps(path: Path) -> Iterator[LoggedStep]:
    """The steps of a log, line by line; the file is never in memory as a whole.

    Raises: ScenarioError: see `races_of_log`.
    """
    decode = msgspec.json.Decoder(_Line).decode
    steps = 0
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    line = decode(text)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                    raise ScenarioError(
                        f"not a line of an event log: {exc}",
                        str(path),
                        number,
                        1,
                        remedy=f"record one with: {RECORD}",
                    ) from None
                if line.event != "step":
                    continue
                if not _whole(line):
                    raise ScenarioError(
                        "the step lacks what races are found by",
                        str(path), number, 1, remedy=f"record it again with this version: {RECORD}",
                    )  # fmt: skip
                steps += 1
                facts = Facts(line.op, line.word, line.tid, line.done, line.at, line.syncs)
                yield LoggedStep(line.now_ns, line.step, line.thread, line.verb, line.cell, facts)
    except OSError as exc:
        raise ScenarioError(f"cannot read: {exc.strerror}", str(path)) from exc
    if not steps:
        raise ScenarioError("holds no accesses", str(path), remedy=f"record it with: {RECORD}")


def _whole(line: _Line) -> bool:
    """Whether a step has its facts, and they can be true."""
    numbers = [line.tid, *(sync[2] for sync in line.syncs)]
    numbers += [sync[3] for sync in line.syncs if sync[1] in {STARTS, WAKES}]
    if line.op == "join":
        numbers.append(line.word)
    return (
        line.op in OPS
        and all(sync[1] in HOWS and sync[0] <= line.step for sync in line.syncs)
        and all(0 <= number < THREADS_MAX for number in numbers)
    )
