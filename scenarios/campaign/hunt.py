"""A hunt: search the interleavings of a scenario, judge them by its expectations, and write what was found.

As a test, without any plugin::

    from scenarios import hunt

    def test_no_stale_fault():
        assert hunt("fault-vs-convert", strategy="pct:3", executions=1000).clean

The same scenario, seed, strategy and number of executions give the same result and the same files for any number of jobs;
a time limit gives that up. Findings are self-contained: scenario, patches and options are in each of them as data.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from scenarios.campaign import folder
from scenarios.campaign.case import Opened, case_of, check_strategy
from scenarios.campaign.result import HuntResult, merge
from scenarios.campaign.shares import Cut, Limit, ShareResult, Tick, cut_of, is_whole, run_here, settled
from scenarios.errors import ScenarioError
from scenarios.loading import load_all, resolve
from scenarios.staging import refuse_unwritable

if TYPE_CHECKING:
    from scenarios.schema import Scenario


def hunt(
    scenario: str | Path | Scenario,
    *,
    strategy: str | None = None,
    executions: int | None = None,
    time_limit_s: float | None = None,
    jobs: int = 1,
    stop_at_first: bool = False,
    seed: int | None = None,
    design: str | None = None,
    settings: Sequence[str] = (),
    patches: Sequence[str | Path] = (),
    out_dir: str | Path | None = None,
) -> HuntResult:
    """Hunt in a scenario: a file, or a name of the library. What is not given is as the scenario's `hunt:` says.

    Args:
        settings: `key=value` overrides, as `--set`; like `seed` and `design`, for a scenario that is not loaded yet.
        patches: patch files, besides the scenario's own.
        out_dir: where the files go; None writes nothing.
    Raises: ScenarioError: wrong input. KeyboardInterrupt: after the files are written.
    """
    if isinstance(scenario, str | Path):
        scenario = _only(str(scenario), [*settings, *_overrides(seed, design)])
    result = hunt_scenario(
        scenario,
        strategy=strategy,
        executions=executions,
        time_limit_s=time_limit_s,
        jobs=jobs,
        stop_at_first=stop_at_first,
        patches=[Path(patch) for patch in patches],
        out_dir=None if out_dir is None else Path(out_dir),
    )
    if result.interrupted:
        raise KeyboardInterrupt
    return result


def _overrides(seed: int | None, design: str | None) -> list[str]:
    asked = {"seed": seed, "design": design}
    return [f"{name}={value}" for name, value in asked.items() if value is not None]


def _only(name: str, settings: Sequence[str]) -> Scenario:
    variants = load_all(resolve(name), settings)
    if len(variants) != 1:
        raise ScenarioError(
            "has a sweep: hunt in one combination", name, remedy="give settings=['sweep={}', ...]"
        )
    return variants[0]


def hunt_scenario(
    scenario: Scenario,
    *,
    strategy: str | None = None,
    executions: int | None = None,
    time_limit_s: float | None = None,
    jobs: int = 1,
    stop_at_first: bool = False,
    patches: Sequence[Path] = (),
    out_dir: Path | None = None,
    tick: Tick | None = None,
) -> HuntResult:
    """What `hunt` and the command do, for a loaded scenario. An interrupted hunt gives what it has."""
    began_s = monotonic()
    chosen = choose_strategy(scenario, strategy)
    if out_dir is not None:
        refuse_unwritable(out_dir)
    case = case_of(scenario, patches, strategy=chosen, window_ns=scenario.hunt.window)
    budget = _budget(scenario, chosen, executions, time_limit_s)
    limit = Limit(scenario.hunt.time_limit_s if time_limit_s is None else time_limit_s)
    with case.opened() as opened:
        cut = cut_of(opened, budget)
        shares = _search(opened, cut, jobs, limit, stop_at_first=stop_at_first, tick=tick)
        made = sum(share.report.executions for share in shares)
        ended = len(shares) == cut.count and all(share.report.exhausted for share in shares)
        short = not ended and (is_whole(chosen) if budget is None else made < budget)
        result = merge(
            opened,
            shares,
            stop_at_first=stop_at_first,
            interrupted=limit.expired,
            out_of_time=limit.over and not limit.expired and short,
            parts=len(cut.roots),
        )
        result.wall_s = round(monotonic() - began_s, 3)
        if out_dir is not None:
            folder.write(opened, result, out_dir)
            result.out_dir = out_dir
    return result


def _budget(
    scenario: Scenario, strategy: str, executions: int | None, time_limit_s: float | None
) -> int | None:
    """How many executions; None is to the end of the tree, or until the time is over, if that is all that was asked for."""
    if executions is not None:
        return executions
    asked = "executions" in scenario.hunt.model_fields_set
    whole = is_whole(strategy)
    if (whole and not asked) or (time_limit_s is not None and not whole):
        return None
    return scenario.hunt.executions


def choose_strategy(scenario: Scenario, asked: str | None) -> str:
    """The strategy: as asked for, else the scenario's.

    Raises: ScenarioError: there is none of that name.
    """
    strategy = scenario.hunt.strategy if asked is None else asked
    problem = check_strategy(strategy, scenario.memory_model, scenario.hunt.window)
    if not problem:
        return strategy
    if asked is not None:
        remedy = "leave hunt.window out" if "window" in problem else ""
        raise ScenarioError(problem, f"--strategy {asked}", remedy=remedy)
    path = ("memory_model",) if "memory model" in problem else ("hunt", "strategy")
    raise scenario.error(path, problem)


def _search(
    opened: Opened, cut: Cut, jobs: int, limit: Limit, *, stop_at_first: bool, tick: Tick | None
) -> list[ShareResult]:
    if min(jobs, cut.count) > 1:
        from scenarios.campaign import supervisor

        done = supervisor.run(opened, cut, jobs=jobs, limit=limit, stop_at_first=stop_at_first, tick=tick)
        with interrupt_expires(limit):
            return settled(opened, cut, done, limit=limit, stop_at_first=stop_at_first)
    with interrupt_expires(limit):
        return run_here(opened, cut, limit=limit, stop_at_first=stop_at_first, tick=tick)


@contextmanager
def interrupt_expires(limit: Limit) -> Iterator[None]:
    """The first Ctrl-C ends the search at the next execution's end; the second one is what it always is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupted(_number: int, _frame: object) -> None:
        limit.expire()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
