"""A report on the screen: the call, its status, then what it changed. Colours only where `click` finds a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import click

from scenarios.seamcall import words
from scenarios.seamcall.observe import Change
from scenarios.seamcall.report import Report, Tried
from tdx.module.status import NULL_PA

LABEL: Final = 8
"""Columns of the first word of a line."""
SUBJECT_MAX: Final = 40
LOCKS_LISTED: Final = 24
"""More locks than this are not listed one by one."""
SHORT: Final = {"shared": "sh", "exclusive": "ex"}


def lines_of(report: Report) -> list[str]:
    """The report as lines, without the line that it answers."""
    return list(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    yield from report.text
    if not report.call:
        return
    operands = "".join(f"  {name}={value}" for name, value in report.operands)
    head = f"{report.who}: {report.call}{operands}"
    if report.brief:
        yield f"{head}  {report.status or 'inside'}"
        return
    if not report.seen or report.status:
        yield head
    yield from words.aligned(report.seen)
    if report.status:
        yield f"  {click.style(report.status, fg=_colour(report.status), bold=True)}"
    for note in report.notes:
        yield f"  {note}"
    if report.status:
        yield from _ended(report)
    else:
        yield from _changes(report)


def _ended(report: Report) -> Iterator[str]:
    """What a call that is over has done."""
    if report.entry is not None:
        _, before, after = report.entry
        change = f"{before}, unchanged" if before == after else f"{before} -> {after}"
        yield f"  {'entry':<{LABEL}}{report.entry.place}: {change}"
    yield from _changes(report)
    if report.watched and not report.changes:
        yield f"  {'state':<{LABEL}}nothing changed"
    outputs = [f"{name}={word:#x}" for name, word in report.outputs.items() if word != NULL_PA]
    if outputs:
        yield f"  {'returns':<{LABEL}}{', '.join(outputs)}"
    if report.locks:
        yield from words.wrapped(f"  {'locks':<{LABEL}}", _locks(report.locks))
    yield f"  {'steps':<{LABEL}}{report.accesses} access{'es' if report.accesses != 1 else ''}"


def _changes(report: Report) -> Iterator[str]:
    own = report.entry.place if report.entry is not None and report.status else ""
    rows = [change for change in report.changes if change.what != "lock" and not _is(change, own)]
    subjects = [_subject(change) for change in rows]
    width = min(max(map(len, subjects), default=0), SUBJECT_MAX)
    for change, subject in zip(rows, subjects, strict=True):
        yield f"  {_label(change):<{LABEL}}{subject:<{width}}  {change.before} -> {change.after}"
    yield from _lock_changes([change for change in report.changes if change.what == "lock"])


def _lock_changes(changes: list[Change]) -> Iterator[str]:
    """Locks that are held, or free, after the call and were not before; those that changed alike together."""
    alike: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        alike.setdefault((change.before, change.after), []).append(change.subject.removesuffix(" lock"))
    for (before, after), names in alike.items():
        yield from words.wrapped(f"  {'lock':<{LABEL}}{before} -> {after}: ", names)


def _is(change: Change, place: str) -> bool:
    """Whether an entry's change is of the entry at that place, whatever TD it names."""
    return change.what == "entry" and change.alike == 1 and bool(place) and change.subject.endswith(place)


def _label(change: Change) -> str:
    return "" if change.what in {"td", "vcpu", "more"} else change.what


def _subject(change: Change) -> str:
    return change.subject if change.alike == 1 else f"{change.subject} x{change.alike}"


def _locks(locks: list[Tried]) -> Iterator[str]:
    """Locks in order; a walk of the PAMT, which takes the larger entries shared on its way, is one."""
    walked = ""
    for n, lock in enumerate(locks[:LOCKS_LISTED]):
        follows = n + 1 < len(locks) and locks[n + 1].name.startswith("PAMT ")
        if lock.won and lock.mode == "shared" and lock.name.startswith(("PAMT 1G", "PAMT 2M")) and follows:
            walked = "walk to "
            continue
        name = lock.name.removesuffix(" lock").replace("PAMT ", f"PAMT {walked}")
        walked = ""
        yield f"{name} {SHORT[lock.mode]}" if lock.won else f"{name} {SHORT[lock.mode]}: BUSY"
    if len(locks) > LOCKS_LISTED:
        yield f"and {len(locks) - LOCKS_LISTED} more"


def _colour(status: str) -> str:
    if status.startswith(("TDX_SUCCESS", "OK")):
        return "green"
    return "yellow" if "BUSY" in status or "INTERRUPTED" in status or not status.startswith("TDX_") else "red"
