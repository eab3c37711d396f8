"""Threads: SimPy processes that run from one access to the next.

A thread *is ready* when it has yielded an access that has not happened yet, *is blocked* when its access happened but
somebody else must wake it, and *is done* when its generator returned. Between two accesses it owes time: `debt_ns` is
what its own instructions took since its last access, and the next access is due that much later.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import simpy
from simpy.events import PENDING

if TYPE_CHECKING:
    from sim.access import Access, Steps
    from sim.kernel import Kernel

NEVER = -1
"""The tie of a thread that is not ready: no entry of the queue matches it."""


class Thread(simpy.Process):
    """A named sequence of accesses. Made by `Kernel.thread`, never directly.

    A daemon may be blocked at the end of an execution without that being a deadlock (an IPI handler, an RCU thread).
    """

    name = ""  # simpy.Process has a read-only property here

    def __init__(self, kernel: Kernel, name: str, steps: Steps[Any], index: int, *, daemon: bool) -> None:
        # Not simpy.Process.__init__: the kernel starts its threads itself, so that the start is a choice as well.
        self.env = self.kernel = kernel
        self.callbacks = []
        self._value = PENDING
        self._generator = steps
        self.name = name
        self.index = index
        self.daemon = daemon
        self.pending: Access | None = None
        self.blocked_on: Access | None = None
        self.blocked_since_ns = 0
        self.due_ns = 0
        self.tie = NEVER
        self.debt_ns = 0
        self.steps = 0
        self.done = False
        self.send = steps.send

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self.done

    @property
    def ready(self) -> bool:
        """Whether it is a candidate: it has an access that has not happened."""
        return self.tie != NEVER

    def frames(self) -> Iterator[FrameType]:
        """The frames of the chain of generators that it stands in, outermost first; none once it is done."""
        steps: Any = self._generator
        while (frame := getattr(steps, "gi_frame", None)) is not None:
            yield frame
            steps = getattr(steps, "gi_yieldfrom", None)

    def stack(self) -> list[str]:
        """Where it stands, outermost first: `file:line function` for every generator of the chain."""
        return [_told(frame) for frame in self.frames()]

    def place(self) -> str:
        """The innermost place of `stack`."""
        frame = None
        for frame in self.frames():  # noqa: B007 - the last one
            pass
        return "its end" if frame is None else _told(frame)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Thread({self.name!r})"


def _told(frame: FrameType) -> str:
    return f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"


def short_path(path: str) -> str:
    """The last two parts of a path: what a reader needs, and the same on every machine."""
    return "/".join(path.replace("\\", "/").rsplit("/", 2)[-2:])
