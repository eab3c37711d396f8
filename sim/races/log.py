"""Steps as a log tells them: what it must say so that the same races can be found again, and how it is read back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.races.detector import Detector
from sim.races.memory import place_of
from sim.races.ops import NOTHING, op_of
from sim.races.report import place_text
from sim.syncs import STARTS, WAKES

if TYPE_CHECKING:
    from sim.access import Access
    from sim.findings import Finding
    from sim.kernel import Kernel
    from sim.thread import Thread

LoggedSync = tuple[int, str, int, int, str]
"""A `sim.syncs.Sync`: its step, how, the number of the thread that did it, number and name of the thread or object concerned."""


class Facts(NamedTuple):
    """What a log must say of a step beside its text.

    `op` is one of `ops.OPS`; `word` numbers the target (of a join, the thread); `tid` numbers the thread; `done` is False if
    the thread was blocked; `at` is where it stood; `syncs` is what plain calls ordered since the step before.
    """

    op: str
    word: int
    tid: int
    done: bool
    at: str
    syncs: list[LoggedSync]


class FactTeller:
    """Tells the facts of each step of a kernel. Objects are numbered from 1, in the order of their first use."""

    def __init__(self, kernel: Kernel) -> None:
        self._numbers: dict[Any, int] = {}
        kernel.syncs = kernel.syncs or []

    def facts(self, kernel: Kernel, thread: Thread, access: Access) -> Facts:
        """The facts of a step that was just performed; to be called from a check."""
        syncs = [
            (
                sync.step,
                sync.how,
                sync.by.index,
                sync.target.index if sync.how in {STARTS, WAKES} else self._number(sync.target),
                str(sync.target),
            )
            for sync in kernel.syncs or ()
            if sync.by.index >= 0
        ]
        op = op_of(access)
        word = 0
        if op == "join":
            word = access.target.index
        elif op != NOTHING:
            word = self._number(access.target)
        return Facts(op, word, thread.index, access.processed, place_text(place_of(thread)), syncs)

    def _number(self, target: Any) -> int:
        return self._numbers.setdefault(target, len(self._numbers) + 1)


class LoggedStep(NamedTuple):
    """One step of a recorded execution: the stamps of its line, its text, and its facts."""

    now_ns: int
    step: int
    thread: str
    verb: str
    cell: str
    facts: Facts


class _LoggedAccess(NamedTuple):
    verb: str
    target: str

    def __repr__(self) -> str:
        return f"{self.verb} {self.target}".rstrip()


class _Named:
    """A word or an object of a log."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return self.name


def replay(detector: Detector, steps: Iterable[LoggedStep]) -> list[Finding]:
    """Judge a recorded execution; returns the findings.

    Raises: KeyError: a step has an `op` that does not exist.
    """
    targets: dict[int, _Named] = {}

    def target_of(number: int, name: str) -> _Named:
        target = targets.get(number)
        if target is None:
            target = targets[number] = _Named(name)
        elif name:
            target.name = name
        return target

    for step in steps:
        facts = step.facts
        detector.logged(
            facts.op,
            facts.tid,
            step.thread,
            facts.word if facts.op == "join" else target_of(facts.word, step.cell),
            _LoggedAccess(step.verb, step.cell),
            facts.at,
            done=facts.done,
            step=step.step,
            now_ns=step.now_ns,
            syncs=[
                (when, how, by, number if how in {STARTS, WAKES} else target_of(number, name))
                for when, how, by, number, name in facts.syncs
            ],
        )
    return detector.findings
