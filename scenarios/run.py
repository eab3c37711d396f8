"""A timing run: one execution in time order, with costs, latencies and events, judged by the scenario's expectations."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from scenarios import output
from scenarios.build import World, build
from scenarios.costs import default_costs
from scenarios.errors import ScenarioError, nearest
from sim import Kernel
from sim.costs import CostModel, constant, lognormal
from sim.events import EventLog
from sim.patches import BadPatch, Replacement, applied, read
from sim.streams import Streams

if TYPE_CHECKING:
    from scenarios.schema import CountBounds, Scenario

STEPS_MAX = 2_000_000_000
"""A run that takes more steps than this is stopped as inconclusive."""
MODEL_PACKAGES = ("sim", "vcpu", "mmu", "tdx")


@dataclass(slots=True)
class RunResult:
    """What a run gives back: the fields of summary.json (DESIGN.md section 9), and where the files are."""

    scenario: str
    design: str
    seed: int
    model_digest: str
    now_ns: int
    steps: int
    wall_s: float
    counters: dict[str, int]
    latency: dict[str, dict[str, Any]]
    findings: list[dict[str, Any]]
    expectations: list[dict[str, Any]]
    not_reached: list[str] = field(default_factory=list)
    inconclusive: str = ""
    out_dir: Path | None = None


def run_scenario(
    scenario: Scenario,
    *,
    seed: int,
    out_dir: Path | None = None,
    events: str = "events",
    patches: Sequence[Path] = (),
) -> RunResult:
    """Run a scenario in virtual time and write its output folder.

    Args:
        events: `off`, `events`, or `accesses` (every step as well).
        out_dir: where the files go; None writes nothing.
    Raises: ScenarioError: an unknown cost, or a patch that cannot be used.
    """
    try:
        replacements = [r for path in patches for r in read(path)]
    except BadPatch as error:
        raise ScenarioError(str(error)) from error
    began_s = monotonic()
    with ExitStack() as stack:
        stack.enter_context(applied(replacements))
        kernel = Kernel(seed, stop_at_finding=False, max_steps=STEPS_MAX)
        prepare(kernel, scenario)
        staging = None
        if out_dir is not None:
            staging = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix=".tdsim-", dir=_made(out_dir.parent)))
            )
            if events != "off":
                events_file = stack.enter_context((staging / "events.jsonl").open("wb"))
                kernel.events = EventLog(events_file)
                if events == "accesses":
                    output.log_accesses(kernel)
        kernel.execute()
        if kernel.events is not None:
            kernel.events.close()
        result = judge(kernel, scenario, model_digest(replacements), monotonic() - began_s)
        if out_dir is not None and staging is not None:
            assert kernel.histograms is not None
            output.write(staging, out_dir, result, kernel.histograms)
            result.out_dir = out_dir
    return result


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepare(kernel: Kernel, scenario: Scenario) -> World:
    """Build the world, then turn on what measures it: building costs nothing and is not measured."""
    world = build(kernel, scenario)
    kernel.costs = cost_model(scenario, kernel.seed)
    kernel.histograms = {}
    world.kvm.mmu_lock.line_ns = kernel.costs.mean_ns("rwlock_line_transfer") // 2
    return world


def cost_model(scenario: Scenario, seed: int) -> CostModel:
    """The published table at the machine's clock, with the scenario's own costs over it."""
    table = default_costs(clock_ghz=str(scenario.machine.clock_ghz), quiet_host=not scenario.machine.noisy)
    model = CostModel(Streams(seed).child("costs"), table, jitter=scenario.jitter)
    for name, cost in scenario.costs.items():
        if name not in table:
            raise scenario.error(
                ("costs", name), "no such cost", key=True, remedy=nearest(name, sorted(table))
            )
        if cost.shape == 0 or (cost.shape is None and cost.floor is None):
            model.define(name, constant(cost.mean))
        else:
            model.define(name, lognormal(cost.mean, shape=str(cost.shape or "0.5"), floor=cost.floor or 0))
    return model


def judge(kernel: Kernel, scenario: Scenario, digest: str, wall_s: float) -> RunResult:
    """Compare what happened with what the scenario expects."""
    histograms = kernel.histograms or {}
    latency = {name: histograms[name].summary() for name in sorted(histograms)}
    expect = scenario.expect
    expectations: list[dict[str, Any]] = []
    not_reached: list[str] = []
    findings = kernel.findings
    if expect is not None:
        expectations += _counters(expect.counters, kernel.counters)
        expectations += _latencies(expect.latency, latency)
        not_reached = [name for name in expect.sometimes if name not in kernel.met]
        if expect.findings != "none":
            findings, told = _expected_findings(kernel, expect.findings)
            expectations += told
    return RunResult(
        scenario=scenario.name,
        design=scenario.design,
        seed=kernel.seed,
        model_digest=digest,
        now_ns=int(kernel.now),
        steps=kernel.steps,
        wall_s=round(wall_s, 3),
        counters=dict(sorted(kernel.counters.items())),
        latency=latency,
        findings=[finding.as_json() for finding in findings],
        expectations=expectations,
        not_reached=not_reached,
        inconclusive=f"stopped after {STEPS_MAX} steps" if kernel.exhausted else "",
    )


def _expected_findings(kernel: Kernel, expected: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    if expected == "any":
        return [], []
    found = {finding.kind for finding in kernel.findings}
    told = [
        {"text": f"a finding of kind {kind}", "met": kind in found, "detail": ", ".join(sorted(found))}
        for kind in expected
    ]
    return [finding for finding in kernel.findings if finding.kind not in expected], told


def _counters(bounds: dict[str, CountBounds], counters: dict[str, int]) -> list[dict[str, Any]]:
    return [
        _within(f"counter {name}", counters.get(name, 0), limit.min, limit.max)
        for name, limit in bounds.items()
    ]


def _latencies(bounds: dict[str, Any], latency: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    told = []
    for name, limits in bounds.items():
        for figure in limits.model_fields_set:
            limit = getattr(limits, figure)
            value = latency.get(name, {}).get(figure, 0)
            told.append(_within(f"latency {name} {figure}", value, limit.min, limit.max))
    return sorted(told, key=lambda expectation: str(expectation["text"]))


def _within(text: str, value: Any, low: int | None, high: int | None) -> dict[str, Any]:
    met = (low is None or value >= low) and (high is None or value <= high)
    bounds = (
        f"{low if low is not None else ''}..{high if high is not None else ''}" if low != high else str(low)
    )
    return {"text": f"{text} in {bounds}", "met": met, "detail": str(value)}


def model_digest(replacements: Sequence[Replacement] = ()) -> str:
    """Which model this is: a digest of its sources and of the patches. The same checkout gives the same on every machine."""
    digest = blake2b(digest_size=8)
    root = Path(__file__).resolve().parent.parent
    for package in MODEL_PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    for replacement in replacements:
        digest.update(replacement.original.__qualname__.encode() + replacement.replacement.__code__.co_code)
    return digest.hexdigest()
