"""Running whole tables, on several processes if wanted, and the report.

The order of the report is the table's, whatever finished first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from tdx.module import Profile, profile_named
from tests.conformance.errata import Erratum, corrected, read_errata
from tests.conformance.locks import judge_lock
from tests.conformance.rows import judge_row
from tests.conformance.table import LockRow, Row

R = TypeVar("R")
SHOWN_DIFFERENCES = 4
CHUNK = 16


@dataclass(frozen=True)
class Result:
    """One row's outcome, as it is reported."""

    where: str
    row: str
    expected: str
    tried: int
    differences: tuple[str, ...]
    skipped: tuple[str, ...]
    """Why it could not be expressed, fully or in part."""
    errata: tuple[str, ...] = ()
    not_looked_at: tuple[str, ...] = ()
    """Outputs that nobody here understands."""

    @property
    def verdict(self) -> str:
        """`agrees`, `erratum` (agrees with the corrected row), `disagrees` or `not expressible`."""
        if not self.tried:
            return "not expressible"
        if self.differences:
            return "disagrees"
        return "erratum" if self.errata else "agrees"


@dataclass
class Report:
    """All rows of one table."""

    title: str
    results: list[Result] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """Rows by verdict."""
        return Counter(result.verdict for result in self.results)

    @property
    def agrees(self) -> bool:
        """Whether every row that could be expressed agrees."""
        return self.counts["disagrees"] == 0

    @property
    def expressible_percent(self) -> float:
        """How many rows could be expressed."""
        return 100 * (1 - self.counts["not expressible"] / max(len(self.results), 1))

    def lines(self) -> Iterator[str]:
        """The report for people."""
        counts = self.counts
        for result in self.results:
            if result.verdict == "disagrees":
                yield from _disagreement(result)
        for result in self.results:
            if result.verdict == "not expressible":
                yield f"NOT EXPRESSIBLE  {result.where}  {result.row}"
                yield f"    {'; '.join(result.skipped)}"
        for result in self.results:
            if result.verdict == "erratum":
                yield f"ERRATUM  {result.where}  {result.row}"
                yield from (f"    {text}" for text in result.errata)
            yield from (
                f"OUTPUT NOT LOOKED AT  {result.where}  {result.row}: {text}" for text in result.not_looked_at
            )
        tries = sum(result.tried for result in self.results)
        yield f"{self.title}: {len(self.results)} rows, {tries} tries, each in a fresh module"
        yield f"  agree            {counts['agrees'] + counts['erratum']:5}" + (
            f"   ({counts['erratum']} of them with the erratum)" if counts["erratum"] else ""
        )
        yield f"  disagree         {counts['disagrees']:5}"
        yield f"  not expressible  {counts['not expressible']:5}   ({self.expressible_percent:.1f}% are expressible)"

    def as_json(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "title": self.title,
            "rows": len(self.results),
            "agree": self.counts["agrees"] + self.counts["erratum"],
            "errata": self.counts["erratum"],
            "disagree": self.counts["disagrees"],
            "not_expressible": self.counts["not expressible"],
            "tries": sum(result.tried for result in self.results),
            "results": [
                {
                    "where": result.where,
                    "row": result.row,
                    "expected": result.expected,
                    "verdict": result.verdict,
                    "tries": result.tried,
                    "differences": list(result.differences),
                    "skipped": list(result.skipped),
                    "errata": list(result.errata),
                    "not_looked_at": list(result.not_looked_at),
                }
                for result in self.results
            ],
        }


def _disagreement(result: Result) -> Iterator[str]:
    yield f"DISAGREES  {result.where}  {result.row}  expects {result.expected}"
    yield from (f"    {difference}" for difference in result.differences[:SHOWN_DIFFERENCES])
    more = len(result.differences) - SHOWN_DIFFERENCES
    if more > 0:
        yield f"    and {more} more"


def run_transitions(
    rows: Sequence[Row], *, profile: str, jobs: int = 1, title: str = "S-EPT transitions"
) -> Report:
    """Try every row of a transition table against a release of that name."""
    one = partial(_transition, errata=read_errata(), profile=profile_named(profile))
    return Report(title, _each(one, rows, jobs))


def run_locks(rows: Sequence[LockRow], *, profile: str, jobs: int = 1) -> Report:
    """Try every row of a table of locks against a release of that name."""
    one = partial(_lock, rows=rows, profile=profile_named(profile))
    return Report("SEAMCALL locks", _each(one, rows, jobs))


def _each(one: Callable[[R], Result], rows: Sequence[R], jobs: int) -> list[Result]:
    if jobs == 1:
        return [one(row) for row in rows]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(one, rows, chunksize=CHUNK))


def _transition(row: Row, *, errata: Sequence[Erratum], profile: Profile) -> Result:
    right, applied = corrected(row, errata)
    verdict = judge_row(right, profile)
    return Result(
        row.where,
        str(row),
        right.expected,
        verdict.tried,
        tuple(verdict.differences),
        _once(verdict.skipped),
        tuple(map(str, applied)),
        tuple(verdict.unknown_outputs),
    )


def _lock(row: LockRow, *, rows: Sequence[LockRow], profile: Profile) -> Result:
    of_call = [other for other in rows if other.seamcall == row.seamcall]
    verdict = judge_lock(row, of_call, profile)
    return Result(
        row.where, str(row), row.error, verdict.tried, tuple(verdict.differences), _once(verdict.skipped)
    )


def _once(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
