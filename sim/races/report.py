"""A race as a finding, and the races that are accepted on purpose."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from sim.findings import Finding
from sim.races.memory import Place, Seen, Side
from sim.thread import short_path


class Benign(NamedTuple):
    """A race that is accepted on purpose: the word's family (see `family`), both functions in any order, and who says so.

    The functions may hold `*`.
    """

    cell: str
    one: str
    other: str
    reason: str

    def covers(self, cell: str, one: str, other: str) -> bool:
        """Whether this is the pair."""
        return cell == self.cell and (
            (fnmatchcase(one, self.one) and fnmatchcase(other, self.other))
            or (fnmatchcase(other, self.one) and fnmatchcase(one, self.other))
        )


def family(name: str) -> str:
    """A word's name without what tells it from its siblings: `vcpu0.mode` is a `vcpu.mode`, `spte[...]` an `spte`."""
    return re.sub(r"\[[^\]]*\]|\d+", "", name)


class Told(NamedTuple):
    """One side of a race, for people."""

    place: str
    verb: str
    thread: str
    function: str
    text: str


def excuse(one: Told, other: Told, cell: str, benign: Iterable[Benign]) -> Benign | None:
    """The entry that accepts this race."""
    kind = family(cell)
    return next((entry for entry in benign if entry.covers(kind, one.function, other.function)), None)


def told(seen: Seen) -> Told:
    """Put an access into words."""
    place = place_text(seen.place)
    verb = repr(seen.access).removesuffix(f" {seen.access.target}")
    locks = ", ".join(lock_text(*lock) for lock in seen.locks) or "no lock"
    text = f"{seen.side.name}: {verb} at {place}, step {seen.step}, holding {locks}"
    return Told(place, verb, seen.side.name, place.rpartition(" ")[2], text)


def lock_text(lock: Any, mode: str) -> str:
    """`mmu_lock (read)`, or only the name of a lock that is held alone."""
    return f"{lock} (read)" if mode == "read" else str(lock)


def race(one: Told, other: Told, cell: str, synced: str, *, seed: int, step: int, now_ns: int) -> Finding:
    """The finding; `one` and `other` in an order that does not depend on the schedule."""
    return Finding(
        kind="data-race",
        title=f"{family(cell)}: {one.verb} in {one.function} and {other.verb} in {other.function} are not ordered",
        threads=(one.thread, other.thread),
        where=(one.place, other.place),
        seed=seed,
        step=step,
        now_ns=now_ns,
        details={"cell": cell, "one": one.text, "other": other.text, "last common sync": synced},
    )


def last_sync(before: Side, now: Side) -> str:
    """By what `now` last learnt of `before`."""
    via = now.via.get(before.index)
    if via is None:
        return f"{now.name} has not synchronised with {before.name}"
    what = via.access
    if isinstance(what, Side):
        what = f"start of {what.name}"
    elif not isinstance(what, str):
        what = repr(what)
    return f"{what} by {via.side.name}, step {via.step}"


def place_text(place: Place) -> str:
    """`file:line function`."""
    if isinstance(place, str):
        return place
    code, instruction = place
    line = next(
        (line for start, end, line in code.co_lines() if start <= instruction < end and line is not None),
        code.co_firstlineno,
    )
    return f"{short_path(code.co_filename)}:{line} {code.co_name}"
