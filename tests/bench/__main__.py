"""`python -m tests.bench`: how fast the model is, as ratios measured side by side in one run.

Every figure is the median of several repetitions, and what is compared is interleaved: a, b, a, b, ... So a busy machine
slows both sides of a ratio alike. Absolute rates are printed too, but only ratios can be compared between machines.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import simpy

from scenarios import hunt
from scenarios.build import build
from scenarios.loading import load
from scenarios.run import prepare
from sim import Kernel, explore
from sim.events import EventLog
from tests.bench import seamcalls
from tests.bench.protocols import m1, m2, m3

STRATEGIES = ("random", "pct:3", "pos", "surw", "portfolio", "dpor")
REPETITIONS = 5
BARE_STEPS = 200_000
SEARCH_STEPS = 2_000
PROCESSES = (8, 64)
VCPUS = (1, 8, 64, 256)
PAGES_PER_VCPU = 32
WIDTH = 66

FRESH_PAGES = """\
scenario: bench
question: What does a first touch cost?
machine: {{pcpus: {vcpus}}}
td: {{vcpus: {vcpus}}}
memory:
  - {{slot: 0, base: 0x40000000, size: {size}, backing: 4K, initially: private}}
threads:
  vcpu*:
    - accept: {{at: 0x40000000, size: {size}, order: 4K, policy: lazy, share: true}}
"""
PROTOCOL = """\
scenario: bench
question: Can a fault install what a conversion has zapped?
machine: {pcpus: 3}
td: {vcpus: 2}
memory:
  - {slot: 0, base: 0x1000000, size: 2M, backing: 4K, initially: private}
threads:
  vcpu*: [{accept: {at: 0x1000000, size: 4K, order: 4K}}]
  host0: [{set_memory_attributes: {at: 0x1000000, size: 4K, to: shared}}]
"""


def scenario_of(text: str):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.yaml"
        file.write_text(text, encoding="utf-8")
        return load(file)


def fresh_pages(vcpus: int, pages_per_vcpu: int):
    return scenario_of(FRESH_PAGES.format(vcpus=vcpus, size=hex(vcpus * pages_per_vcpu * 4096)))


# One sample each: steps (or executions) a second.


def bare_simpy(processes: int) -> float:
    env = simpy.Environment()

    def process(turns: int):
        for _ in range(turns):
            yield env.timeout(1)

    for _ in range(processes):
        env.process(process(BARE_STEPS // processes))
    began_s = perf_counter()
    env.run()
    return BARE_STEPS / (perf_counter() - began_s)


def bare_threads(kernel: Kernel, threads: int, steps: int) -> None:
    def thread(cell, turns: int):
        for turn in range(turns):
            kernel.spend(1)
            yield cell.write_once(turn)

    for n in range(threads):
        kernel.thread(f"t{n}", thread(kernel.cell(f"x{n}", 0), steps // threads))


def bare_kernel(processes: int) -> float:
    kernel = Kernel()
    bare_threads(kernel, processes, BARE_STEPS)
    began_s = perf_counter()
    kernel.execute()
    return kernel.steps / (perf_counter() - began_s)


def by_random(processes: int) -> float:
    began_s = perf_counter()
    report = explore(
        lambda kernel: bare_threads(kernel, processes, SEARCH_STEPS),
        executions=BARE_STEPS // SEARCH_STEPS,
        max_steps=BARE_STEPS,
        races=False,
    )
    return report.steps / (perf_counter() - began_s)


def model(scenario, *, log: bool = False) -> float:
    kernel = Kernel(stop_at_finding=False)
    prepare(kernel, scenario)
    with tempfile.TemporaryFile() as file:
        if log:
            kernel.events = EventLog(file)
        began_s = perf_counter()
        kernel.execute()
        if kernel.events is not None:
            kernel.events.close()
        lasted_s = perf_counter() - began_s
    assert not kernel.findings, kernel.findings
    return kernel.steps / lasted_s


def searched(world: Callable[[Kernel], object], strategy: str, executions: int, *, races: bool) -> Rates:
    """Executions and steps a second, building the world included."""

    def fill(kernel: Kernel) -> None:
        world(kernel)

    began_s = perf_counter()
    report = explore(fill, strategy=strategy, executions=executions, races=races)
    lasted_s = perf_counter() - began_s
    assert report.executions == executions, report
    return Rates(report.executions / lasted_s, report.steps / lasted_s)


class Rates(NamedTuple):
    """Of a search, a second."""

    executions: float
    steps: float


# Comparing.


def side_by_side(
    *samples: Callable[[], float], repetitions: int = REPETITIONS
) -> tuple[list[float], list[float]]:
    """The median of each sample's rates, and of its ratios first/own within one round (times over the first's)."""
    rounds = [[sample() for sample in samples] for _ in range(repetitions)]
    rates = [median(column) for column in zip(*rounds, strict=True)]
    ratios = [median(one[0] / one[n] for one in rounds) for n in range(len(samples))]
    return rates, ratios


def line(what: str, figure: str, target: str = "") -> None:
    print(f"{what:{WIDTH}} {figure:>14}   {target}", flush=True)


def steps_against_simpy() -> None:
    line("step of ... against a bare SimPy timeout, same process count", "x", "target (dream)")
    for n in PROCESSES:
        scenario = fresh_pages(n, 1024 // n)
        rates, ratios = side_by_side(
            partial(bare_simpy, n),
            partial(bare_kernel, n),
            partial(model, scenario),
            partial(by_random, n),
        )
        line(f"  bare SimPy timeout, {n} processes", f"{rates[0] / 1e6:.2f} M/s")
        line(
            f"  sim.Kernel, cell writes in time order, {n} threads", f"{ratios[1]:.2f} x", "at most 2 x (1 x)"
        )
        line(
            f"  full model, timing run, events off, {n} vCPUs on fresh pages",
            f"{ratios[2]:.2f} x",
            "at most 2 x (1 x)",
        )
        line(
            f"  sim.Kernel under random, no checkers, {n} threads",
            f"{ratios[3]:.2f} x",
            "at most 1.5 x (1 x)",
        )


def event_log() -> None:
    scenario = fresh_pages(8, 64)
    rates, ratios = side_by_side(partial(model, scenario), partial(model, scenario, log=True))
    print()
    line("event log, 8 vCPUs on fresh pages", "", "")
    line("  off", f"{rates[0] / 1e6:.2f} M steps/s", "nothing measurable")
    line("  on, streaming to a file", f"{ratios[1]:.2f} x", "no target")


def executions() -> None:
    """Searches: the full model with and without its checkers, then the protocol worlds without any."""
    scenario = scenario_of(PROTOCOL)
    print()
    line("full model, 2 vCPUs fault a page + 1 conversion: executions a second", "", "1,000 (5,000)")
    for strategy in STRATEGIES:
        rounds = []
        for _ in range(3):
            bare = bare_simpy(3)
            judged = searched(partial(build, scenario=scenario), strategy, 60, races=True)
            free = searched(partial(build, scenario=scenario, judged=False), strategy, 60, races=False)
            rounds.append((judged.executions, free.executions, bare / judged.steps, bare / free.steps))
        rates = [median(column) for column in zip(*rounds, strict=True)]
        line(
            f"  {strategy:9} checkers on: {rates[0]:4.0f} /s, a step {rates[2]:5.1f} x of a SimPy timeout; off:",
            f"{rates[1]:.0f} /s, {rates[3]:.1f} x",
            "at most 3 x on, 1.5 x off" if strategy == "random" else "",
        )
    print()
    line("protocol worlds, no checkers: executions a second", "", "5,000 (20,000)")
    for name, world in (("M1 N=2", m1.world(2)), ("M2 N=2 A=2", m2.world(2)), ("M3 N=1 A=2", m3.world(1))):
        found = median(searched(world, "random", 500, races=False).executions for _ in range(REPETITIONS))
        line(f"  {name}, random", f"{found:.0f} /s")


def jobs() -> None:
    """The same hunt in one and in two processes."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(3):
        for n, lasted in seconds.items():
            began_s = perf_counter()
            hunt("vcpus-vs-one-page", strategy="random", executions=1024, jobs=n)
            lasted.append(perf_counter() - began_s)
    ratio = median(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    print()
    line("hunt of 1,024 executions, one job against two, start-up included", f"{ratio:.2f} x", "1.8 x")


def cost_per_fault() -> None:
    print()
    line(
        f"cost of a private 4K fault with its accept, {PAGES_PER_VCPU} pages a vCPU", "", "flat within 1.5 x"
    )
    first_us = 0.0
    for n in VCPUS:
        scenario = fresh_pages(n, PAGES_PER_VCPU)
        seconds, steps = [], 0
        for _ in range(3 if n > 8 else 9):
            kernel = Kernel(stop_at_finding=False)
            prepare(kernel, scenario)
            began_s = perf_counter()
            kernel.execute()
            seconds.append(perf_counter() - began_s)
            steps = kernel.steps
        us = median(seconds) / (n * PAGES_PER_VCPU) * 1e6
        first_us = first_us or us
        line(
            f"  {n:3} vCPUs   {steps / (n * PAGES_PER_VCPU):6.1f} steps a fault   {us / first_us:4.2f} x of one vCPU",
            f"{us:.0f} us",
        )


def module() -> None:
    """The TDX module alone: every leaf, then the tables."""
    print()
    line("SEAMCALLs and TDCALLs, one after the other: calls a second", "", "no target")
    for rate in seamcalls.rates():
        line(f"  {rate.name:28} {rate.level:4} {rate.steps:5} steps", f"{rate.per_second:,.0f} /s")
    line("make conformance, both tables, one process", f"{seamcalls.conformance_s():.1f} s", "60 s")


def start_up() -> None:
    program = Path(sys.executable).with_name("tdsim")
    library = Path(__file__).resolve().parents[2] / "scenarios" / "library" / "fault-vs-convert.yaml"

    def seconds(*arguments: str) -> float:
        began_s = perf_counter()
        subprocess.run([str(program), *arguments], check=True, capture_output=True)
        return perf_counter() - began_s

    print()
    line("start-up, whole process", "", "")
    bare = []
    for _ in range(REPETITIONS):
        began_s = perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare.append(perf_counter() - began_s)
    line("  python -c pass, for comparison", f"{median(bare):.3f} s")
    line("  tdsim --help", f"{median(seconds('--help') for _ in range(REPETITIONS)):.3f} s", "0.15 s")
    line(
        "  tdsim check",
        f"{median(seconds('check', str(library)) for _ in range(REPETITIONS)):.3f} s",
        "0.3 s",
    )


def main() -> None:
    began_s = perf_counter()
    print(f"tdsim bench: medians, interleaved; Python {sys.version.split()[0]}, SimPy {simpy.__version__}\n")
    steps_against_simpy()
    event_log()
    executions()
    jobs()
    cost_per_fault()
    module()
    start_up()
    print(f"\nmeasured in {perf_counter() - began_s:.0f} s")


if __name__ == "__main__":
    main()
