"""Vector clocks: who can know of whom.

A thread's clock has its own *time*, which goes up at every release, and what it has *seen*: the latest time of each other
thread whose releases reached it. A *stamp* is a clock as it was at a release; who acquires it has seen all that it saw. An
access at time n of thread u *happened before* what thread t does now exactly if t has seen u at n or later.

Stamps are taken at every marked write and joined at most synchronisations in vain, so both are quick: a stamp shares the
`seen` of its clock, which is copied at the next join that adds something; and a stamp whose time was seen already adds
nothing, for whoever saw the release saw what the releaser had seen.
Source: Fidge, Mattern; the epochs (one pair instead of a vector) are FastTrack's (Flanagan, Freund, PLDI 2009).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Stamp(NamedTuple):
    """A thread's clock at one release; `origin` is whatever a report should say about the release."""

    thread: int
    time: int
    seen: Mapping[int, int]
    origin: Any = None


class Clock:
    """The clock of thread `index`.

    Attributes:
        time: of the thread itself, from 1; goes up at each stamp.
        seen: other threads' times that happened before now.
        via: for each of them, the origin of the release by which it became known.
    """

    __slots__ = ("_shared", "index", "seen", "time", "via")

    def __init__(self, index: int) -> None:
        self.index = index
        self.time = 1
        self.seen: dict[int, int] = {}
        self.via: dict[int, Any] = {}
        self._shared = False

    def stamp(self, origin: Any = None) -> Stamp:
        """Release: what acquires the stamp is ordered after everything the thread has done so far."""
        time = self.time
        self.time = time + 1
        self._shared = True
        return Stamp(self.index, time, self.seen, origin)

    def join(self, stamp: Stamp) -> None:
        """Acquire: see what the releaser had done and seen."""
        index, time, theirs, origin = stamp
        own = self.index
        seen = self.seen
        if index == own or seen.get(index, 0) >= time:
            return
        if self._shared:
            seen = self.seen = seen.copy()
            self._shared = False
        via = self.via
        seen[index] = time
        via[index] = origin
        for other, when in theirs.items():
            if other != own and seen.get(other, 0) < when:
                seen[other] = when
                via[other] = origin

    def knows(self, index: int, time: int) -> bool:
        """Whether what thread `index` did at `time` happened before now."""
        return index == self.index or self.seen.get(index, 0) >= time

    def vector(self) -> dict[int, int]:
        """Every thread's time as this one knows it, its own included."""
        return {**self.seen, self.index: self.time}
