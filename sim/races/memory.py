"""What the detector remembers: of threads, of words, and of the objects that threads meet at.

Two marked accesses never race (KCSAN's rule), so the last write of a word is not enough. A word keeps its plain accesses,
the latest one a thread and place, and its marked ones, the latest one a thread. A plain write makes everything before it
that it is ordered after forgotten, for whatever races with that races with the write as well; this is FastTrack's epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any, NamedTuple

from sim.clocks import Clock, Stamp

Place = tuple[CodeType, int] | str
"""Where a thread stood: code and instruction, or `file:line function` once it is text."""


class Side(Clock):
    """A thread as the detector sees it.

    Attributes:
        locks: what it holds with the mode, in order of acquisition.
        wake: what its blocked access takes when it is woken, told who wakes it.
        barrier: its clock at its last full barrier, which its later marked stores publish.
        unordered: by thread, the latest release that a marked load of its own has seen: the next full barrier takes it.
    """

    __slots__ = ("barrier", "locks", "name", "unordered", "wake")

    def __init__(self, index: int, name: str) -> None:
        super().__init__(index)
        self.name = name
        self.locks: tuple[tuple[Any, str], ...] = ()
        self.wake: Callable[[Side], None] | None = None
        self.barrier: Stamp | None = None
        self.unordered: dict[int, Stamp] = {}

    def join_all(self, stamps: Iterable[Stamp]) -> None:
        """See what all of them had done."""
        for stamp in stamps:
            self.join(stamp)


class Seen(NamedTuple):
    """One access, remembered."""

    time: int
    side: Side
    access: Any
    place: Place
    locks: tuple[tuple[Any, str], ...]
    step: int


class Origin(NamedTuple):
    """A release that is no access to a word: what it was, as an access, as text, or as the thread that it started."""

    access: Any
    side: Side
    step: int


class Word:
    """What is known of a cell.

    Attributes:
        stamp: what an acquire takes that reads the word now: of the last write, if that was a release or came after a full
            barrier. A marked or plain store breaks the chain, as in the kernel's memory model (no release sequences).
    """

    __slots__ = ("marked_reads", "marked_writes", "plain_reads", "plain_writes", "stamp")

    def __init__(self) -> None:
        self.plain_writes: dict[Any, Seen] = {}
        self.plain_reads: dict[Any, Seen] = {}
        self.marked_writes: dict[int, Seen] = {}
        self.marked_reads: dict[int, Seen] = {}
        self.stamp: Stamp | None = None


class Gate:
    """What is known of an object that is no word.

    Attributes:
        last: a lock's last writer, or the last start of a grace period by each thread that started one.
        all: the releases of a lock's readers since its last writer, or the ends of read sections.
        given: what was given to it and not taken yet (signals, queues, pCPUs).
        inside: the depth of the read sections that are open.
        graces: grace periods that wait: for whom, and the ends of sections seen so far.
    """

    __slots__ = ("all", "given", "graces", "inside", "last")

    def __init__(self) -> None:
        self.last: dict[int, Stamp] = {}
        self.all: dict[int, Stamp] = {}
        self.given: dict[int, Stamp] = {}
        self.inside: dict[int, int] = {}
        self.graces: list[tuple[set[int], dict[int, Stamp]]] = []


def place_of(source: Any) -> Place:
    """Where the thread stands, quickly: the innermost generator's code and instruction. Text from a log stays."""
    if source.__class__ is str:
        return str(source)
    steps = source._generator
    try:
        while (inner := steps.gi_yieldfrom) is not None:
            steps = inner
    except AttributeError:  # an iterator that is no generator: it has no place
        return "?:0 ?"
    frame = steps.gi_frame
    return (frame.f_code, frame.f_lasti)


def place_key(place: Place) -> Any:
    """The same for the same place, and cheap: a code object's own hash reads all of its constants."""
    return place if place.__class__ is str else (id(place[0]), place[1])
