"""The nearest passing schedule, and the step at which a bug became inevitable.

*Nearest*: a race of the failing execution is a pair of conflicting steps of two threads with nothing in between in
happens-before. Turn one race round (what does not depend on its first step, then its second step, then the rest in the
old order as far as it still fits); if the execution then runs to its end and finds nothing, this order is the difference
between failing and passing. The latest race is tried first: the closer to the failure, the fewer consequences. Races of
steps that come only after the failing one (it ran too early) are tried last: the world is followed beyond its finding.

*Inevitable*: random continuations of each prefix of the failing execution say how likely it fails from there. Binary
search for the first prefix from which nearly all do; its last step is the culprit. The rate need not grow with the
prefix, so this is one such step, and another may be found with other random numbers: both rates are told.

Not here: reversals of several races at once. A bug that each single reversal leaves in place has no nearest passing
schedule, and the answer says so. Source: reference/algorithms.md section 12 (differential schedule projection, Machado,
Lucia, Rodrigues, PLDI 2015; inevitability is Antithesis' idea).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.explore import World
from sim.kernel import INFINITY, Kernel, Pick
from sim.streams import Stream, Streams
from sim.trace import (
    Setting,
    Step,
    Trace,
    by_schedule,
    conflict_key,
    happened_before,
    same_bug,
    spelled,
    trace,
)

if TYPE_CHECKING:
    from sim.findings import Finding
    from sim.thread import Thread

REVERSALS = 300
"""Races that are turned round unless told otherwise."""
CONTINUATIONS = 20
"""Random continuations of a prefix: a true rate below 0.86 shows at least one that passes with 95 %."""
INEVITABLE_ABOVE = 0.95
"""The rate of failing continuations that counts as inevitable."""


@dataclass(frozen=True, slots=True)
class Side:
    """One access of a race: who, where, what, and what it gave in the failing and in the passing execution."""

    thread: str
    op: int
    place: str
    text: str
    step: int
    value: str
    value_passing: str

    def __str__(self) -> str:
        value = f": {self.value}" if self.value else ""
        changed = (
            "" if self.value_passing == self.value else f"; when it passes: {self.value_passing or 'at once'}"
        )
        return f"{self.thread} step {self.step}: {self.text}{value}{changed}  [{self.place}]"


@dataclass(frozen=True, slots=True)
class Race:
    """Two accesses of one thing; the bug shows if `first` comes first, and not if `second` does."""

    cell: str
    first: Side
    second: Side

    def __str__(self) -> str:
        return f"{self.first}\n  before\n{self.second}"


@dataclass(frozen=True, slots=True)
class Nearest:
    """The answer: `schedule` passes and differs by `race`; both None if no single race decides. `tried` were turned round."""

    schedule: str | None
    race: Race | None
    tried: int
    races: int

    def __str__(self) -> str:
        if self.race is None:
            left = "" if self.tried == self.races else f" ({self.races - self.tried} more were not tried)"
            return f"no single race decides: turning round any of {self.tried} leaves a finding{left}"
        one, two = self.race.first, self.race.second
        return (
            f"it fails because {one.thread} comes first at {self.race.cell} ({one.place}); "
            f"if {two.thread} does ({two.place}), it passes"
        )


@dataclass(frozen=True, slots=True)
class Inevitable:
    """The culprit: `rate` of the random continuations fail after `step`, and `rate_before` just before it."""

    step: int
    thread: str
    place: str
    text: str
    rate: float
    rate_before: float
    executions: int

    def __str__(self) -> str:
        return (
            f"inevitable from step {self.step}, {self.thread}: {self.text}  [{self.place}]: {self.rate:.0%} of the random "
            f"continuations fail after it, {self.rate_before:.0%} before it"
        )


def nearest(
    world: World,
    finding: Finding,
    *,
    budget: int = REVERSALS,
    window_ns: int = INFINITY,
    max_steps: int = 100_000,
    races: bool = True,
) -> Nearest:
    """The passing schedule nearest to a finding's, and the one race that was turned round; best on a shrunk finding.

    Args:
        budget: at most so many races are turned round, one execution each.
        window_ns, max_steps, races: as in the search that made the finding.
    Raises: BadSchedule: the finding's schedule cannot be read. ValueError: it does not show the finding again.
    """
    setting = Setting(world, finding.seed, window_ns, max_steps, races)
    failing = _failing(setting, finding)
    pairs = list(_races(failing, failing, range(len(failing.steps) - 1, -1, -1)))
    pairs.sort(key=lambda pair: bool(pair[0][pair[1]].gates and pair[0][pair[2]].gates))
    if len(failing.steps) and any(not thread.done for thread in failing.kernel.threads):
        beyond = trace(setting, by_schedule(spelled(failing.picks)), stop_at_finding=False)
        pairs += _races(failing, beyond, range(len(failing.steps), len(beyond.steps)))
    seen: set[str] = set()
    tried = 0
    for steps, i, j, past in pairs:
        if tried >= budget:
            break
        text = spelled(_turned_round(steps, i, j, past))
        if text in seen:
            continue
        seen.add(text)
        tried += 1
        passing = trace(setting, by_schedule(text))
        if (
            passing.kernel.findings
            or passing.kernel.exhausted
            or not _was_turned(passing, steps[i], steps[j])
        ):
            continue
        race = Race(conflict_key(steps[i], steps[j]), _side(steps[i], passing), _side(steps[j], passing))
        return Nearest(spelled(passing.picks), race, tried, len(pairs))
    return Nearest(None, None, tried, len(pairs))


def inevitable(
    world: World,
    finding: Finding,
    *,
    continuations: int = CONTINUATIONS,
    seed: int = 0,
    window_ns: int = INFINITY,
    max_steps: int = 100_000,
    races: bool = True,
) -> Inevitable:
    """The step of a finding's execution after which it could hardly be escaped.

    Args:
        continuations: random ones of each prefix looked at; about log2(steps) prefixes are.
        seed: of the random continuations.
    Raises: BadSchedule, ValueError: as `nearest`.
    """
    setting = Setting(world, finding.seed, window_ns, max_steps, races)
    failing = _failing(setting, finding)
    streams = Streams(seed)
    executions = 0

    def rate(prefix: int) -> float:
        nonlocal executions
        failed = 0
        for number in range(continuations):
            choose = _randomly_after(failing.picks[:prefix], streams.stream(f"after {prefix}.{number}"))
            kernel = setting.execute(choose)
            failed += any(found.kind == finding.kind for found in kernel.findings)
        executions += continuations
        return failed / continuations

    low, high = 0, len(failing.picks)
    rates = {low: rate(low), high: 1.0}
    while high - low > 1 and rates[low] < INEVITABLE_ABOVE:
        middle = (low + high) // 2
        rates[middle] = rate(middle)
        if rates[middle] >= INEVITABLE_ABOVE:
            high = middle
        else:
            low = middle
    if rates[low] >= INEVITABLE_ABOVE:
        high = low  # it fails whatever happens
    culprit = failing.steps[max(high - 1, 0)]
    return Inevitable(
        culprit.number, culprit.thread, culprit.place, culprit.text, rates[high], rates[low], executions
    )


def _failing(setting: Setting, finding: Finding) -> Trace:
    failing = trace(setting, by_schedule(finding.schedule))
    if same_bug(failing.kernel, finding) is None:
        raise ValueError(f"the schedule {finding.schedule!r} does not show the finding: {finding.title}")
    return failing


def _races(
    failing: Trace, whole: Trace, seconds: Sequence[int]
) -> Iterator[tuple[list[Step], int, int, list[int]]]:
    """Pairs (i, j) that race, j from `seconds`, i within the failing execution."""
    pasts, racing = happened_before(whole.steps, gates=False)
    for j in seconds:
        for i in racing[j]:
            if i < len(failing.steps):
                yield whole.steps, i, j, pasts


def _turned_round(steps: Sequence[Step], i: int, j: int, pasts: Sequence[int]) -> list[str]:
    """The picks with step j before step i: whatever depends on i waits until j is done; then the old order goes on."""
    depends = [k for k in range(i, j) if k == i or pasts[k] >> i & 1]
    waits = set(depends)
    early = [k for k in range(i, j) if k not in waits]
    order = [*range(i), *early, j, *depends, *range(j + 1, len(steps))]
    return [steps[k].thread for k in order]


def _was_turned(passing: Trace, one: Step, two: Step) -> bool:
    """Whether the second step did come first (the change may have led elsewhere before)."""
    first, second = passing.find(one.thread, one.op), passing.find(two.thread, two.op)
    if second is None:
        return False
    return first is None or second.number < first.number


def _side(step: Step, passing: Trace) -> Side:
    same = passing.find(step.thread, step.op)
    value_passing = same.value if same is not None and same.text == step.text else "not reached"
    return Side(step.thread, step.op, step.place, step.text, step.number, step.value, value_passing)


def _randomly_after(prefix: Sequence[str], stream: Stream) -> Pick:
    """Picks by name, then uniformly."""
    at = 0

    def choose(_kernel: Kernel, candidates: Sequence[Thread]) -> int:
        nonlocal at
        names = [thread.name for thread in candidates]
        at += 1
        if at <= len(prefix) and prefix[at - 1] in names:
            return names.index(prefix[at - 1])
        return stream.below(len(candidates))

    return choose
