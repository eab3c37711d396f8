"""Which steps of an execution matter for a finding, so that a person can read them.

A step matters if it touches a word that two threads touched and one of them changed, if it changes a word that the finding
speaks of, if its thread had to wait there, or if it takes or gives back a lock that several threads take around such a step.
Of accesses to one word by one thread, with nobody else in between, the first stands for all.
Left out: accesses that matter only through data flow inside one thread, and the TDX module's own locks unless they were busy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scenarios.film import Step

_HEX = re.compile(r"0x[0-9a-f]+")
_TAKES = ("read-lock", "write-lock")


@dataclass(slots=True)
class Line:
    """A step that matters, or several of one thread on one word that are told as one: from `first` to `last`."""

    first: Step
    last: Step
    times: int = 1

    @property
    def step(self) -> Step:
        """The step that names it: the last that changed the word, else the first."""
        return self.last if self.last.changed else self.first

    @property
    def is_lock(self) -> bool:
        """Whether it takes or gives back a lock."""
        return self.first.is_lock


def lines_of(steps: Sequence[Step], finding: dict[str, Any]) -> list[Line]:
    """The lines that matter, in the order of the execution."""
    shared = _conflicting(steps)
    subjects = subjects_of(steps, finding)
    locks = _shared_locks(steps)
    chosen = [
        step
        for step in steps
        if step.blocked
        or (not step.happened and step is steps[-1])  # the finding was made in it
        or (step.is_lock and step.target in locks)
        or (step.target in shared and (step.reads or step.writes) and not step.is_tried_lock)
        or (step.is_tried_lock and step.before and step.target in shared and step.verb.startswith("try"))
        or (step.target in subjects and step.changed and not step.is_tried_lock)
    ]
    return _without_empty_sections(_told_as_one(chosen))


def subjects_of(steps: Sequence[Step], finding: dict[str, Any]) -> set[str]:
    """The words that the finding speaks of: by name, or by a frame number that is in their name."""
    text = " ".join([finding["title"], *finding["details"].values()])
    numbers = set()
    for name, value in finding["details"].items():
        for number in _HEX.findall(value):
            numbers.add(f"{int(number, 16) >> 12:#x}" if "gpa" in name else number)
    words = {step.target for step in steps if step.is_word}
    return {word for word in words if word in text or numbers & set(_frames(word))}


def _frames(word: str) -> Iterable[str]:
    """The frame numbers in a word's name; `0x0` names too many."""
    return (number for number in _HEX.findall(word) if number != "0x0")


def last_changes(steps: Sequence[Step], finding: dict[str, Any]) -> list[Step]:
    """The last change of each word that the finding speaks of, in order."""
    subjects = subjects_of(steps, finding)
    last = {
        step.target: step
        for step in steps
        if step.target in subjects and step.changed and not step.is_tried_lock
    }
    return sorted(last.values(), key=lambda step: step.number)


def _conflicting(steps: Sequence[Step]) -> set[str]:
    touched: dict[str, set[str]] = {}
    changed: set[str] = set()
    for step in steps:
        if step.is_lock or not (step.reads or step.writes):
            continue
        touched.setdefault(step.target, set()).add(step.thread)
        if step.changed or (step.writes and not step.is_word):
            changed.add(step.target)
    return {target for target, threads in touched.items() if len(threads) > 1 and target in changed}


def _shared_locks(steps: Sequence[Step]) -> set[str]:
    """Locks that one thread took exclusively and another one took too; read sections that somebody waited for."""
    takers: dict[str, set[str]] = {}
    exclusive: set[str] = set()
    for step in steps:
        if not step.is_lock:
            continue
        takers.setdefault(step.target, set()).add(step.thread)
        if step.verb in ("write-lock", "synchronize"):
            exclusive.add(step.target)
    return {name for name, threads in takers.items() if len(threads) > 1 and name in exclusive}


def _told_as_one(steps: Sequence[Step]) -> list[Line]:
    """A read stands where it was first made, a change where it was last made; nothing is moved past a lock or a switch."""
    lines: list[Line] = []
    open_lines: dict[str, Line] = {}
    thread = ""
    for step in steps:
        if step.thread != thread or step.is_lock:
            open_lines.clear()
            thread = step.thread
        line = open_lines.get(step.target)
        if line is None or not step.happened:
            line = Line(step, step)
            lines.append(line)
            if step.is_word:
                open_lines[step.target] = line
            continue
        line.times += 1
        if step.changed:
            line.last = step
            lines = [other for other in lines if other is not line] + [line]
    return lines


def _without_empty_sections(lines: list[Line]) -> list[Line]:
    """Without pairs of lock and unlock that have no other line of their thread in between."""
    while True:
        dropped = _empty_section(lines)
        if not dropped:
            return lines
        lines = [line for line in lines if not any(line is gone for gone in dropped)]


def _empty_section(lines: Sequence[Line]) -> list[Line]:
    latest: dict[str, Line] = {}
    for line in lines:
        before = latest.get(line.first.thread)
        if (
            before is not None
            and before.is_lock
            and line.is_lock
            and before.first.target == line.first.target
            and before.first.verb in (*_TAKES, "rcu enter")
            and line.first.verb in ("unlock", "rcu leave")
            and not before.first.blocked
        ):
            return [before, line]
        latest[line.first.thread] = line
    return []
