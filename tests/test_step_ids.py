"""Every step of the reference is in the sources, or is listed here with the reason why not."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
F_STEPS = [
    "F01",
    "F02",
    "F03",
    "F04",
    "F05",
    "F06",
    "F07",
    "F08",
    "F10",
    "F11",
    "F12",
    "F13",
    "F14",
    "F20",
    "F21",
    "F22",
    "F23",
    "F24",
    "F25",
    "F26",
    "F27",
    "F27a",
    "F27b",
    "F27c",
    "F27d",
    "F27e",
    "F28",
    "F29",
    "F2A",
    "F30",
    "F31",
    "F32",
    "F33",
    "F34",
    "F35",
    "F36",
    "F37",
    "F38",
    "F39",
    "F3A",
    "F3B",
    "F3C",
    "F3D",
    "F3E",
    "F50",
    "F60",
]
IDS = [
    *F_STEPS,
    *(
        f"{letter}{n}"
        for letter, last in [("L", 8), ("Z", 7), ("C", 11), ("V", 15)]
        for n in range(1, last + 1)
    ),
]
NOT_MODELLED: dict[str, str] = {
    "Z7": "v6.16 (put_page) and the Dynamic PAMT series only; the modelled generation has nothing to do here",
}
"""id: reason, where the source has no line that could carry the id."""


def prose(path: Path) -> str:
    """The comments and docstrings of a file."""
    source = path.read_text(encoding="utf-8")
    parts = [
        t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            parts.append(ast.get_docstring(node) or "")  # noqa: PERF401 - a plain loop reads better
    return "\n".join(parts)


def ids_in(text: str) -> set[str]:
    """The ids a text names; a range ("F27a to F27e", "V1-V15") names its ends only."""
    return set(re.findall(r"\b(?:F[0-9][0-9A-F][a-e]?|[LZCV][0-9]{1,2})\b", text))


def found() -> set[str]:
    """The ids named anywhere in the model."""
    paths = [path for package in ("vcpu", "mmu", "tdx") for path in (ROOT / package).rglob("*.py")]
    return set().union(*(ids_in(prose(path)) for path in paths))


FOUND = found()


@pytest.mark.parametrize("step", IDS)
def test_a_step_of_the_reference_has_a_line(step):
    """Named in a comment or docstring, or excused in NOT_MODELLED."""
    table = "\n".join(f"{name}: {reason}" for name, reason in NOT_MODELLED.items())
    assert step in FOUND or step in NOT_MODELLED, (
        f"{step} is nowhere in vcpu/, mmu/, tdx/; not modelled:\n{table}"
    )


def test_no_excuse_is_out_of_date():
    """An id that is in the sources needs no reason."""
    assert sorted(FOUND & set(NOT_MODELLED)) == []


def test_no_line_names_a_step_that_does_not_exist():
    """A misspelt id would be found nowhere."""
    steps = {name for name in FOUND if name[0] in "FLZCV"}
    assert sorted(steps - set(IDS) - {"F05h", "C6s"}) == []
