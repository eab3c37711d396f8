"""The timing witness: the least change of latencies that makes a bug happen in a timing run, and how likely that is.

A search without time finds orders; time makes most of them rare. The witness tells how rare: "needs the IPI of host0 to
take 4,100 ns or more (2,000 ns on average): 3 in 10,000 runs". It is a timing run (`window_ns = 0`) in which every
latency is at the mean of its distribution but for the few that are named; that run showed the finding.

How it is looked for, in this order:

- *nothing*: the bug happens with every latency at its mean.
- *one latency*: when a draw takes longer or shorter, what its thread does later moves against everybody else. The order
  of two conflicting accesses changes only where one passes the other. So the draw is walked away from its mean from one
  such meeting to the next, each seen in the timing run before: one run for each order that it can lead to. All draws are
  walked at once, the likeliest value first.
- *several latencies*: the delays that put the steps of the failing schedule into its order (`sim.timing.least_delays`).
  Where no latency can be that long, pairs of conflicting steps that stand in the way are left to chance, fewest first;
  changes that are not needed are left out.
- *a start*: the same two with threads that start later than the world says. A start is no latency and has no
  probability: the answer says what it takes and how wide the window is.

What is found is then made least: each change is brought as close to its mean as still shows the finding (by bisection),
and walked on until it no longer does, which is the other end of its range.

How likely: the product of the chances of the named draws to be in their ranges, with every other latency at its mean. So
it is the odds of this way, not of the bug: other ways may be likelier, and jitter elsewhere may open or close it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from heapq import heappop, heappush
from math import prod
from typing import TYPE_CHECKING

from sim.dependence import conflict
from sim.explore import World
from sim.kernel import INFINITY
from sim.timing import START, Changes, Draw, DrawId, least_delays, run_timed, trace_timed
from sim.trace import Setting, Step, by_schedule, same_bug, spelled

if TYPE_CHECKING:
    from sim.findings import Finding

BUDGET = 1000
"""Timing runs unless told otherwise."""
SYSTEMS = 64
"""How many systems of constraints are solved, each with other pairs left out."""


Meeting = tuple[str, int, str, int, str]
"""Another thread with its op and what that is, and the same of the thread that is moved."""


@dataclass(frozen=True, slots=True)
class Change:
    """One latency, and what it has to be: from `least_ns` to `most_ns`, where None is no limit.

    Attributes:
        thread, name, nth: the draw: the nth (from 0) of this cost by this thread; `name` is "" for the thread's start.
        place: where it was drawn, `file:line function` of the access before it.
        mean_ns: what it takes on average; 0 for a start.
        chance: that one draw is in the range; None for a start.
    """

    thread: str
    name: str
    nth: int
    place: str
    mean_ns: int
    least_ns: int | None
    most_ns: int | None
    chance: Fraction | None

    def __str__(self) -> str:
        if self.name == START:
            if self.most_ns is None or self.least_ns is None:
                return f"{self.thread} to start {self.least_ns or 0:,} ns or more later"
            wide_ns = self.most_ns - self.least_ns + 1
            return f"{self.thread} to start {self.least_ns:,} to {self.most_ns:,} ns later (a window of {wide_ns:,} ns)"
        if self.most_ns is None:
            bounds = f"{self.least_ns:,} ns or more"
        elif self.least_ns is None:
            bounds = f"{self.most_ns:,} ns or less"
        else:
            bounds = f"{self.least_ns:,} to {self.most_ns:,} ns"
        return f"{self.name} of {self.thread} to take {bounds} ({self.mean_ns:,} ns on average)"


@dataclass(slots=True)
class Witness:
    """The answer.

    Attributes:
        found: whether there is a witness; without one, `reason` says what stands in the way, if known.
        changes: what has to differ from the means; empty if nothing has.
        chance: of all of them together; None if a start is among them, or nothing was found.
        schedule: the picks of the timing run that shows it.
        runs: timing runs made.
    """

    found: bool
    changes: list[Change] = field(default_factory=list)
    chance: Fraction | None = None
    schedule: str = ""
    reason: str = ""
    runs: int = 0

    def __str__(self) -> str:
        if not self.found:
            return (
                f"no timing witness found within {self.runs} timing runs{self.reason and ': ' + self.reason}"
            )
        if not self.changes:
            return "happens with every latency at its mean"
        needs = f"needs {' and '.join(str(change) for change in self.changes)}"
        if self.chance is None:
            chances = [change.chance for change in self.changes if change.chance is not None]
            return (
                f"{needs}; {odds(prod(chances, start=Fraction(1)))} besides the start" if chances else needs
            )
        return f"{needs}: {odds(self.chance)}"


def odds(chance: Fraction) -> str:
    """A probability in words: `3 in 10,000 runs`."""
    if chance >= Fraction(1, 100):
        return f"{round(chance * 100)} in 100 runs"
    runs = 1000
    while chance and round(chance * runs) < 1:
        runs *= 10
    return f"{round(chance * runs)} in {runs:,} runs"


def witness(
    world: World,
    finding: Finding,
    *,
    budget: int = BUDGET,
    max_steps: int = 100_000,
    races: bool = True,
) -> Witness:
    """Look for the timing witness of a finding; best of a shrunk one.

    Args:
        world: with its costs (`kernel.costs` set when the world is filled); otherwise as in the search.
        budget: at most so many timing runs.
        max_steps, races: as in the search that made the finding.
    Raises: BadSchedule: the finding's schedule cannot be read.
    """
    timed = Setting(world, finding.seed, 0, max_steps, races)
    work = _Search(timed, finding, budget)
    reason = ""
    try:
        if work.shows({}):
            return work.least({}, {})
        for starts in (False, True):
            one = work.one_change(starts=starts)
            if one is not None:
                changes, beside_ns = one
                return work.least(changes, dict.fromkeys(changes, beside_ns))
            several, reason = work.several_changes(starts=starts)
            if several is not None:
                return work.least(*several)
    except _Spent:
        work.cut = True
    if work.cut:
        reason = "the limit of runs"
    return Witness(found=False, reason=reason, runs=work.runs)


class _Spent(Exception):
    """The budget is used up."""


class _Search:
    """Timing runs of one world, and whether they show the bug."""

    def __init__(self, timed: Setting, finding: Finding, budget: int) -> None:
        self.timed = timed
        self.finding = finding
        self.budget = budget
        self.runs = 0
        self.cut = False
        """Whether a walk was given up, so that something likelier may have been missed."""

    def shows(self, changes: Changes) -> bool:
        """Whether a timing run with these latencies shows the finding."""
        if self.runs >= self.budget:
            raise _Spent
        self.runs += 1
        return same_bug(run_timed(self.timed, changes), self.finding) is not None

    def traced(self, changes: Changes) -> tuple[bool, list[Step], list[Draw]]:
        """The same with its steps and draws, those after the finding too: what ends a window may come later."""
        if self.runs >= self.budget:
            raise _Spent
        self.runs += 1
        traced, draws = trace_timed(self.timed, changes, stop_at_finding=False)
        return same_bug(traced.kernel, self.finding) is not None, traced.steps, draws

    def one_change(self, *, starts: bool) -> tuple[dict[DrawId, int], int] | None:
        """The likeliest single latency (or the nearest start) that shows the finding, and a value nearer that does not."""
        _, steps, draws = self.traced({})
        walks: list[tuple[Fraction, int, DrawId, int, _Walk]] = []

        def enter(walk: _Walk) -> None:
            ns = walk.following()
            if ns is not None:
                chance = Fraction(0) if starts else _chance_beyond(walk.draw, ns)
                heappush(walks, (-chance, abs(ns - walk.draw.ns), walk.draw.id, walk.sign, walk))

        for draw in draws:
            if (draw.distribution is None) == starts:
                for sign in (1, -1):
                    enter(_Walk(self, draw, sign, {draw.id: draw.ns}, steps))
        last = self.runs + (self.budget - self.runs) // 2  # the other half is for what comes after
        while walks:
            if self.runs >= last:
                self.cut = True
                return None
            walk = heappop(walks)[-1]
            before_ns = walk.ns
            if walk.go():
                return walk.changes, before_ns
            enter(walk)
        return None

    def several_changes(self, *, starts: bool) -> tuple[tuple[dict[DrawId, int], Changes] | None, str]:
        """Delays that bring the failing schedule's steps into its order, those that are needed, and the means; or why not."""
        untimed = replace(self.timed, window_ns=INFINITY)
        traced, draws = trace_timed(untimed, {}, by_schedule(self.finding.schedule))
        if same_bug(traced.kernel, self.finding) is None:
            return None, "with latencies, the schedule no longer shows the finding"
        means = {draw.id: draw.ns for draw in draws}
        reason = "the latencies that should give this order do not show the finding"
        tries: deque[frozenset[tuple[int, int]]] = deque([frozenset()])
        for _ in range(SYSTEMS):
            if not tries:
                break
            without = tries.popleft()
            delays = least_delays(traced.steps, draws, starts=starts, without=without)
            if not delays.cycle and self.shows(delays.changes):
                return (self._needed(delays.changes), means), ""
            if delays.cycle and not without:
                reason = f"no latency can be long enough to keep the order at {_places(delays.cycle)}"
            tries += [more for pair in delays.broken if (more := without | {pair}) not in tries]
        return None, reason

    def _needed(self, changes: dict[DrawId, int]) -> dict[DrawId, int]:
        """Those without which the finding does not show."""
        for which in sorted(changes):
            fewer = {other: ns for other, ns in changes.items() if other != which}
            if self.shows(fewer):
                changes = fewer
        return changes

    def least(self, changes: dict[DrawId, int], beside: Changes) -> Witness:
        """Bring every change as close to its mean as still shows the finding, and describe what is left.

        `beside` has, for each change, a value nearer to the mean that does not show it.
        """
        changes = dict(changes)
        for which in sorted(changes):
            changes[which] = self._bisect(which, changes, beside[which])
        described = [self._describe(which, changes) for which in sorted(changes)]
        chances = [change.chance for change in described if change.chance is not None]
        whole = prod(chances, start=Fraction(1)) if len(chances) == len(described) else None
        picks = [step.thread for step in self.traced(changes)[1]]
        return Witness(True, described, whole, spelled(picks), "", self.runs)

    def _describe(self, which: DrawId, changes: Changes) -> Change:
        """One change: how far it may go, with the others as they are, and how likely that is."""
        _, steps, draws = self.traced(changes)
        draw = next(draw for draw in draws if draw.id == which)
        mean_ns = round(draw.distribution.expected()) if draw.distribution is not None else 0
        sign = 1 if draw.ns > mean_ns else -1
        walk = _Walk(self, draw, sign, changes, steps)
        good_ns = draw.ns
        ends = False
        while not ends and walk.following() is not None:
            ends = not walk.go()
            if not ends:
                good_ns = walk.ns
        far_ns = draw.bounds_ns[sign > 0]
        if ends:
            far_ns = self._bisect(which, {**changes, which: good_ns}, walk.ns)
        low_ns, high_ns = sorted((draw.ns, far_ns))
        chance = None
        if draw.distribution is not None:
            chance = draw.distribution.chance_at_least(low_ns) - draw.distribution.chance_at_least(
                high_ns + 1
            )
        place = steps[draw.step].place if draw.step >= 0 else ""
        return Change(
            *which,
            place,
            mean_ns,
            None if sign < 0 and not ends else low_ns,
            None if sign > 0 and not ends else high_ns,
            chance,
        )

    def _bisect(self, which: DrawId, changes: Changes, bad_ns: int) -> int:
        """The last value on the way to `bad_ns` that still shows the finding, if there is one border between them."""
        good_ns = changes[which]
        while abs(good_ns - bad_ns) > 1:
            middle_ns = (good_ns + bad_ns) // 2
            if self.shows({**changes, which: middle_ns}):
                good_ns = middle_ns
            else:
                bad_ns = middle_ns
        return good_ns


class _Walk:
    """One draw on its way from a value, up (`sign` 1) or down (-1): one stop for each order of conflicting accesses."""

    def __init__(self, search: _Search, draw: Draw, sign: int, changes: Changes, steps: list[Step]) -> None:
        self.draw = draw
        self.sign = sign
        self.ns = draw.ns
        self.changes = dict(changes)
        self._search = search
        self._steps = steps
        self._after = draw.step
        self._met: set[Meeting] = set()
        """What was passed already: where threads wait for each other, the same meeting lies ahead again and again."""

    def following(self) -> int | None:
        """The value just past the next meeting; None if there is none within the draw's bounds."""
        apart = self._meetings()
        if not apart:
            return None
        ns = self.ns + self.sign * min(apart.values())
        low_ns, high_ns = self.draw.bounds_ns
        return ns if low_ns <= ns <= high_ns else None

    def go(self) -> bool:
        """Try that value; True if it shows the finding."""
        apart = self._meetings()
        nearest_ns = min(apart.values())
        self._met.update(pair for pair, ns in apart.items() if ns == nearest_ns)
        self.ns += self.sign * nearest_ns
        self.changes[self.draw.id] = self.ns
        shown, self._steps, draws = self._search.traced(self.changes)
        self._after = next(draw.step for draw in draws if draw.id == self.draw.id)
        return shown

    def _meetings(self) -> dict[Meeting, int]:
        """How far away, in ns and just past it, are the accesses that conflict with what the draw moves."""
        rivals: dict[str, list[Step]] = {}
        for step in self._steps:
            if step.thread != self.draw.id.thread:
                for key, _ in step.touches:
                    rivals.setdefault(key, []).append(step)
        apart: dict[Meeting, int] = {}
        for step in self._steps:
            if step.thread == self.draw.id.thread and step.number > self._after:
                for rival in (rival for key, _ in step.touches for rival in rivals.get(key, ())):
                    pair = (rival.thread, rival.op, rival.text, step.op, step.text)
                    ahead = self.sign * (rival.number - step.number) > 0
                    if ahead and pair not in self._met and conflict(step.touches, rival.touches):
                        apart[pair] = self.sign * (rival.at_ns - step.at_ns) + 1
        return apart


def _chance_beyond(draw: Draw, ns: int) -> Fraction:
    """How likely a draw is at least as far from its mean, on the same side."""
    assert draw.distribution is not None
    if ns > draw.ns:
        return draw.distribution.chance_at_least(ns)
    return 1 - draw.distribution.chance_at_least(ns + 1)


def _places(steps: Sequence[Step]) -> str:
    """The first of these steps and how many follow, for a sentence."""
    first = steps[0]
    others = f" and {len(steps) - 1} more" if len(steps) > 1 else ""
    return f"{first.thread}: {first.text} [{first.place}]{others}"
