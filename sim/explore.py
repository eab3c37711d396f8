"""`explore`: run a world again and again under a strategy, and report what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING

from sim import estimates, schedule, strategies
from sim.coverage import Pairs, order_of_conflicts
from sim.findings import Finding
from sim.kernel import INFINITY, Kernel, StopExecution
from sim.recorder import Recorder
from sim.strategies import first_by_time
from sim.strategies.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.strategies import Strategy
    from sim.strategies.dpor import Root
    from sim.thread import Thread

World = Callable[[Kernel], None]

DEFAULT_EXECUTIONS = 1000
"""How many a search makes that neither ends by itself nor is told when to."""


@dataclass(slots=True)
class Report:
    """What a search saw.

    `executions` counts those begun, `complete` those that ran to their end, `cut` those that hit a limit, `failed` those
    that found something. `exhausted` means that the strategy has nothing left to try, `proved` that it thereby covered every
    interleaving; `drawn` that its executions were drawn at random. `hits` tells how many executions of which strategy found
    something. `classes` counts the orders of conflicting accesses that were seen, `unseen` is the chance that one more
    execution shows a new one (Good and Turing). `orders` are those classes, each with its number of executions, and `bounds`
    what `pct` guarantees: what several searches of one world need to be told as one (`claim_of`). `pairs` counts which
    places were followed by which, in conflict, in the executions that were looked at for that (`sim.coverage`). `loops`
    names where the executions that hit the step limit were going round; `out_of_time` says that the time limit ended a
    search that was to go on. `claim` puts into words what all this means.
    `digest` is the same for two searches exactly if they made the same picks at the same times and counted and found the
    same.
    """

    strategy: str
    seed: int
    executions: int = 0
    complete: int = 0
    cut: int = 0
    steps: int = 0
    steps_max: int = 0
    exhausted: bool = False
    findings: list[Finding] = field(default_factory=list)
    met: set[str] = field(default_factory=set)
    unmet: list[str] = field(default_factory=list)
    digest: str = ""
    failed: int = 0
    proved: bool = False
    drawn: bool = False
    hits: dict[str, int] = field(default_factory=dict)
    classes: int = 0
    unseen: float = 1.0
    orders: dict[int, int] = field(default_factory=dict, repr=False)
    bounds: tuple[estimates.PctBound, ...] = ()
    pairs: dict[str, int] = field(default_factory=dict)
    loops: dict[str, int] = field(default_factory=dict)
    out_of_time: bool = False
    claim: str = ""

    @property
    def clean(self) -> bool:
        """Nothing was found, nothing was left unmet, and no limit is in the way."""
        return self.verdict in {"proved", "none found"}

    @property
    def verdict(self) -> str:
        """One of DESIGN.md section 3's four; "proved" is only for exhaustive strategies."""
        if self.findings or self.unmet:
            return "failing"
        if self.cut or self.out_of_time or not self.executions:
            return "inconclusive"
        return "proved" if self.proved else "none found"


def explore(
    world: World,
    *,
    strategy: str = "random",
    executions: int | None = None,
    seed: int = 0,
    time_limit_s: float | None = None,
    stop_at_first: bool = False,
    window_ns: int = INFINITY,
    memory_model: str = "sc",
    max_steps: int = 100_000,
    races: bool = True,
    pairs_every: int = 0,
    root: Root | None = None,
    stop: Callable[[], bool] | None = None,
    after: Callable[[Kernel], None] | None = None,
) -> Report:
    """Search the interleavings of `world`, which fills a fresh `Kernel` for every execution.

    Args:
        strategy: see `sim.strategies`.
        executions: at most so many. Without it an exhaustive strategy goes on to its end; one that never ends goes on for
            `time_limit_s`, or makes 1000.
        time_limit_s: begin no execution after so many seconds. It makes the search inconclusive if there was more to do.
        window_ns: how far apart in time two accesses may be swapped; 0 to INFINITY.
        races: judge data races too (`sim.races`), but for those the world accepts.
        pairs_every: collect `Report.pairs` in every so-manieth execution, beginning with the first; 0 for never. An
            execution that is looked at takes about twice as long.
        root: search only this part of the tree, with `dpor` (`sim.strategies.dpor_split`); "proved" then means that part.
        stop: asked before every execution; True ends the search.
        after: sees the kernel of every execution once it has ended.
    Raises: ValueError: unknown strategy, schedule or memory model.
    """
    if memory_model != "sc":
        raise ValueError(f"no memory model {memory_model!r}: there is sc")
    plan = strategies.strategy(strategy, seed, root)
    ends = plan.complete_after is not None or hasattr(plan, "exhaustive")
    if executions is None:
        executions = plan.complete_after if ends or time_limit_s is not None else DEFAULT_EXECUTIONS
    search = _Search(world, strategy, seed, window_ns, max_steps, races)
    report = search.report
    pairs = Pairs() if pairs_every else None
    deadline_s = None if time_limit_s is None else monotonic() + time_limit_s
    if hasattr(plan, "study"):
        study_until_s = deadline_s
        plan.study(world, lambda: _is_over(study_until_s, stop), stop_at_first=stop_at_first)

    while report.executions != executions:
        witnessing = getattr(plan, "witnessing", False)
        if stop is not None and stop() and not witnessing:
            break
        if deadline_s is not None and not monotonic() < deadline_s and not witnessing:
            report.out_of_time = ends or executions is not None
            break
        kernel = search.kernel()
        if not plan.begin(kernel, report.executions):
            report.exhausted = True
            break
        watched = pairs if pairs_every and report.executions % pairs_every == 0 else None
        search.execute(kernel, plan, watched)
        plan.end(kernel)
        if after is not None:
            after(kernel)
        search.count(kernel, plan)
        if kernel.findings and stop_at_first:
            break
    report.bounds = plan.bounds() if hasattr(plan, "bounds") else ()
    claimed = plan.claim() if hasattr(plan, "claim") else ""
    if hasattr(plan, "exhaustive") and (report.executions == executions or report.out_of_time):
        report.exhausted = not plan.begin(search.kernel(), report.executions)  # it may have ended just here
    report.exhausted = report.exhausted or report.executions == plan.complete_after
    report.out_of_time = report.out_of_time and not report.exhausted
    report.proved = report.exhausted and bool(getattr(plan, "exhaustive", False)) and not report.cut
    report.drawn = not ends
    report.pairs = {str(pair): times for pair, times in pairs.counts.items()} if pairs is not None else {}
    search.close()
    report.claim = claim_of(report, claimed, window_ns=window_ns)
    return report


def _is_over(deadline_s: float | None, stop: Callable[[], bool] | None) -> bool:
    """Whether a search has to end before it is done."""
    return (deadline_s is not None and monotonic() >= deadline_s) or (stop is not None and stop())


class _Search:
    """Executions of one world, and what is kept of each of them."""

    def __init__(
        self, world: World, strategy: str, seed: int, window_ns: int, max_steps: int, races: bool
    ) -> None:
        self.report = Report(strategy, seed)
        self._world = world
        self._window_ns = window_ns
        self._max_steps = max_steps
        self._races = races
        self._digest = blake2b(digest_size=16)
        self._known: dict[str, int] = {}
        """{fingerprint: index in the report's findings}."""
        self._wanted: list[str] = []
        self._classes: Counter[int] = Counter()
        """How many executions had each order of conflicting accesses."""
        self._loops: Counter[str] = Counter()
        """Where executions hit the step limit, and how many."""
        self._tail: list[tuple[str, list[str]]] = []
        """Name and stack of the thread that made each of the last steps before the limit."""

    def kernel(self) -> Kernel:
        """An empty world."""
        return Kernel(self.report.seed, window_ns=self._window_ns, max_steps=self._max_steps)

    def execute(self, kernel: Kernel, plan: Strategy, pairs: Pairs | None) -> None:
        """Fill the world and run it once; a finding made while it is filled is that execution's."""
        if not fill(kernel, self._world, races=self._races):
            return
        if pairs is not None:
            pairs.attach(kernel)
        tail = self._tail

        def near_limit(kernel: Kernel, candidates: Sequence[Thread]) -> int:
            index = plan.pick(kernel, candidates)
            tail.append((candidates[index].name, candidates[index].stack()))
            return index

        kernel.execute(plan.pick, near_limit=near_limit)
        if tail:
            if kernel.exhausted:
                self._loops[loop(tail)] += 1
            tail.clear()

    def count(self, kernel: Kernel, plan: Strategy) -> None:
        """Add an execution to the report."""
        report = self.report
        self._wanted = kernel.wanted
        report.executions += 1
        report.steps += kernel.steps
        report.steps_max = max(report.steps_max, kernel.steps)
        report.cut += kernel.exhausted
        redundant = getattr(plan, "redundant", False)
        report.complete += not kernel.exhausted and not kernel.findings and not redundant
        report.met |= kernel.met
        self._classes[order_of_conflicts(kernel.picks, kernel.accesses)] += 1
        names = " ".join([thread.name for thread in kernel.picks])
        self._digest.update(f"{kernel.steps} {kernel._now} {names} {kernel.counters}\n".encode())
        for finding in kernel.findings:
            self._digest.update(finding.fingerprint.encode())
            index = self._known.get(finding.fingerprint)
            if index is None:
                self._known[finding.fingerprint] = len(report.findings)
                report.findings.append(self._explained(finding, names))
            else:
                seen = report.findings[index]
                report.findings[index] = replace(seen, count=seen.count + 1)
        if kernel.findings:
            report.failed += 1
            label = getattr(plan, "label", report.strategy)
            report.hits[label] = report.hits.get(label, 0) + 1

    def close(self) -> None:
        """No execution follows."""
        report = self.report
        report.digest = self._digest.hexdigest()
        report.unmet = [text for text in self._wanted if text not in report.met]
        report.loops = dict(self._loops.most_common())
        report.classes = len(self._classes)
        report.unseen = estimates.unseen_mass(self._classes.values())
        report.orders = dict(self._classes)

    def _explained(self, finding: Finding, picks: str) -> Finding:
        """The finding with the steps that led to it and the schedule that leads there again."""
        again = record(
            self._world,
            picks,
            seed=finding.seed,
            window_ns=self._window_ns,
            max_steps=self._max_steps,
            races=self._races,
        )
        for same in again.kernel.findings:
            if same.fingerprint == finding.fingerprint:
                return replace(same, steps=tuple(again.recorder.lines), schedule=again.schedule)
        return replace(
            finding,
            schedule=picks,
            details=finding.details | {"replay": "did not show it again: the world is not deterministic"},
        )


def fill(kernel: Kernel, world: World, *, races: bool) -> bool:
    """Build the world; False if that already made a finding, which ends the execution."""
    try:
        world(kernel)
    except StopExecution:
        kernel.close()
        return False
    if races:
        from sim.races import attach  # noqa: PLC0415 - only searches that judge races pay for the detector

        attach(kernel)
    return True


def loop(tail: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Name what an execution was going round in: the thread that made most of its last steps, and the function it stayed in.

    Args:
        tail: who made each of the last steps, and its stack then, outermost first; not empty.
    """
    name, times = Counter([name for name, _ in tail]).most_common(1)[0]
    stacks = [stack for who, stack in tail if who == name and stack]
    share = f"{times} of the last {len(tail)} steps"
    if not stacks:
        return f"{name} at its end ({share})"
    depth = 0
    while all(len(stack) > depth for stack in stacks) and len({_function(s[depth]) for s in stacks}) == 1:
        depth += 1
    # The innermost function that was never left; the lines in it are those of the loop.
    places = [stack[max(depth - 1, 0)] for stack in stacks]
    file, function = _function(places[0])
    lines = sorted({int(place.partition(" ")[0].rpartition(":")[2]) for place in places})
    where = f"{lines[0]}-{lines[-1]}" if len(lines) > 1 else f"{lines[0]}"
    return f"{name} in {function}, {file}:{where} ({share})"


def _function(place: str) -> tuple[str, str]:
    """File and function of a line `file:line function`."""
    where, _, function = place.partition(" ")
    return where.rpartition(":")[0], function


def claim_of(report: Report, claimed: str, *, window_ns: int) -> str:
    """What the verdict rests on, in numbers; `claimed` is what the strategy adds to it."""
    n = report.executions
    drawn = report.drawn
    parts = []
    window = "" if window_ns >= INFINITY else f" within {window_ns} ns of time order"
    if report.failed:
        rate = f"{report.failed} of {n} executions failed"
        if drawn:
            low, high = estimates.wilson(report.failed, n)
            rate += f": a rate of {report.failed / n:.3g}, with 95 % confidence {low:.3g} to {high:.3g}"
        parts.append(rate)
    if report.unmet:
        parts.append(f"never met in {n} executions: {', '.join(report.unmet)}")
    if report.cut:
        loops = "; ".join(f"{loop} in {times}" for loop, times in report.loops.items())
        parts.append(f"{report.cut} of {n} executions hit the step limit: {loops}")
    if report.out_of_time:
        parts.append(f"the time limit ended the search after {n} executions")
    if report.verdict == "proved":
        parts.append(
            f"every interleaving{window} of this world under sequential consistency, in {n} executions"
        )
    elif not report.failed and n:
        text = f"nothing found in {n} executions{window}"
        if drawn and not report.cut:
            text += f": the next one fails with a probability below {estimates.rule_of_three(n):.2g} (95 % confidence)"
        parts.append(text)
    elif not n:
        parts.append("no execution was made")
    if drawn and n:
        parts.append(
            f"{report.classes} orders of conflicting accesses seen; the next execution shows a new one with a probability "
            f"of about {report.unseen:.2g}"
        )
    if claimed and n and not report.findings:
        parts.append(claimed)
    return ". ".join(parts)


def record(
    world: World,
    picks: str,
    *,
    seed: int = 0,
    window_ns: int = INFINITY,
    max_steps: int = 100_000,
    races: bool = True,
    before: Callable[[Kernel, Thread], None] | None = None,
) -> Recording:
    """Run one execution by a schedule, with everything recorded.

    Args:
        before: sees the thread of every step just before its pending access happens.
    Raises: BadSchedule: the schedule cannot be read.
    """
    replay = Replay(picks)
    kernel = Kernel(seed, window_ns=window_ns, max_steps=max_steps)
    recorder = Recorder()
    taken: list[str] = []
    by_fifo: list[str] = []
    replay.begin(kernel, 0)

    def pick(kernel: Kernel, candidates: Sequence[Thread]) -> int:
        index = replay.pick(kernel, candidates)
        taken.append(candidates[index].name)
        by_fifo.append(candidates[first_by_time(candidates)].name)
        if before is not None:
            before(kernel, candidates[index])
        return index

    filled = fill(kernel, world, races=races)
    kernel.check(recorder)
    if filled:
        kernel.execute(pick)
    return Recording(kernel, recorder, schedule.text(taken, by_fifo), replay.misfits)


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded execution; `schedule` is its shortest text, `misfits` where the given one did not fit."""

    kernel: Kernel
    recorder: Recorder
    schedule: str
    misfits: list[tuple[int, str]]
