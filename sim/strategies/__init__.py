"""Strategies: who goes next. One file each, behind three methods.

A strategy lives through a search: `begin` opens an execution (or says that there is nothing left to try), `pick` chooses
among the candidates of each step, `end` sees the finished execution. It may look at what every candidate would do next
(`thread.pending`): nothing has happened yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread


class Strategy(Protocol):
    """What `explore` asks of a strategy."""

    complete_after: ClassVar[int | None]
    """How many executions are all there is to see (1 for deterministic ones), or None."""

    def begin(self, kernel: Kernel, execution: int) -> bool:
        """Prepare for the next execution, numbered from 0; False when there is nothing left to try."""

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        """Index of the candidate that takes the next step. Candidates are never empty and in a reproducible order."""

    def end(self, kernel: Kernel) -> None:
        """The execution has ended; `kernel` holds its findings."""


def first_by_time(candidates: Sequence[Thread]) -> int:
    """What `fifo` picks: the earliest due, ties as the seed has drawn them."""
    return min(range(len(candidates)), key=lambda i: (candidates[i].due_ns, candidates[i].tie))


def strategy(text: str, seed: int) -> Strategy:
    """Make a strategy from its name.

    Raises: ValueError: no strategy of that name; the message lists those there are.
    """
    # Here, not on top: the strategies import this module's protocol.
    from sim.strategies.fifo import Fifo  # noqa: PLC0415
    from sim.strategies.random import Random  # noqa: PLC0415
    from sim.strategies.replay import Replay  # noqa: PLC0415

    name, _, argument = text.partition(":")
    if name == "replay":
        return Replay(argument)
    if name == "fifo" and not argument:
        return Fifo()
    if name == "random" and not argument:
        return Random(seed)
    raise ValueError(f"no strategy {text!r}: there are fifo, random, replay:SCHEDULE")
