"""What `dpor` knows of one execution: its steps, what happens before what, and which steps race.

Threads, footprints and gates are small numbers, which mean the same in all executions that share a prefix. A set of steps
is an int, one bit a step: an execution has a few hundred, and most of what is asked is whether two sets meet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.dependence import Touch, conflict

if TYPE_CHECKING:
    from sim.strategies.dpor_tree import Branch

NOWHERE = -1
"""The gate of a step that plays a part at none."""


class Footprints:
    """All sets of touches seen so far, by number, and which are in conflict."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Touch, ...], int] = {}
        self._touches: list[tuple[Touch, ...]] = []
        self.conflicts: list[int] = []
        """For each footprint the set of those it conflicts with."""
        self.rivals: list[list[int]] = []
        """The same as a list."""

    def number(self, touches: tuple[Touch, ...]) -> int:
        """The number of a footprint."""
        known = self._numbers.get(touches)
        if known is not None:
            return known
        number = self._numbers[touches] = len(self._touches)
        self._touches.append(touches)
        self.rivals.append([])
        self.conflicts.append(0)
        for other, other_touches in enumerate(self._touches):
            if conflict(touches, other_touches):
                self.conflicts[number] |= 1 << other
                self.rivals[number].append(other)
                if other != number:
                    self.conflicts[other] |= 1 << number
                    self.rivals[other].append(number)
        return number

    def touches(self, number: int) -> tuple[Touch, ...]:
        """The footprint of that number."""
        return self._touches[number]


class Wait(NamedTuple):
    """A step that could not happen before the word `cell` satisfied `condition` (`dpor:values` only).

    A wait for several words has no name here; each of their values might have been right.
    """

    cell: str
    condition: Callable[[Any], bool]


class Step:
    """A step of the current execution, and the state of the search just before it."""

    __slots__ = (
        "before",
        "branches",
        "closes",
        "disarms",
        "enables",
        "exclusive",
        "fatal",
        "gate",
        "opens",
        "pick",
        "print_",
        "sleep",
        "thread",
        "wait",
        "waits",
        "was",
    )

    def __init__(self, pick: int, sleep: dict[int, int], branches: list[Branch]) -> None:
        self.pick = pick
        """How many picks came before it."""
        self.sleep = sleep
        """Threads whose next step has been explored from here, with its footprint."""
        self.branches = branches
        """What is still to be explored from here."""
        self.thread = -1
        self.begin()

    def begin(self) -> None:
        """Forget the step that was made here before."""
        self.print_ = 0
        """What it touched."""
        self.before = 0
        """The steps that happen before it."""
        self.enables: list[tuple[int, int]] = []
        """Threads it made ready, each with the thread that did it."""
        self.disarms: list[tuple[int, int]] = []
        """Bounded waits that it answered: thread, and footprint of the time-out."""
        self.gate = NOWHERE
        """The gate it plays a part at; a joined thread is the gate -2 - thread."""
        self.waits = self.opens = self.closes = self.exclusive = False
        self.fatal = False
        """Whether it made the finding that ended the execution."""
        self.wait: Wait | None = None
        self.was: tuple[str, Any] | None = None
        """The word it wrote, and its value before."""


class Race(NamedTuple):
    """Two steps in conflict with nothing in between: `early`, and the next one of `thread`.

    `print_` is what the late step touched, or would touch, `before` the steps that happen before it.
    """

    early: int
    thread: int
    print_: int
    before: int


class Section:
    """A section that was opened at a gate: `upto` are the steps up to its end, once it is closed."""

    __slots__ = ("depth", "exclusive", "thread", "upto")

    def __init__(self, thread: int, *, exclusive: bool) -> None:
        self.thread = thread
        self.exclusive = exclusive
        self.upto = 0
        self.depth = 1


class Order:
    """What happens before what in an execution, and the races whose late step is number `first` or later."""

    def __init__(self, steps: list[Step], prints: Footprints, first: int = 0) -> None:
        self.before: list[int] = []
        """For each step, those that happen before it."""
        self.races: list[Race] = []
        self._steps = steps
        self._prints = prints
        self._next: dict[int, int] = {}
        self._last: dict[int, Step] = {}
        self._waiting: dict[int, list[Section]] = {}
        self._joining: dict[int, int] = {}
        self._sections: dict[int, list[Section]] = {}
        self._where: dict[int, int] = {}
        self._rest: dict[int, list[int]] = {}
        for i, step in enumerate(steps):
            self._add(i, step, fresh=i >= first)

    def _add(self, i: int, step: Step, *, fresh: bool) -> None:
        thread = step.thread
        if fresh and step.wait is not None:
            self.races += self.race_of_wait(thread, step.print_, step.wait)
            step.before = self._race([], thread, step.print_)
        elif fresh:
            step.before = self._race(self.races, thread, step.print_)
        before = step.before
        self.before.append(before)
        bit = 1 << i
        self._where[step.print_] = self._where.get(step.print_, 0) | bit
        self._next[thread] = before | bit
        self._last[thread] = step
        self._waiting.pop(thread, None)
        self._joining.pop(thread, None)
        if step.gate != NOWHERE:
            self._pass_gate(step, before | bit)
        for enabled, by in step.enables:
            self._next[enabled] = self._next.get(enabled, 0) | self._base(by) | self._decisive(enabled)
        if fresh:
            for disarmed, print_ in step.disarms:
                self.races.append(Race(i, disarmed, print_, 0))

    def _race(self, races: list[Race], thread: int, print_: int) -> int:
        """Note the races of a step of `thread`; what happens before it."""
        before = self._base(thread)
        where = self._where
        rivals = 0
        for other in self._prints.rivals[print_]:
            rivals |= where.get(other, 0)
        rivals &= ~before
        found = []
        while rivals:
            early = rivals.bit_length() - 1
            found.append(early)
            before |= self.before[early] | 1 << early
            rivals &= ~before
        races += [Race(early, thread, print_, before) for early in found]
        return before

    def foresee(self, thread: int, print_: int) -> list[Race]:
        """Races of a step that has not happened."""
        races: list[Race] = []
        self._race(races, thread, print_)
        return races

    def race_of_wait(self, thread: int, print_: int, wait: Wait) -> list[Race]:
        """Races of a step that waits for a word: with every write before which the word was right, not only the last."""
        before = self._base(thread)
        races = []
        for early, step in enumerate(self._steps[: len(self.before)]):
            if before >> early & 1 or not self._prints.conflicts[print_] >> step.print_ & 1:
                continue
            if step.was is None or step.was[0] != wait.cell or wait.condition(step.was[1]):
                races.append(Race(early, thread, print_, before))
        return races

    def _base(self, thread: int) -> int:
        """What happens before the next step of `thread`, whatever it touches."""
        before = self._next.get(thread, 0)
        if thread in self._waiting:
            for section in self._waiting[thread]:
                before |= section.upto
        joined = self._joining.get(thread)
        return before if joined is None else before | self._base(joined)

    def _decisive(self, thread: int) -> int:
        """What had to happen for a wait to end beside the step that ended it: all that changed what it waits for."""
        arrival = self._last.get(thread)
        if arrival is None or arrival.gate != NOWHERE:
            return 0
        steps = 0
        for other in self._prints.rivals[arrival.print_]:
            steps |= self._where.get(other, 0)
        return self._closed(steps)

    def _closed(self, steps: int) -> int:
        """The steps and all that happen before them."""
        closed = steps
        while steps:
            last = steps.bit_length() - 1
            closed |= self.before[last]
            steps &= ~(1 << last | self.before[last])
        return closed

    def _pass_gate(self, step: Step, upto: int) -> None:
        thread = step.thread
        if step.gate < NOWHERE:
            self._joining[thread] = -2 - step.gate
            return
        sections = self._sections.setdefault(step.gate, [])
        if step.closes:
            for section in reversed(sections):
                if section.thread == thread and section.depth:
                    section.depth -= 1
                    if not section.depth:
                        section.upto = upto
                    break
            return
        if step.waits:
            self._waiting[thread] = [s for s in sections if step.exclusive or s.exclusive]
        if step.opens:
            for section in sections:
                if section.thread == thread and section.depth:
                    section.depth += 1
                    return
            if step.waits and step.exclusive:
                # Whoever waits for this one waits for those before; of these only the open ones are still to be closed.
                sections[:] = [section for section in sections if section.depth]
            sections.append(Section(thread, exclusive=step.exclusive))

    def independent_of(self, early: int) -> list[int]:
        """The steps after `early` that do not happen after it."""
        rest = self._rest.get(early)
        if rest is None:
            before = self.before
            rest = self._rest[early] = [
                i for i in range(early + 1, len(before)) if not before[i] >> early & 1
            ]
        return rest
