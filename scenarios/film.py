"""A film: one execution, replayed by its schedule, with every step as data for those who show or compare executions.

Left out: what a step means for a finding (`scenarios.columns` chooses), and time (a hunt's world has none).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from scenarios.campaign.case import Opened
from scenarios.campaign.step_ids import step_ids
from sim import Access, Cell, Kernel, Lock, Thread
from sim.explore import Recording
from sim.rcu import Rcu
from sim.recorder import plain
from sim.thread import short_path
from tdx.module.sharex import Sharex, SharexHp

LOCK_BIT = ("lock entry", "unlock entry", "guest locks entry")
"""What only changes the lock bits of an S-EPT entry."""


HELPERS = ("module/locks.py", "mmu/tdp_iter.py")
"""Files of the model that are no functions of the kernel or the TDX module by themselves."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the model that a thread stands at. `ids` are the steps of the reference that the line is."""

    file: str
    line: int
    function: str
    ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


@dataclass(slots=True)
class Step:
    """One access. `before` and `after` are the word's values, None where the target is no word; `got` is what was returned.

    `held` are the locks and read sections that the thread was in, `stack` where it stood, innermost first.
    """

    number: int
    thread: str
    verb: str
    target: str
    stack: tuple[Place, ...]
    held: tuple[str, ...]
    reads: bool
    writes: bool
    is_word: bool
    is_lock: bool
    is_tried_lock: bool = False
    before: Any = None
    after: Any = None
    got: Any = None
    happened: bool = False
    blocked: bool = False

    @property
    def ids(self) -> tuple[str, ...]:
        """The steps of the reference: of the innermost line that names some."""
        return next((place.ids for place in self.stack if place.ids), ())

    @property
    def function(self) -> str:
        """The function of the kernel or of the TDX module: the innermost that is no helper of the model's own."""
        names = [place.function for place in self.stack if place.file not in HELPERS]
        return next((name for name in names if not name.startswith("_")), names[0] if names else "end")

    @property
    def changed(self) -> bool:
        """Whether the word is another one now."""
        return self.is_word and self.happened and plain(self.before) != plain(self.after)


@dataclass(slots=True)
class Film:
    """The steps of one execution; `recording` has its kernel, its schedule as text and where that did not fit."""

    recording: Recording
    steps: list[Step] = field(default_factory=list)


def film(opened: Opened, schedule: str, *, seed: int) -> Film:
    """Make an execution again and keep its steps.

    Raises: BadSchedule: the schedule cannot be read.
    """
    camera = _Camera()

    def world(kernel: Kernel) -> None:
        opened.world(kernel)
        kernel.check(camera.after)

    recording = opened.record(schedule, seed=seed, world=world, before=camera.before)
    return Film(recording, camera.steps)


class _Camera:
    """Sees every step twice: before it happens, where the old value still stands, and after."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._domains: dict[str, Lock | Rcu] = {}

    def before(self, kernel: Kernel, thread: Thread) -> None:
        """The step is about to happen."""
        access = thread.pending
        assert access is not None, "a candidate has an access"
        target = access.target
        is_lock = isinstance(target, Lock | Rcu)
        if is_lock:
            self._domains.setdefault(str(target), target)
        verb = repr(access).removesuffix(f" {target}")
        self.steps.append(
            Step(
                number=kernel.steps,
                thread=thread.name,
                verb=verb,
                target=str(target),
                stack=stack_of(thread),
                held=self._held(thread),
                reads=access.reads,
                writes=access.writes,
                is_word=isinstance(target, Cell),
                is_lock=is_lock,
                is_tried_lock=isinstance(target, Sharex | SharexHp) or verb in LOCK_BIT,
                before=target.peek() if isinstance(target, Cell) else None,
            )
        )

    def after(self, _kernel: Kernel, _thread: Thread, access: Access) -> None:
        """The step has happened, or its thread waits."""
        step = self.steps[-1]
        step.happened = access.processed
        step.blocked = not access.processed
        if access.processed:
            step.got = access.value
            step.writes = access.wrote
            if step.is_word:
                step.after = access.target.peek()

    def _held(self, thread: Thread) -> tuple[str, ...]:
        held = []
        for name, domain in self._domains.items():
            if isinstance(domain, Lock):
                mode = domain.held_by(thread)
                if mode is not None:
                    held.append(f"{name}({mode})" if domain.by_mode else name)
            elif thread in domain.inside:
                held.append(name)
        return tuple(held)


def stack_of(thread: Thread) -> tuple[Place, ...]:
    """Where a thread stands, innermost first."""
    places = []
    for frame in thread.frames():
        code = frame.f_code
        ids = step_ids(code.co_filename).get(frame.f_lineno, ())
        places.append(Place(short_path(code.co_filename), frame.f_lineno, code.co_name, ids))
    return tuple(reversed(places))


__all__ = ["Film", "Place", "Step", "film", "stack_of"]
