"""What a hunt came to: its shares put together, judged by the scenario's expectations, with a verdict and its claim."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from scenarios.campaign.case import Opened
from scenarios.campaign.coverage import coverage, coverage_lines
from scenarios.campaign.explain import as_plain, nearest_passing, shortened, timing_witness
from scenarios.campaign.shares import ShareResult
from sim import Finding, Report
from sim.estimates import PctBound, unseen_mass
from sim.explore import claim_of
from sim.strategies.dpor_split import claim

INTERRUPTED = 130
EXPLAINED = 5
"""How many findings are looked into further; each takes some hundred executions."""

IN_SHORT = (
    "kind", "title", "fingerprint", "count", "execution", "share", "seed", "step", "threads", "expected", "replay"
)  # fmt: skip
"""What summary.json says of a finding; the rest is in the finding's own file."""


@dataclass(slots=True, repr=False)
class HuntResult:
    """What a hunt came to. `findings` are as their JSON files are; an expected one has `expected` true.

    `verdict` is one of DESIGN.md section 3's four, `claim` what it rests on in numbers. `wall_s` and `out_dir` are the only
    things that differ between two equal hunts.
    """

    scenario: str
    design: str
    seed: int
    strategy: str
    model_digest: str
    report: Report
    verdict: str = ""
    claim: str = ""
    findings: list[dict[str, Any]] = field(default_factory=list)
    expectations: list[dict[str, Any]] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    coverage: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False
    wall_s: float = 0.0
    out_dir: Path | None = None

    @property
    def executions(self) -> int:
        """How many were begun."""
        return self.report.executions

    @property
    def clean(self) -> bool:
        """Every expectation was met, nothing was found that was not expected, and no limit or interrupt is in the way."""
        return self.verdict in ("none found", "proved") and not self.interrupted

    @property
    def unexpected(self) -> list[dict[str, Any]]:
        """The findings that are bad news."""
        return [finding for finding in self.findings if not finding["expected"]]

    @property
    def status(self) -> int:
        """The exit status (DESIGN.md section 8)."""
        if self.interrupted:
            return INTERRUPTED
        return {"failing": 1, "inconclusive": 3}.get(self.verdict, 0)

    def summary(self) -> dict[str, Any]:
        """summary.json: the same bytes for the same hunt, so without wall-clock time."""
        report = self.report
        return {
            "scenario": self.scenario,
            "design": self.design,
            "seed": self.seed,
            "model_digest": self.model_digest,
            "now_ns": 0,
            "steps": report.steps,
            "wall_s": None,
            "strategy": self.strategy,
            "executions": report.executions,
            "complete": report.complete,
            "cut": report.cut,
            "failed": report.failed,
            "steps_max": report.steps_max,
            "classes": report.classes,
            "unseen": report.unseen,
            "hits": report.hits,
            "loops": report.loops,
            "exhausted": report.exhausted,
            "interrupted": self.interrupted,
            "verdict": self.verdict,
            "claim": self.claim,
            "digest": report.digest,
            "counters": self.counters,
            "latency": {},
            "findings": [{name: finding[name] for name in IN_SHORT} for finding in self.findings],
            "expectations": self.expectations,
            "coverage": self.coverage,
        }

    def lines(self, *, with_coverage: bool = True) -> list[str]:
        """For people: the verdict and its claim, findings, expectations, coverage, files."""
        report = self.report
        rate = f" ({report.executions / self.wall_s:.0f}/s)" if self.wall_s else ""
        executions = f"{report.executions} executions{rate}, {report.complete} complete, {report.cut} cut"
        lines = [
            f"{self.scenario}  design {self.design}  seed {self.seed}  strategy {self.strategy}",
            f"{executions}; {report.steps_max} steps at most; {report.classes} orders of conflicting accesses",
            f"{self.verdict.upper()}: {self.claim}",
            "",
        ]
        for told in self.expectations:
            detail = f": {told['detail']}" if told["detail"] else ""
            lines.append(f"{'met  ' if told['met'] else 'UNMET'}  {told['text']}{detail}")
        for finding in self.findings:
            lines += self._finding_lines(finding)
        if report.failed:
            lines.append(
                "hit by       " + ", ".join(f"{name} ({times} x)" for name, times in report.hits.items())
            )
        if not self.findings:
            lines.append("no findings")
        if self.interrupted:
            lines.append("interrupted: this is what was found so far")
        if with_coverage:
            lines += ["", *coverage_lines(self.coverage)]
        if self.out_dir is not None:
            lines.append(f"files in {self.out_dir}")
        return lines

    def _finding_lines(self, finding: dict[str, Any]) -> list[str]:
        head = f"{'expected' if finding['expected'] else 'FINDING'}  {finding['kind']}: {finding['title']}"
        if not finding["schedule"]:
            return [head]
        often = f"{finding['count']} x, first in execution {finding['execution']} of share {finding['share']}"
        lines = [f"{head}  ({often})"]
        if self.out_dir is None:
            lines.append(f"         schedule (seed {finding['seed']}): {finding['schedule']}")
        else:
            file = self.out_dir / "findings" / f"{finding['fingerprint']}.json"
            lines.append(f"         tdsim replay {shlex.quote(str(file))}")
        return lines

    def __repr__(self) -> str:
        return "\n".join(["HuntResult:", *self.lines(with_coverage=False)])


def merge(
    opened: Opened,
    shares: Sequence[ShareResult],
    *,
    stop_at_first: bool,
    interrupted: bool,
    out_of_time: bool = False,
    parts: int = 0,
) -> HuntResult:
    """One result of all shares, which come in the order of their indices; `out_of_time`: there was more to do.

    `parts`: how many parts the tree has that the shares are of; 0 if they are no parts.
    """
    scenario = opened.scenario
    report = merged_report(opened, shares, parts)
    report.out_of_time = out_of_time
    result = HuntResult(
        scenario.name, scenario.design, scenario.seed, opened.case.strategy, opened.digest, report
    )
    result.interrupted = interrupted
    result.counters = dict(sorted(sum_of(share.counters for share in shares).items()))
    wanted = list(dict.fromkeys([*report_wanted(shares), *scenario.expect.sometimes]))
    all_seen = not (interrupted or out_of_time or not shares or (stop_at_first and report.findings))
    if all_seen:  # else what was not met may still have been met
        report.unmet = [name for name in wanted if name not in report.met]
        result.expectations = _expectations(opened, report, wanted)
    findings = [*report.findings, *(_unmet(name, report) for name in report.unmet)]
    result.findings = [
        _self_contained(opened, finding, shares, explain=i < EXPLAINED) for i, finding in enumerate(findings)
    ]
    built = sum_of(share.built for share in shares)
    result.coverage = coverage(
        {name: n - built.get(name, 0) for name, n in result.counters.items() if n > built.get(name, 0)},
        report.met,
        wanted,
        {name for share in shares for name in share.ids},
        report.pairs,
        sum(share.traced for share in shares),
    )
    result.verdict, result.claim = _verdict(result)
    return result


def merged_report(opened: Opened, shares: Sequence[ShareResult], parts: int = 0) -> Report:
    """`sim`'s report of all shares; its claims hold for all their executions together."""
    case = opened.case
    if len(shares) == 1 and parts <= 1:
        return replace(shares[0].report, findings=list(shares[0].report.findings), unmet=[])
    reports = [share.report for share in shares]
    known: dict[str, Finding] = {}
    for finding in (finding for report in reports for finding in report.findings):
        seen = known.get(finding.fingerprint)
        count = finding.count + (seen.count if seen is not None else 0)
        known[finding.fingerprint] = replace(seen or finding, count=count)
    orders = Counter[int]()
    for report in reports:
        orders.update(report.orders)
    digest = blake2b(digest_size=16)
    for share in shares:
        digest.update(f"{share.index} {share.report.digest}\n".encode())
    merged = Report(
        case.strategy,
        opened.scenario.seed,
        executions=sum(report.executions for report in reports),
        complete=sum(report.complete for report in reports),
        cut=sum(report.cut for report in reports),
        steps=sum(report.steps for report in reports),
        steps_max=max((report.steps_max for report in reports), default=0),
        findings=list(known.values()),
        met={name for report in reports for name in report.met},
        digest=digest.hexdigest(),
        failed=sum(report.failed for report in reports),
        drawn=any(report.drawn for report in reports),
        hits=sum_of(report.hits for report in reports),
        classes=len(orders),
        unseen=unseen_mass(orders.values()),
        orders=dict(orders),
        bounds=_bounds(reports),
        pairs=dict(sorted(sum_of(report.pairs for report in reports).items())),
        loops=sum_of(report.loops for report in reports),
    )
    claimed = "; ".join(map(str, merged.bounds))
    if parts:
        whole = len(shares) == parts
        merged.exhausted = whole and all(report.exhausted for report in reports)
        merged.proved = whole and all(report.proved for report in reports)
        claimed = claim(merged.complete, parts, ended=merged.exhausted, vouched=merged.proved)
    merged.claim = claim_of(merged, claimed, window_ns=opened.window_ns)
    return merged


def report_wanted(shares: Sequence[ShareResult]) -> list[str]:
    """The model's own `sometimes`, in order."""
    return list(dict.fromkeys(name for share in shares for name in share.wanted))


def sum_of(counts: Any) -> dict[str, int]:
    """Counters added up, in the order in which their names come first."""
    total: dict[str, int] = {}
    for count in counts:
        for name, n in count.items():
            total[name] = total.get(name, 0) + n
    return total


def _bounds(reports: Sequence[Report]) -> tuple[PctBound, ...]:
    by_depth: dict[int, PctBound] = {}
    for bound in (bound for report in reports for bound in report.bounds):
        known = by_depth.get(bound.depth)
        by_depth[bound.depth] = bound if known is None else known.together(bound)
    return tuple(by_depth[depth] for depth in sorted(by_depth))


def _expectations(opened: Opened, report: Report, wanted: Sequence[str]) -> list[dict[str, Any]]:
    told = [{"text": f"sometimes {name}", "met": name in report.met, "detail": ""} for name in wanted]
    expected = opened.scenario.expect.findings
    kinds = {finding.kind for finding in report.findings}
    if not isinstance(expected, str):
        detail = ", ".join(sorted(kinds))
        told += [
            {"text": f"a finding of kind {kind}", "met": kind in kinds, "detail": detail} for kind in expected
        ]
    return told


def _unmet(name: str, report: Report) -> Finding:
    details = {"executions": str(report.executions), "strategy": report.strategy}
    return Finding(kind="unmet", title=f"never met: {name}", seed=report.seed, details=details)


def _self_contained(
    opened: Opened, finding: Finding, shares: Sequence[ShareResult], *, explain: bool
) -> dict[str, Any]:
    """The finding as its JSON file is: with the case it was found in, in a fixed order of keys."""
    if explain:
        finding = shortened(opened, finding)
    first = next((share for share in shares if finding.fingerprint in share.first), None)
    told = as_plain(finding)
    steps = told.pop("steps")
    if finding.schedule:
        told["replay"] = f"tdsim replay {finding.fingerprint}.json"
    expected = opened.scenario.expect.findings
    return told | {
        "execution": first.first[finding.fingerprint] if first is not None else 0,
        "share": first.index if first is not None else 0,
        "nearest": nearest_passing(opened, finding) if explain else {},
        "witness": timing_witness(opened, finding) if explain else {},
        "expected": expected == "any" or (not isinstance(expected, str) and finding.kind in expected),
        "model_digest": opened.digest,
        "case": opened.case.as_json(),
        "steps": steps,
    }


def _verdict(result: HuntResult) -> tuple[str, str]:
    """One of the four (DESIGN.md section 3) and its claim."""
    report = result.report
    missing = [told["text"] for told in result.expectations if not told["met"]]
    claim = report.claim
    if report.out_of_time:
        claim = f"the time limit ended the search after {report.executions} executions. {claim}"
    if result.unexpected or missing:
        if missing:
            claim = ". ".join(part for part in (f"never met: {', '.join(missing)}", claim) if part)
        return "failing", claim
    if not report.executions:
        return "inconclusive", "no execution was made in the time there was"
    if report.findings:
        claim = f"as expected, {claim}"
    if report.cut or report.out_of_time:
        return "inconclusive", claim
    return ("proved" if report.proved else "none found"), claim
