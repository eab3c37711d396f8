"""What is told of a line: one record for the screen and for JSON.

A line is a call that returned, a call that began or went on for some accesses, an instruction of a guest, or an answer in text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from scenarios.seamcall.observe import Change


class Entry(NamedTuple):
    """The S-EPT entry that a call was about: which, and what it was before and after."""

    place: str
    before: str
    after: str

    @property
    def state(self) -> str:
        """The state after, without what it names."""
        return self.after.partition(",")[0].partition(" ")[0]


class Tried(NamedTuple):
    """A lock that a call tried to take."""

    name: str
    mode: str
    won: bool


class Seen(NamedTuple):
    """An access: its number within the call, what was done to which word, the word before and after."""

    number: int
    verb: str
    word: str
    before: str
    after: str


@dataclass
class Report:
    """What one line did. `status` is "" while the call has not returned; `returned` of TDH.VP.ENTER comes with the guest's exit."""

    line: str
    who: str = ""
    call: str = ""
    operands: list[tuple[str, str]] = field(default_factory=list)
    registers: dict[str, int] = field(default_factory=dict)
    status: str = ""
    rax: int | None = None
    outputs: dict[str, int] = field(default_factory=dict)
    entry: Entry | None = None
    changes: list[Change] = field(default_factory=list)
    locks: list[Tried] = field(default_factory=list)
    accesses: int = 0
    seen: list[Seen] = field(default_factory=list)
    """Accesses that are to be shown; empty for a call made in one go."""
    notes: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    """The answer, for a line that is no call."""
    watched: bool = True
    """Whether the state was compared; not for the calls of the builder."""
    brief: bool = False
    """One of many alike: the status is enough."""

    def as_json(self) -> dict[str, Any]:
        """The record in JSON's own types; what is empty is left out."""
        told: dict[str, Any] = {
            "line": self.line,
            "who": self.who,
            "call": self.call,
            "operands": dict(self.operands),
            "registers": {name: f"{word:#x}" for name, word in self.registers.items()},
            "status": self.status,
            "rax": f"{self.rax:#x}" if self.rax is not None else "",
            "outputs": {name: f"{word:#x}" for name, word in self.outputs.items()},
            "entry": self.entry._asdict() if self.entry is not None else {},
            "changes": [change._asdict() for change in self.changes],
            "locks": [lock._asdict() for lock in self.locks],
            "accesses": self.accesses,
            "steps": [step._asdict() for step in self.seen],
            "notes": self.notes,
            "text": self.text,
        }
        return {name: value for name, value in told.items() if value or (name == "changes" and self.status)}
