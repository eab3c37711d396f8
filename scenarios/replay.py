"""Replay: a finding's file, or a schedule, made to happen again; on any machine, from any folder.

A finding's JSON holds all that is needed: the scenario, the patches as text, the options and the schedule. What it says is
data, but its patches are Python that is run: replay only what you would run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios import shrink
from scenarios.campaign.case import Case, Opened, case_of
from scenarios.campaign.explain import as_plain, nearest_passing, timing_witness
from scenarios.campaign.folder import write_finding
from scenarios.campaign.shares import finding_from
from scenarios.errors import ScenarioError
from scenarios.film import Film, film
from scenarios.loading import load_all, resolve
from sim import BadSchedule, Finding
from sim.schedule import parse

Told = dict[str, Any]
"""A finding as its JSON file is; of a schedule that came without one, `kind` is empty."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One execution by a schedule.

    `found` is what it showed, `same` whether that is what the file tells of (the same kind and title), `other_model` whether
    the file was made with other sources or patches.
    """

    told: Told
    made: Film
    found: Finding | None
    same: bool
    other_model: bool

    @property
    def cut(self) -> bool:
        """Whether the limit of steps ended it."""
        return self.made.recording.kernel.exhausted

    @property
    def misfits(self) -> Sequence[tuple[int, str]]:
        """Where the schedule does not fit: step, and the thread that could not go."""
        return self.made.recording.misfits

    @property
    def status(self) -> int:
        """The exit status: 1 found, 3 cut, 0 neither."""
        if self.found is not None:
            return 1
        return 3 if self.cut else 0

    @property
    def shown(self) -> Told:
        """The finding as this execution shows it, by the schedule as it was given if that still fits.

        Raises: AssertionError: it shows none.
        """
        assert self.found is not None
        schedule = self.made.recording.schedule if self.misfits else self.told["schedule"]
        kept = {name: self.told[name] for name in ("count", "replay") if name in self.told}
        return self.told | as_plain(self.found) | {"schedule": schedule} | kept

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        found = self.found
        return {
            "reproduced": self.same,
            "kind": found.kind if found is not None else None,
            "title": found.title if found is not None else None,
            "fingerprint": found.fingerprint if found is not None else None,
            "schedule": self.made.recording.schedule,
            "steps": self.made.recording.kernel.steps,
            "misfits": [{"step": step, "thread": thread} for step, thread in self.misfits],
            "other_model": self.other_model,
            "cut": self.cut,
        }


def replay(opened: Opened, told: Told) -> Replayed:
    """Make the execution."""
    made = film(opened, told["schedule"], seed=told["seed"])
    findings = made.recording.kernel.findings
    same = [found for found in findings if (found.kind, found.title) == (told["kind"], told["title"])]
    return Replayed(
        told=told,
        made=made,
        found=next(iter([*same, *findings]), None),
        same=bool(same),
        other_model=told.get("model_digest", opened.digest) != opened.digest,
    )


def read(file: Path, scenario_name: str | None, changes: Sequence[str]) -> tuple[Case, Told]:
    """What a file holds: the case and finding of a JSON; or a schedule, which is one of `scenario_name` with `changes`.

    Raises: ScenarioError: it is neither, or cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"
        raise ScenarioError(f"cannot be read: {why}", str(file)) from exc
    if text.lstrip().startswith("{"):
        told = finding_of(text, file)
        if scenario_name is not None or changes:
            remedy = "--scenario, --set, --seed and --design go with a schedule"
            raise ScenarioError("holds its own scenario", str(file), remedy=remedy)
        return Case.from_json(told["case"], str(file)), told
    schedule = schedule_of(text, file)
    if scenario_name is None:
        raise ScenarioError("is a schedule", str(file), remedy="say of which scenario: --scenario NAME")
    variants = load_all(resolve(scenario_name), changes)
    if len(variants) != 1:
        remedy = "use --set sweep={}"
        raise ScenarioError("has a sweep: replay in one combination", scenario_name, remedy=remedy)
    case = case_of(variants[0], (), strategy="replay", window_ns=variants[0].hunt.window)
    return case, {"schedule": schedule, "seed": case.seed, "kind": "", "title": ""}


def finding_of(text: str, file: Path) -> Told:
    """A finding's JSON.

    Raises: ScenarioError: it is none.
    """
    try:
        told: Told = json.loads(text)
    except json.JSONDecodeError as exc:
        raise ScenarioError(f"no JSON: {exc.msg}", str(file), exc.lineno, exc.colno) from None
    remedy = "give a file of a hunt's findings folder"
    try:
        finding = finding_from(told)
    except (KeyError, TypeError, AssertionError) as exc:
        message = f"no finding of this version of tdsim: {exc} is missing or of another kind"
        raise ScenarioError(message, str(file), remedy=remedy) from None
    if not isinstance(told.get("case"), dict):
        raise ScenarioError("does not hold its scenario", str(file), remedy=remedy)
    if finding.kind == "unmet" and not finding.schedule:
        raise ScenarioError("nothing to replay: this was never met, in any execution", str(file))
    try:
        parse(finding.schedule)
    except BadSchedule as exc:
        raise ScenarioError(str(exc), str(file), path="schedule") from None
    return told


def schedule_of(text: str, file: Path) -> str:
    """The one schedule of a file; lines that begin with # are comments. An empty file is the timing run's.

    Raises: ScenarioError: there are several, or it cannot be read.
    """
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    schedules = [(i, line) for i, line in lines if line and not line.startswith("#")]
    if len(schedules) > 1:
        remedy = "leave one, or replay a finding's JSON"
        raise ScenarioError(f"holds {len(schedules)} schedules", str(file), remedy=remedy)
    number, schedule = schedules[0] if schedules else (1, "")
    try:
        parse(schedule)
    except BadSchedule as exc:
        raise ScenarioError(str(exc), str(file), number, 1) from None
    return schedule


def make_smaller(
    case: Case,
    told: Told,
    to: Path,
    *,
    executions: int = shrink.EXECUTIONS,
    progress: shrink.Progress | None = None,
) -> shrink.Shrunk:
    """Shrink a finding and write the smaller one to `to`.

    Raises: ScenarioError: there is nothing to shrink, or it cannot be written.
    """
    if not told["kind"]:
        with case.opened() as opened:
            found = replay(opened, told).found
        if found is None:
            raise ScenarioError("this schedule finds nothing: there is nothing to shrink", told["schedule"])
        told = told | as_plain(found) | {"schedule": told["schedule"]}
    try:
        small = shrink.shrink(case, told, executions=executions, progress=progress)
    except shrink.NotShown as exc:
        remedy = "look at it with `tdsim replay` without --shrink"
        raise ScenarioError(str(exc), told["schedule"], remedy=remedy) from exc
    new = as_plain(small.finding)
    steps = new.pop("steps")
    with small.case.opened() as opened:
        new |= {"count": told["count"], "replay": f"tdsim replay {to.name}", "expected": False}
        new |= {"nearest": nearest_passing(opened, small.finding)}
        new |= {"witness": timing_witness(opened, small.finding)}
        new |= {"model_digest": opened.digest, "case": small.case.as_json(), "steps": steps}
    try:
        write_finding(to, new)
    except OSError as exc:
        raise ScenarioError(f"cannot write: {exc.strerror}", str(to), remedy="choose another --out") from exc
    return small
