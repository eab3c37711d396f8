"""One search: an entry or a control, one strategy, one seed, a budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from scenarios.build import build
from scenarios.loading import load
from sim import Kernel, explore
from sim.explore import Report, World
from sim.patches import applied, read
from tests.corpus.catalogue import MAX_STEPS, Control, Entry


@dataclass(frozen=True, slots=True)
class Budget:
    """What a search may take: executions, and seconds as a net below them."""

    executions: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of a search. `executions` counts up to and including the one that found something."""

    executions: int
    seconds: float
    kinds: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    cut: int = 0
    reached: frozenset[str] = frozenset()

    @property
    def found(self) -> bool:
        """Whether any oracle fired."""
        return bool(self.kinds)


@contextmanager
def world_of(scenario_file: Path, patches: tuple[Path, ...] = ()) -> Iterator[World]:
    """The scenario's world, with the scenario's own patches and these applied for the time of the block."""
    scenario = load(scenario_file)
    files = (*scenario.patch_files, *patches)
    with applied([replacement for file in files for replacement in read(file)]):

        def world(kernel: Kernel) -> None:
            build(kernel, scenario)

        yield world


def hunt_plant(entry: Entry, strategy: str, seed: int, budget: Budget) -> Attempt:
    """Search the planted model until something is found."""
    with world_of(entry.scenario_file, (entry.plant_file,)) as world:
        return _search(world, strategy, seed, budget)


def hunt_clean(entry: Entry, strategy: str, seed: int, budget: Budget) -> Attempt:
    """The same without the plant."""
    with world_of(entry.scenario_file) as world:
        return _search(world, strategy, seed, budget)


def hunt_control(control: Control, strategy: str, seed: int, budget: Budget) -> Attempt:
    """Search a negative control."""
    with world_of(control.scenario_file, control.patch_files) as world:
        return _search(world, strategy, seed, budget)


def _search(world: World, strategy: str, seed: int, budget: Budget) -> Attempt:
    began = perf_counter()
    report: Report = explore(
        world,
        strategy=strategy,
        executions=budget.executions,
        seed=seed,
        time_limit_s=budget.seconds,
        stop_at_first=True,
        max_steps=MAX_STEPS,
    )
    return Attempt(
        executions=report.executions,
        seconds=perf_counter() - began,
        kinds=tuple(finding.kind for finding in report.findings),
        titles=tuple(finding.title for finding in report.findings),
        cut=report.cut,
        reached=frozenset(report.met),
    )
