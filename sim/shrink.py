"""Shrinking: the same bug by a schedule with as few context switches and steps as can be reached.

A schedule is taken as *deviations* from a default that never switches of its own accord: keep running the current thread;
when it blocks or ends, take the lowest that can run. A deviation is (thread, number of its own steps so far) -> the thread
to go on with. Numbers of own steps survive changes elsewhere; numbers of steps of the whole execution would not.

The passes, each of which keeps what still shows the same bug (the same fingerprint) with fewer switches, or as many and
fewer steps; they repeat until nothing gets better:

- *cut*: whatever came after the failing step is gone; so is, where the failing step has a place of its own, every step
  that did not happen before it.
- *commute*: neighbouring independent steps are swapped until as few switches as possible are left. Nothing is run but the
  result: once (dejafu does the same; `sim.dependence` says what is independent).
- *ddmin* over the deviations, then each singly, until none can be left out (Choi, Zeller, ISSTA 2002).
- *join*: what a thread does between two switches is moved to what it did before or does after, or left to the default.
- *search*: schedules with 0, 1, 2, ... switches, each count exhaustively, until one fails or the count is reached. A
  switch is only tried before a step on something that two threads share. A count that the rest of the budget would hardly
  last for is not begun; `Shrunk.at_least` tells how far it came, `Shrunk.fewest` whether that settles it.

Not done here: shrinking the world itself (threads, memory, verbs), which only its author can do; see `scenarios`.
Source: reference/algorithms.md section 12. Everything is a function of world, finding and budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from typing import TYPE_CHECKING

from sim import schedule
from sim.explore import World, record
from sim.kernel import INFINITY, Kernel, Pick, StopExecution
from sim.reorder import Size, ddmin, fewest_switches, joined, steps_of
from sim.trace import Setting, by_schedule, footprint, happened_before, same_bug, shared_keys, spelled, trace

if TYPE_CHECKING:
    from sim.findings import Finding
    from sim.thread import Thread

BUDGET = 2000
"""Executions that a shrink may make unless told otherwise: some seconds for a world of some hundred steps."""
Deviations = Mapping[tuple[str, int], str]
Progress = Callable[["Size", int], None]


@dataclass(slots=True)
class Shrunk:
    """What came of it.

    Attributes:
        finding: the bug by the shrunk schedule, with its steps; the finding as given if it did not show again.
        schedule: that schedule; every word but the first is a context switch.
        passes: (name, size after it) for each pass that made it smaller.
        at_least: no schedule of this world with fewer switches than that shows the bug, as far as shared words decide.
        capped: the budget ended the work; the result is the best so far.
        reproduced: whether the schedule showed the bug at all.
    """

    finding: Finding
    schedule: str
    before: Size
    after: Size
    executions: int = 0
    passes: list[tuple[str, Size]] = field(default_factory=list)
    at_least: int = 0
    capped: bool = False
    reproduced: bool = True

    @property
    def fewest(self) -> bool:
        """Whether it is known that there is none with fewer switches."""
        return self.reproduced and self.at_least >= self.after.switches

    def __str__(self) -> str:
        if not self.reproduced:
            return "the schedule does not show the finding again: the world is not the same, or not deterministic"
        text = f"{self.before} -> {self.after}, in {self.executions} executions"
        if self.fewest:
            return f"{text}; fewer switches do not show it"
        known = f"{text}; at least {self.at_least} switches are needed"
        return f"{known}; stopped at the limit of executions" if self.capped else known


def shrink(
    world: World,
    finding: Finding,
    *,
    budget: int = BUDGET,
    progress: Progress | None = None,
    window_ns: int = INFINITY,
    max_steps: int = 100_000,
    races: bool = True,
) -> Shrunk:
    """Make the schedule of a finding as short as can be.

    Args:
        finding: from `explore` on the same world; its `schedule`, `seed` and fingerprint are used.
        budget: at most so many executions; what is best by then is the result.
        progress: called after every execution that made it smaller, with the size and the executions so far.
        window_ns, max_steps, races: as in the search that made the finding.
    Raises: BadSchedule: the finding's schedule cannot be read.
    """
    setting = Setting(world, finding.seed, window_ns, max_steps, races)
    work = _Shrinker(setting, finding, budget, progress)
    if not work.adopt("as found", work.run(by_schedule(finding.schedule))):
        none = Size(0, 0)
        return Shrunk(finding, finding.schedule, none, none, work.executions, reproduced=False)
    before = work.size
    capped = False
    try:
        work.reduce()
        work.search()
        work.reduce()
    except _Spent:
        capped = True
    text = spelled(work.picks)
    again = record(world, text, seed=finding.seed, window_ns=window_ns, max_steps=max_steps, races=races)
    found = same_bug(again.kernel, finding)
    assert found is not None
    return Shrunk(
        replace(found, steps=tuple(again.recorder.lines), schedule=text, count=finding.count),
        text,
        before,
        work.size,
        work.executions,
        work.passes[1:],
        work.at_least,
        capped,
    )


def shrink_text(run: Callable[[str], Finding | None], text: str, *, budget: int = BUDGET) -> tuple[str, int]:
    """Shrink a schedule of which only `run(schedule)` is known: the finding by it, or None.

    Less than `shrink` does: whole words of the text are left out, then their counts halved and lowered, while `run` finds
    the bug of the first run. Returns: the text, and how often `run` was called (at most `budget` times).
    Raises: BadSchedule: `text` cannot be read. ValueError: it finds nothing.
    """
    calls = 1
    wanted = run(text)
    if wanted is None:
        raise ValueError(f"the schedule {text!r} finds nothing: there is nothing to shrink")

    def fails(words: list[tuple[str, int]]) -> bool:
        nonlocal calls
        if calls >= budget:
            return False
        calls += 1
        found = run(_written(words))
        return found is not None and found.fingerprint == wanted.fingerprint

    words = ddmin(schedule.parse(text), fails)
    for index, (name, times) in enumerate(words):
        part = times
        while part:
            name, times = words[index]
            fewer = [*words[:index], (name, times - part), *words[index + 1 :]]
            if part < times and fails(fewer):
                words = fewer
            else:
                part //= 2
    return _written(words), calls


def _written(words: Sequence[tuple[str, int]]) -> str:
    return " ".join(f"+{n}" if name == schedule.FIFO else f"{name}*{n}" for name, n in words)


class _Spent(Exception):
    """The budget is used up."""


@dataclass(slots=True)
class _Run:
    """One execution: who was picked, who would have been by default, and who could have been."""

    kernel: Kernel
    picks: list[str]
    defaults: list[str]
    others: list[list[str]]
    found: Finding | None = None

    def deviations(self) -> dict[tuple[str, int], str]:
        """What leads here from the default."""
        return {
            key: pick
            for key, pick, default in zip(_keys(self.picks), self.picks, self.defaults, strict=True)
            if pick != default
        }


def _keys(picks: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The name of each place between steps: who ran last, and its own steps so far."""
    done: Counter[str] = Counter()
    last = ""
    for pick in picks:
        yield last, done[last]
        last = pick
        done[pick] += 1


def _default(candidates: Sequence[Thread], last: str) -> int:
    """Keep running; else the lowest."""
    for index, thread in enumerate(candidates):
        if thread.name == last:
            return index
    return min(range(len(candidates)), key=lambda i: candidates[i].index)


class _Shrinker:
    """The best schedule so far, and the executions that look for a better one."""

    def __init__(self, setting: Setting, wanted: Finding, budget: int, progress: Progress | None) -> None:
        self.setting = setting
        self.wanted = wanted
        self.budget = budget
        self.progress = progress
        self.executions = 0
        self.at_least = 0
        self.picks: list[str] = []
        self.size = Size(0, 0)
        self.deviations: Deviations = {}
        self.passes: list[tuple[str, Size]] = []

    def run(self, choose: Pick, *, switches: int | None = None, shared: frozenset[str] | None = None) -> _Run:
        """One execution. It is given up after more than `switches`; alternatives are noted only at `shared` words."""
        if self.executions >= self.budget:
            raise _Spent
        self.executions += 1
        picks: list[str] = []
        defaults: list[str] = []
        others: list[list[str]] = []
        left = switches

        def pick(kernel: Kernel, candidates: Sequence[Thread]) -> int:
            nonlocal left
            last = picks[-1] if picks else ""
            default = candidates[_default(candidates, last)]
            index = choose(kernel, candidates)
            name = candidates[index].name
            if picks and name != last and left is not None:
                if not left:
                    raise StopExecution
                left -= 1
            others.append(
                [thread.name for thread in candidates if thread.name != name]
                if shared is not None and (default.name != last or _matters(default, shared))
                else []
            )
            picks.append(name)
            defaults.append(default.name)
            return index

        kernel = self.setting.execute(pick)
        return _Run(kernel, picks, defaults, others, same_bug(kernel, self.wanted))

    def by(self, deviations: Deviations) -> _Run:
        """One execution by deviations from the default."""
        done: Counter[str] = Counter()
        last = ""

        def choose(_kernel: Kernel, candidates: Sequence[Thread]) -> int:
            nonlocal last
            wanted = deviations.get((last, done[last]))
            names = [thread.name for thread in candidates]
            index = names.index(wanted) if wanted in names else _default(candidates, last)
            last = names[index]
            done[last] += 1
            return index

        return self.run(choose)

    def adopt(self, name: str, run: _Run) -> bool:
        """Keep the execution if it shows the bug and is smaller than the best so far."""
        size = Size.of(run.picks)
        if run.found is None or (self.picks and size >= self.size):
            return False
        self.picks, self.size, self.deviations = run.picks, size, run.deviations()
        if self.passes and self.passes[-1][0] == name:
            self.passes.pop()
        self.passes.append((name, size))
        if self.progress is not None:
            self.progress(size, self.executions)
        return True

    def reduce(self) -> None:
        """Commute and leave out, until nothing gets smaller."""
        while True:
            size = self.size
            self.commute()
            self.leave_out()
            self.join()
            if self.size == size:
                return

    def commute(self) -> None:
        """Put the steps of the best schedule into an equivalent order with fewest switches."""
        if self.executions >= self.budget:
            raise _Spent
        self.executions += 1
        traced = trace(self.setting, by_schedule(spelled(self.picks)))
        steps = traced.steps
        pasts, _ = happened_before(steps, gates=True)
        last = len(steps) - 1
        everything = (1 << len(steps)) - 1
        at_a_step = any(not thread.done for thread in traced.kernel.threads if not thread.daemon)
        if at_a_step and self.wanted.kind != "deadlock":
            ancestors = pasts[last] | 1 << last
            if ancestors != everything:
                self._try_order(steps_of(ancestors, self.picks), pasts, "cut")
            pasts[last] = everything ^ 1 << last
        self._try_order(steps_of(everything, self.picks), pasts, "commute")

    def _try_order(self, kept: dict[str, list[int]], pasts: Sequence[int], name: str) -> None:
        order = fewest_switches(kept, pasts)
        if Size.of(order) < self.size:
            self.adopt(name, self.run(by_schedule(spelled(order))))

    def leave_out(self) -> None:
        """Ddmin, and then each deviation singly, until every one is needed."""

        def fails(kept: Sequence[tuple[tuple[str, int], str]]) -> bool:
            run = self.by(dict(kept))
            self.adopt("ddmin", run)
            return run.found is not None

        ddmin(list(self.deviations.items()), fails)

    def join(self) -> None:
        """Merge runs of one thread, as long as that makes it smaller. What is not offered in the new order is skipped."""
        while any(self.adopt("join", self.run(_follow(order))) for order in joined(self.picks)):
            pass

    def search(self) -> None:
        """All schedules with no switch, with one, and so on, while the budget is likely to last for all of them."""
        steps = trace(self.setting, by_schedule(spelled(self.picks))).steps
        shared = shared_keys(steps)
        places = sum(any(key in shared for key, _ in step.touches) for step in steps)
        threads = len(set(self.picks))
        for switches in range(self.size.switches):
            if comb(places, switches) * (threads - 1) ** switches > self.budget - self.executions:
                return
            for run in self._with_at_most(switches, shared):
                if self.adopt("search", run):
                    self.at_least = switches
                    return
            self.at_least = switches + 1

    def _with_at_most(self, switches: int, shared: frozenset[str]) -> Iterator[_Run]:
        """Every execution with so many switches, each once; the switches at shared words only."""
        prefixes: list[list[str]] = [[]]
        while prefixes:
            prefix = prefixes.pop()
            run = self.run(_follow(prefix), switches=switches, shared=shared)
            yield run
            for at in range(len(run.picks) - 1, len(prefix) - 1, -1):
                head = run.picks[:at]
                branches = ([*head, other] for other in run.others[at])
                prefixes += [branch for branch in branches if Size.of(branch).switches <= switches]


def _follow(picks: Sequence[str]) -> Pick:
    """Picks by name as far as they are offered, then the default."""
    left = iter(picks)
    last = ""

    def choose(_kernel: Kernel, candidates: Sequence[Thread]) -> int:
        nonlocal last
        names = [thread.name for thread in candidates]
        wanted = next((name for name in left if name in names), None)
        index = names.index(wanted) if wanted is not None else _default(candidates, last)
        last = names[index]
        return index

    return choose


def _matters(thread: Thread, shared: frozenset[str]) -> bool:
    """Whether what the thread does next may meet another thread."""
    assert thread.pending is not None
    return any(key in shared for key, _ in footprint(thread.pending)) or thread.pending.gate() is not None
