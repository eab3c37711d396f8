"""Where the reference's tables are wrong: rows that are compared with what Intel's source says, and counted apart.

`tables/errata.csv` has a line for each wrong cell: the rows it speaks of (`*` stands for any value of a field), the column, what it says,
what it should say, and the evidence. It applies to any table that has the same wrong cell.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tdx.module import SeptState
from tests.conformance.table import ANY, NO_CONDITION, TABLES, UNCHANGED, Row

ERRATA = TABLES / "errata.csv"
FIELDS = {"status": "status", "operand": "operand", "outputs": "outputs", "entry_state_after": "after"}
"""Column of a table to attribute of a `Row`."""


@dataclass(frozen=True, slots=True)
class Erratum:
    """One line."""

    seamcall: str
    level: str
    entry_state_before: str
    extra_condition: str
    column: str
    says: str
    should_be: str
    evidence: str

    def is_about(self, row: Row) -> bool:
        """Whether the row has the wrong cell."""
        state = ANY if row.state is None else row.state.name
        condition = ";".join(map(str, row.terms)) or NO_CONDITION
        asked = (self.seamcall, self.level, self.entry_state_before, self.extra_condition)
        fits = all(
            one in ("*", other)
            for one, other in zip(asked, (row.seamcall, row.level, state, condition), strict=True)
        )
        return fits and getattr(row, FIELDS[self.column]) == _cell(self.column, self.says)

    def correct(self, row: Row) -> Row:
        """The row as it should be."""
        changed: dict[str, Any] = {FIELDS[self.column]: _cell(self.column, self.should_be)}
        return replace(row, **changed)

    def __str__(self) -> str:
        return f"{self.column} should be {self.should_be}, not {self.says}: {self.evidence}"


def _cell(column: str, text: str) -> object:
    if column != "entry_state_after":
        return text
    return None if text == UNCHANGED else SeptState[text]


def read_errata(path: Path = ERRATA) -> list[Erratum]:
    """All errata."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Erratum(**line) for line in csv.DictReader(file)]


def corrected(row: Row, errata: Sequence[Erratum]) -> tuple[Row, list[Erratum]]:
    """The row with its wrong cells put right, and which errata did it."""
    applied = [erratum for erratum in errata if erratum.is_about(row)]
    for erratum in applied:
        row = erratum.correct(row)
    return row, applied
