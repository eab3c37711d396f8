"""Findings: one record for all checkers."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

KINDS = frozenset(
    [
        "stale-tlb",
        "stale-spte",
        "uaf-table",
        "uaf-page",
        "uaf-object",
        "lost-bit",
        "overwrite",
        "wrong-level",
        "diverged",
        "kvm-bug",
        "td-dead",
        "content-lost",
        "refcount",
        "leak",
        "lock-rule",
        "cache-alias",
        "phase",
        "data-race",
        "deadlock",
        "livelock",
        "starvation",
        "unmet",
    ]
)
"""Every kind of DESIGN.md section 4."""


class Broken:
    """What a property returns when it does not hold: the values that show it."""

    __slots__ = ("details",)

    def __init__(self, **details: Any) -> None:
        self.details = details


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that must not happen, happened.

    `where` has one entry a thread: its stack, innermost first, as `file:line function`. `steps` are filled in by a second,
    recorded execution of the same schedule; `schedule` replays it (see `sim.schedule`).
    """

    kind: str
    title: str
    threads: tuple[str, ...] = ()
    where: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    schedule: str = ""
    seed: int = 0
    step: int = 0
    now_ns: int = 0
    details: dict[str, str] = field(default_factory=dict)
    replay: str = ""
    count: int = 1

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"no such kind of finding: {self.kind}"

    @property
    def fingerprint(self) -> str:
        """The same for the same bug found by another schedule: kind, title and the place of the first thread."""
        place = self.where[0].split(" < ")[0] if self.where else ""
        return blake2b(f"{self.kind}|{self.title}|{place}".encode(), digest_size=8).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Plain data, in a fixed order of keys."""
        return {name: getattr(self, name) for name in self.__slots__} | {"fingerprint": self.fingerprint}
