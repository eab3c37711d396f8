"""The tables as data: rows with their place in the file, every field checked.

What cannot be read at all is a `BadTable`, which names file, line and remedy. A condition with a key that nobody knows is not: the
vocabulary is open, and such a row is reported as not expressible (`vocabulary`).
Source: reference section 0.1.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from tdx.module import Operand, SeptState, Status
from tdx.module.exits import ExitReason
from vcpu.addresses import LEVELS, PgLevel

TABLES = Path(__file__).parent / "tables"
TRANSITIONS = TABLES / "sept_transitions.csv"
LOCKS = TABLES / "seamcall_locks.csv"
MORE_TRANSITIONS = TABLES / "more_transitions.csv"
"""Rows of our own, for what the published table has no row for."""
STATUS_CODES = TABLES / "status_codes.csv"

TRANSITION_COLUMNS = (
    "seamcall",
    "level",
    "entry_state_before",
    "extra_condition",
    "status",
    "entry_state_after",
    "operand",
)
LOCK_COLUMNS = ("seamcall", "object", "mode", "order", "error_on_busy")
MODES = ("shared", "exclusive", "implicit", "associate", "count", "none")

NO_CONDITION = "-"
ANY = "ANY"
UNCHANGED = "unchanged"
LEAF = "leaf"
ALL_LEVELS = "*"
NO_LEVEL = "-"
LEVEL_NAMES = {level.short: level for level in LEVELS[1:]}
ROOTS = LEVELS[-2:]
"""A root has entries of 512G, or of 256T where there are five levels."""
RANGE_ENDS = LEVEL_NAMES | {"root": ROOTS[-1]}

CALL = re.compile(r"TD[HG](\.[A-Z0-9]+)+|GUEST_EPT_VIOLATION")
TERM = re.compile(r"(?P<key>[a-z][a-z0-9_]*)\s*(?P<op>!=|>=|<=|=|>|<)\s*(?P<values>[^=<>!;]+)")
OPERAND_WORDS = {"-", "level_reached", "vm+level", "R8+vm", "R9..R11"} | {
    *Operand.__members__,
    *ExitReason.__members__,
}
COMPOSITE = re.compile(r"\w([+/]|\.\.)\w")
TDEXITS = (
    "TDEXIT_EPT_VIOLATION",
    "TDEXIT_HOST_PRIORITY_BUSY_TIMEOUT",
    "TDEXIT_TDCALL",
    "TDEXIT_TD_IS_DEAD",
)
RESUMED = "GUEST_RESUME_SAME_RIP"
SHUTDOWN = "MODULE_SHUTDOWN"
"""The module meets what it holds to be impossible, and nothing goes on."""
ENTRY_STATUSES = (
    "SUCCESS",
    "SKIPPED",
    "SEPT_WALK_FAILED",
    "SEPT_ENTRY_BUSY_HOST_PRIORITY",
    "SEPT_ENTRY_STATE_INCORRECT",
    "TLB_TRACKING_NOT_DONE",
    "OP_STATE_INCORRECT",
    "MIGRATED_IN_CURRENT_EPOCH",
    "MIG_BUFFER_NOT_AVAILABLE",
    "NEW_PAGE_NOT_AVAILABLE",
    "INVALID_PAGE_MAC",
    "DISALLOWED_IMPORT_OVER_REMOVED",
    "TD_PAGE_BUSY_HOST_PRIORITY",
    "L2_SEPT_WALK_FAILED",
    "ATTR_LIST_ENTRY_INVALID",
    "GPA_LIST_ENTRY_INVALID",
)
"""Status numbers of a GPA list entry, by name (gpa_list_entry_status_e)."""


class BadTable(Exception):
    """A table that cannot be read. Args: one sentence with file, line and remedy."""


@dataclass(frozen=True, slots=True)
class Term:
    """One `key=value` of a condition; `values` are alternatives."""

    key: str
    op: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.key}{self.op}{'|'.join(self.values)}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a transition table."""

    where: str
    """File and line."""
    seamcall: str
    level: str
    state: SeptState | None
    """None: ANY."""
    terms: tuple[Term, ...]
    status: str
    operand: str
    after: SeptState | None
    """None: unchanged."""
    outputs: str
    note: str
    order: str

    def __str__(self) -> str:
        state = ANY if self.state is None else self.state.name
        condition = ";".join(map(str, self.terms)) or NO_CONDITION
        return f"{self.seamcall},{self.level},{state},{condition}"

    @property
    def expected(self) -> str:
        """Status and operand."""
        return self.status if self.operand == "-" else f"{self.status}|{self.operand}"


@dataclass(frozen=True, slots=True)
class LockRow:
    """One line of a table of locks."""

    where: str
    seamcall: str
    object: str
    mode: str
    order: int
    error: str
    kind: str
    held_until: str
    note: str

    def __str__(self) -> str:
        return f"{self.seamcall},{self.object},{self.mode},{self.order}"


def read_transitions(path: Path = TRANSITIONS) -> list[Row]:
    """All rows of a transition table. Raises: BadTable."""
    return [_transition(place, cells) for place, cells in _lines(path, TRANSITION_COLUMNS)]


def read_locks(path: Path = LOCKS) -> list[LockRow]:
    """All rows of a table of locks. Raises: BadTable."""
    return [_lock(place, cells) for place, cells in _lines(path, LOCK_COLUMNS)]


def levels_of(text: str) -> tuple[PgLevel, ...] | None:
    """The levels that `4K`, `4K..1G` or `4K,2M` names; None if it names none by itself (`*`, `leaf`, `-`, nonsense)."""
    if text in LEVEL_NAMES:
        return (LEVEL_NAMES[text],)
    if text == "root":
        return ROOTS
    if ".." in text:
        low, _, high = text.partition("..")
        if low in LEVEL_NAMES and high in RANGE_ENDS and LEVEL_NAMES[low] <= RANGE_ENDS[high]:
            return LEVELS[LEVEL_NAMES[low] : RANGE_ENDS[high] + 1]
        return None
    names = text.split(",")
    return tuple(LEVEL_NAMES[name] for name in names) if all(name in LEVEL_NAMES for name in names) else None


class _Cells:
    """The fields of one line, with what to say when one is wrong."""

    def __init__(self, place: str, fields: dict[str, str]) -> None:
        self.place = place
        self._fields = fields

    def text(self, column: str, default: str | None = None) -> str:
        """A field; empty is the default, which not every column has."""
        value = (self._fields.get(column) or "").strip()
        if value:
            return value
        if default is None:
            self.bad(f"{column} is empty", "fill it in; `-` stands for nothing")
        return default

    def one_of(self, column: str, names: Sequence[str], default: str | None = None) -> str:
        """A field that must be one of these."""
        value = self.text(column, default)
        if value not in names and value != default:
            near = get_close_matches(value, names, 1, 0.5)
            remedy = f"did you mean {near[0]}?" if near else f"one of {', '.join(sorted(names)[:6])} ..."
            self.bad(f"{column} {value!r} is unknown", remedy)
        return value

    def bad(self, what: str, remedy: str) -> NoReturn:
        """Raise."""
        raise BadTable(f"{self.place}: {what}; {remedy}")


def _lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, _Cells]]:
    """Place and fields of every line after the header."""
    path = _shown(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadTable(f"{path}: cannot be read: {error.strerror}; give the path of a CSV file") from None
    except UnicodeDecodeError:
        raise BadTable(f"{path}: is not UTF-8 text; give the path of a CSV file") from None
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    header: list[str] | None = None
    read = 0
    start = 1
    try:
        for fields in reader:
            place, start = f"{path}:{start}", reader.line_num + 1
            if not fields or fields[0].startswith("#"):
                continue
            if header is None:
                header = [name.strip() for name in fields]
                _check_header(place, header, columns)
                continue
            if len(fields) != len(header):
                raise BadTable(
                    f"{place}: {len(fields)} fields where the header has {len(header)}; "
                    "quote a field that has a comma in it"
                )
            read += 1
            yield place, _Cells(place, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise BadTable(f"{path}:{reader.line_num}: {error}; write it as CSV (RFC 4180)") from None
    if not read:
        raise BadTable(f"{path}:{start}: no rows; a table has a header and a line for each row")


def _shown(path: Path) -> Path:
    """As short as a reader here may name it."""
    whole = path.absolute()
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else path


def _check_header(place: str, header: Sequence[str], columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in header]
    if missing:
        other = {TRANSITION_COLUMNS: (LOCK_COLUMNS, "--locks"), LOCK_COLUMNS: (TRANSITION_COLUMNS, "--table")}
        its_columns, option = other[tuple(columns)]
        if all(name in header for name in its_columns):
            raise BadTable(f"{place}: this is the other kind of table; give it with {option}")
        raise BadTable(f"{place}: no column {', '.join(missing)}; the header needs {','.join(columns)}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise BadTable(f"{place}: column {', '.join(twice)} stands twice; name each column once")


def _transition(place: str, cells: _Cells) -> Row:
    level = cells.text("level")
    if level not in (ALL_LEVELS, LEAF, NO_LEVEL) and levels_of(level) is None:
        cells.bad(
            f"level {level!r} is none", "write 4K, 2M, 1G, 512G, a range as 4K..1G or 2M..root, leaf, * or -"
        )
    state = cells.one_of("entry_state_before", (ANY, *SeptState.__members__))
    after = cells.one_of("entry_state_after", (UNCHANGED, *SeptState.__members__))
    order = cells.text("check_order", NO_CONDITION)
    if order != NO_CONDITION and not re.fullmatch(r"\d+(\.\d+)?", order):
        cells.bad(f"check_order {order!r} is no number", "write a number: rows are tried in its order")
    statuses = (
        *Status.__members__,
        *TDEXITS,
        RESUMED,
        SHUTDOWN,
        *(f"ENTRY:{name}" for name in ENTRY_STATUSES),
    )
    return Row(
        place,
        _call(cells),
        level,
        None if state == ANY else SeptState[state],
        tuple(_terms(cells)),
        cells.one_of("status", statuses),
        _operand(cells),
        None if after == UNCHANGED else SeptState[after],
        cells.text("outputs", ""),  # a table without that column says nothing of them
        cells.text("note", ""),
        order,
    )


def _operand(cells: _Cells) -> str:
    """A word that is known; one put together of several, as `R8+vm`, is the judge's to understand."""
    value = cells.text("operand")
    return value if COMPOSITE.search(value) else cells.one_of("operand", tuple(OPERAND_WORDS))


def _call(cells: _Cells) -> str:
    name = cells.text("seamcall")
    if not CALL.fullmatch(name):
        cells.bad(f"seamcall {name!r} is no name of a leaf", "write it as TDH.MEM.PAGE.AUG")
    return name


def _terms(cells: _Cells) -> Iterator[Term]:
    text = cells.text("extra_condition", NO_CONDITION)
    if text == NO_CONDITION:
        return
    seen = set()
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        match = TERM.fullmatch(part)
        if match is None:
            cells.bad(f"condition {part!r} cannot be read", "write key=value, joined by `;`")
        term = Term(match["key"], match["op"], tuple(value.strip() for value in match["values"].split("|")))
        if not all(term.values):
            cells.bad(f"condition {part!r} has an empty alternative", "write key=a|b")
        if term in seen:
            cells.bad(f"condition {part!r} stands twice", "write it once")
        seen.add(term)
        yield term


def _lock(place: str, cells: _Cells) -> LockRow:
    order = cells.text("order")
    if not order.isdigit():
        cells.bad(f"order {order!r} is no number", "locks are numbered from 1 in the order they are taken")
    error = cells.text("error_on_busy", "-")
    status, _, operand = error.partition("|")
    known = (
        status == "-"
        or status in Status.__members__
        or status.removeprefix("GPA_ENTRY_STATUS_") in ENTRY_STATUSES
    )
    if not known or (operand and operand not in OPERAND_WORDS):
        cells.bad(
            f"error_on_busy {error!r} is unknown",
            "write a status and an operand: TDX_OPERAND_BUSY|RCX; `-` for none",
        )
    return LockRow(
        place,
        _call(cells),
        cells.text("object"),
        cells.one_of("mode", MODES),
        int(order),
        error,
        cells.text("kind", "-"),
        cells.text("held_until", "return"),
        cells.text("note", ""),
    )
