"""Scenario texts that the tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.errors import ScenarioError
from scenarios.loading import load

GOOD = """\
scenario: good
question: Does a good file load?
td: {vcpus: 2}
memory:
  - {slot: 0, base: 0x1000000, size: 2M}
threads:
  vcpu0: [{touch: {at: 0x1000000}}]
  host0:
    - set_memory_attributes: {at: 0x1000000, size: 4K, to: shared}
"""


def write(folder: Path, text: str, name: str = "good") -> Path:
    """A scenario file of this text."""
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def complaints(folder: Path, text: str, *overrides: str) -> list[str]:
    """The messages for this text, without the folder."""
    with pytest.raises(ScenarioError) as caught:
        load(write(folder, text), overrides)
    return [str(error).replace(str(folder) + "/", "") for error in caught.value.errors]


def edited(*edits: tuple[str, str]) -> str:
    """The good text with replacements, each of which must apply."""
    text = GOOD
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return text
