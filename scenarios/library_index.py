"""The scenarios that come with tdsim: names and questions, read without pydantic so that `tdsim list` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from scenarios.yaml_loader import read_yaml

LIBRARY: Final = Path(__file__).parent / "library"


def library_names() -> list[str]:
    """Names of the library's scenarios, in order."""
    return sorted(file.stem for file in LIBRARY.glob("*.yaml"))


def library_entries() -> list[dict[str, str]]:
    """Name, question and file of each."""
    entries = []
    for name in library_names():
        data = read_yaml(LIBRARY / f"{name}.yaml").data
        question = data.get("question", "") if isinstance(data, dict) else ""
        entries.append({"scenario": name, "question": str(question)})
    return entries
