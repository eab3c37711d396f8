"""`explore`: run a world again and again under a strategy, and report what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING

from sim import schedule, strategies
from sim.findings import Finding
from sim.kernel import INFINITY, Kernel
from sim.recorder import Recorder
from sim.strategies import first_by_time
from sim.strategies.replay import Replay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sim.thread import Thread

World = Callable[[Kernel], None]


@dataclass(slots=True)
class Report:
    """What a search saw.

    `executions` counts those begun, `complete` those that ran to their end, `cut` those that hit a limit. `exhausted`
    means that the strategy has nothing left to try. `digest` is the same for two searches exactly if they made the same
    picks at the same times and counted and found the same.
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

    @property
    def clean(self) -> bool:
        """Nothing was found, nothing was left unmet, and no execution was cut short."""
        return not self.findings and not self.unmet and not self.cut

    @property
    def verdict(self) -> str:
        """One of DESIGN.md section 3's four; "proved" is only for exhaustive strategies."""
        if self.findings or self.unmet:
            return "failing"
        return "inconclusive" if self.cut else "none found"


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
    races: bool = True,  # noqa: ARG001 - part of the contract
) -> Report:
    """Search the interleavings of `world`, which fills a fresh `Kernel` for every execution.

    Args:
        strategy: see `sim.strategies`; without `executions`, one that never ends makes 1000.
        window_ns: how far apart in time two accesses may be swapped; 0 to INFINITY.
        races: judge data races too (the detector comes with the next release; accepted already).
    Raises: ValueError: unknown strategy, schedule or memory model.
    """
    if memory_model != "sc":
        raise ValueError(f"no memory model {memory_model!r}: there is sc")
    plan = strategies.strategy(strategy, seed)
    if executions is None:
        executions = plan.complete_after or 1000
    report = Report(strategy, seed)
    known: dict[str, int] = {}
    wanted: list[str] = []
    deadline_s = None if time_limit_s is None else monotonic() + time_limit_s
    picks: list[Thread] = []
    digest = blake2b(digest_size=16)

    def pick(kernel: Kernel, candidates: Sequence[Thread]) -> int:
        index = plan.pick(kernel, candidates)
        picks.append(candidates[index])
        return index

    while report.executions < executions and (deadline_s is None or monotonic() < deadline_s):
        kernel = Kernel(seed, window_ns=window_ns, max_steps=max_steps)
        if not plan.begin(kernel, report.executions):
            report.exhausted = True
            break
        world(kernel)
        picks.clear()
        kernel.execute(pick)
        plan.end(kernel)
        wanted = kernel.wanted
        report.executions += 1
        report.steps += kernel.steps
        report.steps_max = max(report.steps_max, kernel.steps)
        report.cut += kernel.exhausted
        report.complete += not kernel.exhausted and not kernel.findings
        report.met |= kernel.met
        names = " ".join([thread.name for thread in picks])
        digest.update(f"{kernel.steps} {kernel._now} {names} {kernel.counters}\n".encode())
        for finding in kernel.findings:
            digest.update(finding.fingerprint.encode())
            index = known.get(finding.fingerprint)
            if index is None:
                known[finding.fingerprint] = len(report.findings)
                report.findings.append(_explain(world, finding, names, window_ns, max_steps))
            else:
                seen = report.findings[index]
                report.findings[index] = replace(seen, count=seen.count + 1)
        if report.findings and stop_at_first:
            break
    report.exhausted = report.exhausted or report.executions == plan.complete_after
    report.digest = digest.hexdigest()
    report.unmet = [text for text in wanted if text not in report.met]
    return report


def record(
    world: World, picks: str, *, seed: int = 0, window_ns: int = INFINITY, max_steps: int = 100_000
) -> Recording:
    """Run one execution by a schedule, with everything recorded.

    Raises: BadSchedule: the schedule cannot be read.
    """
    replay = Replay(picks)
    kernel = Kernel(seed, window_ns=window_ns, max_steps=max_steps)
    world(kernel)
    recorder = Recorder()
    kernel.check(recorder)
    taken: list[str] = []
    by_fifo: list[str] = []
    replay.begin(kernel, 0)

    def pick(kernel: Kernel, candidates: Sequence[Thread]) -> int:
        index = replay.pick(kernel, candidates)
        taken.append(candidates[index].name)
        by_fifo.append(candidates[first_by_time(candidates)].name)
        return index

    kernel.execute(pick)
    return Recording(kernel, recorder, schedule.text(taken, by_fifo), replay.misfits)


@dataclass(frozen=True, slots=True)
class Recording:
    """One recorded execution; `schedule` is its shortest text, `misfits` where the given one did not fit."""

    kernel: Kernel
    recorder: Recorder
    schedule: str
    misfits: list[tuple[int, str]]


def _explain(world: World, finding: Finding, picks: str, window_ns: int, max_steps: int) -> Finding:
    """The finding with the steps that led to it and the schedule that leads there again."""
    again = record(world, picks, seed=finding.seed, window_ns=window_ns, max_steps=max_steps)
    for same in again.kernel.findings:
        if same.fingerprint == finding.fingerprint:
            return replace(same, steps=tuple(again.recorder.lines), schedule=again.schedule)
    return replace(
        finding,
        schedule=picks,
        details=finding.details | {"replay": "did not show it again: the world is not deterministic"},
    )
