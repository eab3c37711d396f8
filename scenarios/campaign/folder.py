"""The files of a hunt (DESIGN.md section 9)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from scenarios.campaign.case import Opened
from scenarios.campaign.result import HuntResult
from scenarios.columns import mail
from scenarios.errors import ScenarioError
from scenarios.staging import put_in_place, write_text


def write(opened: Opened, result: HuntResult, out_dir: Path) -> None:
    """Write summary, schedules and findings; what an earlier run left there goes.

    Raises: ScenarioError: it cannot be written.
    """
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tdsim-", dir=out_dir.parent) as folder:
            staging = Path(folder)
            write_text(staging / "summary.json", json.dumps(result.summary(), indent=1) + "\n")
            write_text(staging / "schedule.txt", schedules(result.findings))
            (staging / "findings").mkdir()
            for finding in result.findings:
                stem = staging / "findings" / finding["fingerprint"]
                write_finding(stem.with_suffix(".json"), finding)
                write_text(stem.with_suffix(".txt"), mail(opened, finding))
            put_in_place(staging, out_dir)
    except OSError as exc:
        raise _unwritable(exc, out_dir) from exc


def write_finding(path: Path, finding: dict[str, Any]) -> None:
    """A finding's own file, by rename."""
    aside = path.with_name(f".{path.name}.part")
    write_text(aside, json.dumps(finding, indent=1) + "\n")
    aside.replace(path)


def schedules(findings: list[dict[str, Any]]) -> str:
    """schedule.txt: a schedule a line, each below a comment that says whose it is."""
    return "".join(
        f"# {finding['fingerprint']} seed {finding['seed']} {finding['kind']}: {finding['title']}\n"
        f"{finding['schedule']}\n"
        for finding in findings
        if finding["schedule"]
    )


def _unwritable(exc: OSError, out_dir: Path) -> ScenarioError:
    return ScenarioError(
        f"cannot write: {exc.strerror}", str(exc.filename or out_dir), remedy="choose another --out"
    )
