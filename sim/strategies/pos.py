"""`pos`: partial order sampling. A random priority for every pending access, drawn anew where a race was just decided.

The candidate with the highest priority goes. Then its thread's next access gets a fresh priority, and so does every pending
access that raced with the one just made, that is, depended on it (`sim.dependence`). Without the second rule whoever loses a
race once has a low priority and loses the next one too. Any given partial order is sampled with a probability that depends
on its races and not on the length of the program (Yuan, Yang, Gu, CAV 2018). There is no parameter and nothing is learnt:
execution i can be made alone.

Pitfalls. No guarantee for a given bug. An access that waits in line for a lock has happened; the line itself is what is then
raced for. An access that does not say what it touches races with all others: harmless, draws too many.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random as Generator
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from sim.dependence import ALL, READ, UPDATE, WRITE, Touch
from sim.streams import Streams

if TYPE_CHECKING:
    from sim.access import Access
    from sim.kernel import Kernel
    from sim.thread import Thread


class Footprint(NamedTuple):
    """What an access touches, as sets of bits: one bit for every key and mode.

    Two accesses are dependent if one's `does` meets the other's `minds`; `sim.dependence.conflict` says the same, slower.
    """

    does: int
    minds: int


class _Footprints(dict[tuple[Touch, ...], Footprint]):
    """Footprints by touches, each worked out once."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[str, int] = {}

    def __missing__(self, touches: tuple[Touch, ...]) -> Footprint:
        does = minds = 0
        for key, mode in touches:
            if key == ALL:
                does = minds = -1
                break
            at = 3 * self._keys.setdefault(key, len(self._keys))
            does |= 1 << at + mode
            minds |= sum(1 << at + other for other in (READ, UPDATE, WRITE) if other != mode or mode == WRITE)
        footprint = self[touches] = Footprint(does, minds)
        return footprint


class _Drawn:
    """The pending access of a thread that a priority in [0, 1) was drawn for."""

    __slots__ = ("access", "minds", "priority")

    def __init__(self) -> None:
        self.access: Access | None = None
        self.minds = 0
        self.priority = 0.0


class Pos:
    """One priority an access."""

    complete_after: ClassVar[int | None] = None

    def __init__(self, seed: int) -> None:
        self._streams = Streams(seed)
        self._random = Generator(0).random
        self._footprints = _Footprints()
        self._drawn: list[_Drawn] = []
        """By thread index."""
        self._last: Access | None = None
        """The access of the step before this one."""

    def begin(self, kernel: Kernel, execution: int) -> bool:
        # random() of a Generator seeded with an int is the same on every Python.
        self._random = Generator(self._streams.stream(f"pos.{execution}").bits64()).random
        self._drawn = []
        self._last = None
        return True

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        drawn = self._drawn
        while len(drawn) < len(kernel.threads):
            drawn.append(_Drawn())
        does = 0 if self._last is None else self._footprints[self._last.touched()].does
        best, highest = 0, -1.0
        for i, thread in enumerate(candidates):
            entry = drawn[thread.index]
            if entry.access is not thread.pending:
                entry.access = access = thread.pending
                entry.minds = self._footprints[access.touches()].minds  # type: ignore[union-attr]
                entry.priority = self._random()
            elif does & entry.minds:
                entry.priority = self._random()
            if entry.priority > highest:
                best, highest = i, entry.priority
        self._last = candidates[best].pending
        return best

    def end(self, kernel: Kernel) -> None:
        self._last = None
