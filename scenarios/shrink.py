"""Shrinking a finding: a smaller scenario, then a shorter schedule, that fail in the same way.

The same way is: a finding of the same kind and title. `sim.shrink` makes the schedule short; this module makes the world
small, as its author would: threads, verbs, repetitions, vCPUs, slots and sizes are left out or made smaller, one at a time,
as long as the finding stays. Patches stay as they are: they are what is being judged. A smaller world is tried with the
schedule there is (a replay follows on where it no longer fits), and then with a few executions of `portfolio`.

Left out: making costs, seeds and knobs of the machine smaller; finding a smallest scenario (each step only keeps what fails).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from scenarios.campaign.case import Case, Opened
from scenarios.campaign.shares import finding_from
from scenarios.errors import ScenarioError
from scenarios.units import parse_size
from sim import Finding, explore
from sim.reorder import Size
from sim.schedule import parse
from sim.shrink import shrink as shrink_schedule

EXECUTIONS = 2000
"""How many executions a shrink may make unless told otherwise."""

SEARCHED = 48
"""Executions of `portfolio` that a smaller scenario gets to fail in, if the schedule no longer makes it."""

SIZES = (0x1000, 0x2000, 0x20_0000)
"""What sizes are made smaller to: one frame, two, a huge page."""

Progress = Callable[[str, int], None]
"""Told what got smaller, and how many executions that took so far."""

Path = tuple[str | int, ...]


@dataclass(slots=True)
class Shrunk:
    """What came of it: the case and finding that are left, and what was done to get there."""

    case: Case
    finding: Finding
    before: Size
    after: Size
    made: list[str] = field(default_factory=list)
    executions: int = 0
    capped: bool = False

    def lines(self) -> list[str]:
        """For people."""
        capped = "; stopped at the limit of executions" if self.capped else ""
        head = f"shrunk: {self.before} -> {self.after}, in {self.executions} executions{capped}"
        return [head, *(f"  {what}" for what in self.made)]


class NotShown(Exception):
    """The finding does not show by its schedule: another model, or another patch. Args: one sentence."""


def shrink(
    case: Case,
    told: dict[str, Any],
    *,
    executions: int = EXECUTIONS,
    progress: Progress | None = None,
) -> Shrunk:
    """Make the finding `told` (its JSON) of `case` smaller.

    Raises: NotShown: there is nothing to shrink. ScenarioError: the case cannot be opened.
    """
    work = _Shrinker(case, finding_from(told), executions, progress)
    work.schedule(executions // 4)
    before = work.before
    work.scenario()
    work.schedule(executions)
    return Shrunk(
        work.case, work.finding, before, work.size, work.made, work.executions, work.executions >= executions
    )


class _Shrinker:
    """The smallest case and finding so far."""

    def __init__(self, case: Case, finding: Finding, limit: int, progress: Progress | None) -> None:
        self.case = case
        self.finding = finding
        self.limit = limit
        self.progress = progress
        self.executions = 0
        self.made: list[str] = []
        self.before = self.size = _size(finding.schedule)

    def schedule(self, limit: int) -> None:
        """Shorten the schedule."""
        left = min(self.limit, limit) - self.executions
        if left <= 0:
            return
        with self.case.opened() as opened:
            shrunk = shrink_schedule(
                opened.world,
                self.finding,
                budget=left,
                window_ns=opened.window_ns,
                max_steps=self.case.max_steps,
            )
        self.executions += shrunk.executions
        if not shrunk.reproduced:
            raise NotShown("the schedule does not show the finding with this model")
        if not self.made:
            self.before = max(self.before, shrunk.before)
        self.finding = shrunk.finding
        self.size = shrunk.after
        self._tell(f"schedule: {shrunk.after}")

    def scenario(self) -> None:
        """Leave out what can be left out, and begin again until nothing more can."""
        done = False
        while not done:
            done = True
            for what, data in smaller(self.case.data):
                if self.executions >= self.limit:
                    return
                if self._adopt(what, replace(self.case, data=data)):
                    done = False
                    break

    def _adopt(self, what: str, case: Case) -> bool:
        try:
            with case.opened() as opened:
                found = self._fails(opened)
        except ScenarioError:
            return False  # no scenario any more, or the patch fails in it
        if found is None:
            return False
        self.case, self.finding = case, found
        self.size = _size(found.schedule)
        self.made.append(what)
        self._tell(what)
        return True

    def _fails(self, opened: Opened) -> Finding | None:
        for strategy, executions in ((f"replay:{self.finding.schedule}", 1), ("portfolio", SEARCHED)):
            report = explore(
                opened.world,
                strategy=strategy,
                executions=max(0, min(executions, self.limit - self.executions)),
                seed=self.finding.seed,
                stop_at_first=True,
                window_ns=opened.window_ns,
                max_steps=self.case.max_steps,
            )
            self.executions += report.executions
            for found in report.findings:
                if (found.kind, found.title) == (self.finding.kind, self.finding.title):
                    return found
        return None

    def _tell(self, what: str) -> None:
        if self.progress is not None:
            self.progress(what, self.executions)


def smaller(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every scenario that is one step smaller, largest steps first, each with what was done in words."""
    for name in data.get("threads", {}):
        yield f"without thread {name}", _without(data, ("threads", name))
    for path, steps in _lists(data.get("threads", {}), ("threads",)):
        for i in range(len(steps)):
            yield f"without {'.'.join(map(str, path))}[{i}] {_verb(steps[i])}", _without(data, (*path, i))
    for path, step in _mappings(data.get("threads", {}), ("threads",)):
        times = step.get("times")
        if isinstance(times, int) and times > 1:
            for fewer in dict.fromkeys((1, times // 2)):
                yield f"{'.'.join(map(str, path))} {fewer} times", _with(data, (*path, "times"), fewer)
    vcpus = data.get("td", {}).get("vcpus", 1)
    if isinstance(vcpus, int) and vcpus > 1:
        for fewer in range(1, vcpus):
            yield f"{fewer} vCPUs", _with(data, ("td", "vcpus"), fewer)
    for i, slot in enumerate(data.get("memory", ())):
        yield f"without slot {slot.get('slot', i)}", _without(data, ("memory", i))
    yield from _smaller_sizes(data)


def _smaller_sizes(data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, mapping in [*_mappings(data.get("threads", {}), ("threads",)), *_slots(data)]:
        size = mapping.get("size")
        try:
            now = size if isinstance(size, int) else parse_size(str(size))
        except ValueError:
            continue
        for less in SIZES:
            if less < now:
                yield (
                    f"{'.'.join(map(str, path))} of {less >> 10}K",
                    _with(data, (*path, "size"), f"{less >> 10}K"),
                )


def _slots(data: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for i, slot in enumerate(data.get("memory", ())):
        yield ("memory", i), slot


def _lists(value: Any, path: Path) -> Iterator[tuple[Path, list[Any]]]:
    """Every list of steps below."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _lists(below, (*path, key))
    elif isinstance(value, list):
        yield path, value
        for i, below in enumerate(value):
            yield from _lists(below, (*path, i))


def _mappings(value: Any, path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every mapping below."""
    if isinstance(value, dict):
        yield path, value
        for key, below in value.items():
            yield from _mappings(below, (*path, key))
    elif isinstance(value, list):
        for i, below in enumerate(value):
            yield from _mappings(below, (*path, i))


def _verb(step: Any) -> str:
    return str(next(iter(step), "")) if isinstance(step, dict) else str(step)


def _without(data: dict[str, Any], path: Path) -> dict[str, Any]:
    copy = deepcopy(data)
    parent: Any = copy
    for part in path[:-1]:
        parent = parent[part]
    del parent[path[-1]]
    return copy


def _with(data: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    copy = deepcopy(data)
    parent: Any = copy
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1]] = value
    return copy


def _size(schedule: str) -> Size:
    """The size of a schedule's text: what it leaves to fifo counts as no switch."""
    words = parse(schedule)
    return Size(max(0, len(words) - 1), sum(times for _, times in words))


__all__ = ["EXECUTIONS", "NotShown", "Shrunk", "shrink", "smaller"]
