"""What is said of a pair beforehand: by the matrix of reference 4.4, and by the table of locks.

The matrix speaks of groups of calls, and names the error of the loser; the table lists what each call takes, in which mode, and what it
returns if that is taken. From the table follows what a call may lose to another: whatever both take in modes that exclude each
other. What was seen is held to both: anything that the table does not allow is a disagreement, anything that the matrix does not name
is said, and so is anything that it promises and nobody has seen.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.pairwise.calls import ENTRY, NEIGHBOUR, PARENT, TO_LEAF, Call

LOCKS = Path(__file__).parents[1] / "conformance" / "tables" / "seamcall_locks.csv"
LISTED_BUSY = "ENTRY:SEPT_ENTRY_BUSY_HOST_PRIORITY"
PREVIOUS_EPOCH = "PREVIOUS_TLB_EPOCH_BUSY"
"""TRACK's answer to a vCPU that is inside: not a lock, so no table of locks has it."""


class Lock(NamedTuple):
    """What a call takes: which word of the world, how, and what it returns if it cannot."""

    word: str
    exclusive: bool
    error: str


@cache
def _rows() -> dict[str, list[dict[str, str]]]:
    by_call: dict[str, list[dict[str, str]]] = {}
    with LOCKS.open(encoding="utf-8", newline="") as table:
        for row in csv.DictReader(table):
            by_call.setdefault(row["seamcall"], []).append(row)
    return by_call


def locks_of(call: Call) -> list[Lock]:
    """What the call takes in the world of a pair, by the table."""
    locks = []
    for row in _rows().get(call.name, ()):
        mode = row["mode"]
        if mode not in ("shared", "exclusive"):
            continue
        error = row["error_on_busy"].removeprefix("TDX_")
        if error.startswith("GPA_ENTRY_STATUS"):
            error = LISTED_BUSY
        locks += [Lock(word, mode == "exclusive", error) for word in _words(call, row["object"])]
    return locks


def _words(call: Call, name: str) -> tuple[str, ...]:
    """The words of the world that an object of the table is, for a call at its place."""
    if name == "SEPT_TREE":
        return ("tree",) if call.group != "E" else ()  # a vCPU without suspects does not look at the tree
    if name == "SEPT_ENTRY":
        return (f"{ENTRY} entry", f"{PARENT} entry") if call.name in TO_LEAF else (f"{call.at} entry",)
    if name.startswith("CHILD_SEPT_ENTRIES"):
        return (f"{ENTRY} entry", f"{NEIGHBOUR} entry") if call.at == PARENT else ("entries below",)
    if name in ("SEPT_PAGE.PAMT", "REMOVED_SEPT_PAGE.PAMT"):
        return ("a page",) if call.at == PARENT else ("a page", "the page below")
    if "L2" in name or name in ("TDVPR.PAMT", "MIGSC"):
        return ()  # no L2 VMs here; each thread has its own vCPU and stream
    if name.endswith(".PAMT") and name != "TDR.PAMT":
        return (
            "a page",
        )  # one thread's new page may be the other's old one: which page it is depends on who was first
    return (name,)


def may_lose(loser: Call, winner: Call) -> frozenset[str]:
    """What `loser` may return because of `winner`, by the table of locks."""
    taken = locks_of(winner)
    return frozenset(
        lock.error
        for lock in locks_of(loser)
        if any(lock.word == other.word and (lock.exclusive or other.exclusive) for other in taken)
    ) | _not_locks(loser, winner)


def _not_locks(loser: Call, winner: Call) -> frozenset[str]:
    if loser.name == "TDH.MEM.TRACK" and (winner.name in ("TDH.VP.ENTER", loser.name) or winner.is_guest):
        return frozenset((PREVIOUS_EPOCH,))
    return frozenset()


def matrix(loser: Call, winner: Call) -> frozenset[str]:
    """What `loser` returns because of `winner`, by reference 4.4; empty if both run, and for what it does not speak of."""
    one, other = loser.group, winner.group
    if "P" in (one, other):
        return frozenset()
    if "T" in (one, other):
        return frozenset() if loser.is_guest or winner.is_guest else frozenset((_tdr(loser),))
    if one in "SXZ" and other in "SXZ" and {one, other} != {"S"}:
        return frozenset() if {one, other} == {"Z"} else frozenset(("OPERAND_BUSY|SEPT_TREE",))
    if "K" in (one, other) and {one, other} <= {"K", "E", "Z"}:
        return frozenset(("OPERAND_BUSY|TD_EPOCH",))
    if one in "SXG" and other in "SXG" and _same_entry(loser, winner):
        return frozenset((LISTED_BUSY if loser.lists else "OPERAND_BUSY|RCX",))
    return frozenset()


def _tdr(call: Call) -> str:
    """Busy on the TDR: the operand that names it."""
    if call.name == "TDH.VP.ENTER":
        return "OPERAND_BUSY|TDR"
    return "OPERAND_BUSY|RCX" if call.name == "TDH.MEM.TRACK" else "OPERAND_BUSY|RDX"


def _same_entry(one: Call, other: Call) -> bool:
    if one.at == other.at:
        return True
    if {one.at, other.at} == {ENTRY, PARENT} and TO_LEAF & {one.name, other.name}:
        return True
    return any(call.name == "TDH.MEM.PAGE.PROMOTE" and call.at == PARENT for call in (one, other))
