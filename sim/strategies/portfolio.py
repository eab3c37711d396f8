"""`portfolio`: several strategies in turn, because none is best everywhere.

Execution i is made by member i modulo their number, as that member's own execution i // number: what a member learns, it
learns from its own executions, and with the same seed a member's executions are those it would make alone. `Report.hits`
tells which of them found something. The studies agree that the union of a few cheap strategies beats any one of them
(Thomson, Donaldson, Betts, TOPC 2016).

Pitfalls. Each member gets a sixth of the budget, also of what its guarantee needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from sim.estimates import PctBound
from sim.strategies import Strategy, strategy

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread

MEMBERS = ("random", "pos", "surw", "pct:2", "pct:3", "pct:5")


class Portfolio:
    """A rotation."""

    complete_after: ClassVar[int | None] = None

    def __init__(self, seed: int) -> None:
        self.label = MEMBERS[0]
        """Who picks in this execution."""
        self._members: list[Strategy] = [strategy(name, seed) for name in MEMBERS]
        self._member = self._members[0]

    def begin(self, kernel: Kernel, execution: int) -> bool:
        turn, member = divmod(execution, len(MEMBERS))
        self.label = MEMBERS[member]
        self._member = self._members[member]
        return self._member.begin(kernel, turn)

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        return self._member.pick(kernel, candidates)

    def end(self, kernel: Kernel) -> None:
        self._member.end(kernel)

    def claim(self) -> str:
        """What the members claim, those that claim anything."""
        claims = [member.claim() for member in self._members if hasattr(member, "claim")]
        return "; ".join(claims)

    def bounds(self) -> tuple[PctBound, ...]:
        """What its members guarantee, those that do."""
        return tuple(
            bound for member in self._members if hasattr(member, "bounds") for bound in member.bounds()
        )
