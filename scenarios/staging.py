"""Output folders (DESIGN.md section 9): written aside, then put in place file by file, so never half-written."""

from __future__ import annotations

import os
from pathlib import Path

from scenarios.errors import ScenarioError

LEFT_OVER = ("latency.*", "events.jsonl", "findings/*.*")
"""What an earlier run or hunt may have left that this one does not write; other files are always written anew."""


def refuse_unwritable(out_dir: Path) -> None:
    """See that the folder can be written before hours are spent on what goes there.

    Raises: ScenarioError: it cannot.
    """
    place = out_dir.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ScenarioError("is not a folder", str(place), remedy="choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ScenarioError("output folder is not writable", str(place), remedy="choose another --out")


def write_text(path: Path, text: str) -> None:
    """The same bytes on every platform."""
    path.write_text(text, encoding="utf-8", newline="\n")


def put_in_place(staging: Path, out_dir: Path) -> None:
    """Move every file of `staging` to `out_dir`; what an earlier run left there goes."""
    (out_dir / "findings").mkdir(parents=True, exist_ok=True)
    for pattern in LEFT_OVER:
        for old in out_dir.glob(pattern):
            old.unlink()
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            path.replace(out_dir / path.relative_to(staging))


__all__ = ["put_in_place", "refuse_unwritable", "write_text"]
