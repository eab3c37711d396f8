"""Traces: one execution of a world again, step by step, with what each step touched and what it waited for.

The tools that explain a finding (`sim.shrink`, `sim.nearest`, `sim.witness`) all run a world again and again under their
own picks. A `Setting` is the world with everything that determines an execution besides the picks. A `Trace` is what one
execution did; its steps know the step that made them possible (the one before of the same thread, or the one that woke
or made the thread) and how long after it they were due.

What happened before what is computed from `sim.dependence`: program order, conflicting touches, wake-ups and, if asked
for, the gates. That is a guess where an access does not say what it touches (a search must then take it as dependent on
everything; here it touches its target): whoever reorders steps by it runs them to make sure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

from sim.access import Cell
from sim.dependence import EVERYTHING, READ, UPDATE, WRITE, Notes, Touch
from sim.explore import World, fill
from sim.kernel import INFINITY, Kernel, Pick
from sim.recorder import plain
from sim.strategies import first_by_time
from sim.strategies.replay import Replay

if TYPE_CHECKING:
    from sim.access import Access
    from sim.findings import Finding
    from sim.thread import Thread


@dataclass(frozen=True, slots=True)
class Setting:
    """A world and what determines its executions besides the picks; the fields are those of `sim.record`."""

    world: World
    seed: int = 0
    window_ns: int = INFINITY
    max_steps: int = 100_000
    races: bool = True

    def execute(
        self,
        pick: Pick | None,
        *,
        stop_at_finding: bool = True,
        arm: Callable[[Kernel], None] | None = None,
    ) -> Kernel:
        """Run the world once; no `pick` is time order. `arm` sees the filled kernel before its first step."""
        kernel = Kernel(
            self.seed,
            window_ns=self.window_ns,
            stop_at_finding=stop_at_finding,
            max_steps=self.max_steps,
        )
        if fill(kernel, self.world, races=self.races):
            if arm is not None:
                arm(kernel)
            kernel.execute(pick)
        return kernel


@dataclass(slots=True)
class Step:
    """One step of a trace.

    Attributes:
        op: its number among its thread's own steps, from 0: what names it in every other execution.
        place: `file:line function` of the yield.
        parent: the number of the step that made it possible; -1 for what the world was built with.
        delay_ns: how long after that step it was due, or after the start of time.
        at_ns: when it happened.
        value: what a read gave, or what the word held and holds (`0 -> 1`), or `waits`; else nothing.
        touches: what it came to touch, see `sim.dependence`.
        gates: the same, for the gates it passed.
    """

    number: int
    thread: str
    op: int
    text: str
    place: str
    parent: int
    delay_ns: int
    at_ns: int
    value: str = ""
    touches: tuple[Touch, ...] = ()
    gates: tuple[Touch, ...] = ()


@dataclass(slots=True)
class Trace:
    """One execution. `steps` is as long as the execution made picks; `schedule` names each of them."""

    kernel: Kernel
    steps: list[Step] = field(default_factory=list)

    @property
    def picks(self) -> list[str]:
        """The thread of each step."""
        return [step.thread for step in self.steps]

    def find(self, thread: str, op: int) -> Step | None:
        """The step of that name, if this execution came so far."""
        return next((step for step in self.steps if step.thread == thread and step.op == op), None)


def trace(
    setting: Setting,
    choose: Pick,
    *,
    stop_at_finding: bool = True,
    arm: Callable[[Kernel], None] | None = None,
) -> Trace:
    """Run the world once under `choose`, with every step looked at."""
    tracer = _Tracer(choose)
    Notes.taken = tracer.notes
    try:
        kernel = setting.execute(tracer, stop_at_finding=stop_at_finding, arm=arm)
    finally:
        Notes.taken = None
    tracer.settle()
    return Trace(kernel, tracer.steps)


class _Tracer:
    """A pick that writes down what it picks."""

    def __init__(self, choose: Pick) -> None:
        self.steps: list[Step] = []
        self.notes: list[Touch] = []
        self._choose = choose
        self._last: Access | None = None
        self._old = ""
        self._ops: Counter[str] = Counter()
        self._filed: dict[int, tuple[int, int, int]] = {}
        """By thread index: its tie, the step that filed it, and how long after that step it is due."""
        self._inside: dict[tuple[str, str], bool] = {}
        """The gates each thread is inside, and whether exclusively."""

    def __call__(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        self.settle()
        before = len(self.steps) - 1
        for thread in kernel._ready or ():
            if thread.index not in self._filed or self._filed[thread.index][0] != thread.tie:
                self._filed[thread.index] = (thread.tie, before, thread.due_ns - kernel._now)
        index = self._choose(kernel, candidates)
        thread = candidates[index]
        access = thread.pending
        assert access is not None
        _, parent, delay_ns = self._filed[thread.index]
        stack = thread.stack()
        name = thread.name
        self.steps.append(
            Step(
                number=before + 1,
                thread=name,
                op=self._ops[name],
                text=repr(access),
                place=stack[-1] if stack else "its end",
                parent=parent,
                delay_ns=delay_ns,
                at_ns=max(kernel._now, thread.due_ns),
                gates=self._gate(name, access),
            )
        )
        self._ops[name] += 1
        self._last = access
        self._old = _word(access)
        return index

    def settle(self) -> None:
        """The last step has happened by now."""
        access = self._last
        if access is not None:
            step = self.steps[-1]
            step.touches = tuple(dict.fromkeys((*footprint(access), *self.notes)))
            step.value = "waits"
            if access.processed:
                changed = isinstance(access.target, Cell) and access.writes and access.wrote
                got = plain(access._value) if access.reads or access._value is not None else ""
                step.value = f"{self._old} -> {_word(access)}" if changed else got
        self._last = None
        self.notes.clear()

    def _gate(self, thread: str, access: Access) -> tuple[Touch, ...]:
        """A gate as a touch: sections that exclude each other conflict, shared ones do not."""
        gate = access.gate()
        if gate is None:
            return ()
        key = f"{gate.target}.gate"
        exclusive = self._inside.pop((thread, key), False) if gate.closes else gate.exclusive
        if gate.opens:
            self._inside[thread, key] = exclusive
        return ((key, WRITE if exclusive else UPDATE),)


def _word(access: Access) -> str:
    """What the word that is accessed holds now."""
    return plain(access.target.peek()) if isinstance(access.target, Cell) else ""


def footprint(access: Access) -> tuple[Touch, ...]:
    """What an access touches, or has touched if it has happened; its target if it does not say."""
    declared = access.touched() if access.processed else access.touches()
    if declared == EVERYTHING:
        return ((str(access.target), WRITE if access.writes else READ),)
    return declared


def happened_before(steps: Sequence[Step], *, gates: bool) -> tuple[list[int], list[list[int]]]:
    """For each step: what happened before it, as a bit mask of step numbers; and its races.

    The races of a step are the earlier conflicting steps of other threads with nothing in between, latest first. With
    `gates`, a section also happens before the next one that it excludes, so that locks no longer race.
    """
    pasts: list[int] = []
    races: list[list[int]] = []
    history: dict[str, list[tuple[int, int]]] = {}
    last: dict[str, int] = {}
    for j, step in enumerate(steps):
        past = 0
        for i in (step.parent, last.get(step.thread, -1)):
            if i >= 0:
                past |= pasts[i] | 1 << i
        touches = step.touches + step.gates if gates else step.touches
        racing = []
        for i in sorted(_conflicting(touches, history), reverse=True):
            if not past >> i & 1:
                racing.append(i)
                past |= pasts[i] | 1 << i
        for key, mode in touches:
            history.setdefault(key, []).append((j, mode))
        last[step.thread] = j
        pasts.append(past)
        races.append(racing)
    return pasts, races


def _conflicting(touches: Sequence[Touch], history: dict[str, list[tuple[int, int]]]) -> set[int]:
    """The earlier steps that are dependent on one with these touches."""
    found: set[int] = set()
    for key, mode in touches:
        found.update(i for i, m in history.get(key, ()) if m != mode or m == WRITE)
    return found


def conflict_key(one: Step, two: Step) -> str:
    """The name of what two dependent steps are dependent on."""
    for key, mode in one.touches:
        for other, other_mode in two.touches:
            if key == other and (mode != other_mode or mode == WRITE):
                return key
    return ""


def shared_keys(steps: Sequence[Step]) -> frozenset[str]:
    """What two threads touch in ways that conflict: the only places where a switch can matter."""
    by_key: dict[str, dict[int, set[str]]] = {}
    for step in steps:
        for key, mode in step.touches + step.gates:
            by_key.setdefault(key, {READ: set(), UPDATE: set(), WRITE: set()})[mode].add(step.thread)
    shared = set()
    for key, threads in by_key.items():
        mixed = sum(bool(names) for names in threads.values()) > 1
        if len(set().union(*threads.values())) > 1 and (threads[WRITE] or mixed):
            shared.add(key.removesuffix(".gate"))
    return frozenset(shared)


def by_schedule(schedule: str) -> Pick:
    """Picks by a schedule's text, as `sim.record` does. Raises: BadSchedule."""
    replay = Replay(schedule)
    begun = False

    def pick(kernel: Kernel, candidates: Sequence[Thread]) -> int:
        nonlocal begun
        if not begun:
            begun = replay.begin(kernel, 0)
        return replay.pick(kernel, candidates)

    return pick


def by_time(_kernel: Kernel, candidates: Sequence[Thread]) -> int:
    """Picks in time order."""
    return first_by_time(candidates)


def spelled(picks: Sequence[str]) -> str:
    """Picks as a schedule's text, every one by name, so that each word but the first is a context switch."""
    runs = [(name, len(list(run))) for name, run in groupby(picks)]
    return " ".join(name if n == 1 else f"{name}*{n}" for name, n in runs)


def same_bug(kernel: Kernel, wanted: Finding) -> Finding | None:
    """The finding of this execution that is the wanted bug, if it was made."""
    return next((found for found in kernel.findings if found.fingerprint == wanted.fingerprint), None)
