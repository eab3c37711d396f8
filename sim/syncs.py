"""Orders that plain calls make: what is ordered inside somebody's step, or between two steps, without an access of its own.

Most ordering is an access (a lock, a store-release), and the race detector reads it off the step. The rest is done by plain
calls: a thread is made or woken, an interrupt handler sets a signal, a callback is queued. Such a call says so with
`Kernel.sync`, by one of four words. They are kept until the checks of the next step have seen them, and are in recorded logs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sim.thread import Thread

STARTS = "starts"
"""A thread is made: all its maker did happens before its first step."""

WAKES = "wakes"
"""A blocked thread is made ready: now its access takes what it waited for."""

GIVES = "gives"
"""A release into an object: a signal is set, a callback queued, a message sent."""

TAKES = "takes"
"""An acquire of all that was given to an object since it was last taken."""

HOWS = (STARTS, WAKES, GIVES, TAKES)


class Sync(NamedTuple):
    """Thread `by` orders something in step number `step`, or after it and before the next one."""

    step: int
    how: str
    by: Thread
    target: Any
