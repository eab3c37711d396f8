"""The module's look at its LP's pending interrupts, which ends long calls early."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim import Steps
from sim.access import Access
from sim.dependence import Touch
from sim.thread import Thread
from tdx.module.sharex import HP
from tdx.module.status import Status

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import LogicalProcessor, Tdcs


def interruption(
    module: TdxModule, tdcs: Tdcs, lp: LogicalProcessor, interrupted: Status
) -> Steps[Status | None]:
    """What ends a long call at this point, if anything: `interrupted`, for an interrupt that waits for its LP.

    Where the tree's lock has host priority also TDX_INTERRUPTED_BUSY: another host call has lost it to this one.
    Yields: the test, and a look at the tree's lock if there is something to see.
    Source: TDX module 1.5.20, helpers.c:check_host_interrupt_and_hp_bit.
    """
    if (yield InterruptTest(lp.interrupt_pending)):
        return interrupted
    if module.profile.tree_host_priority:
        word: int = yield tdcs.sept_tree_lock.read_once()
        if word & HP:
            module.kernel.reached("sept_tree_wanted")
            return Status.TDX_INTERRUPTED_BUSY
    return None


class InterruptTest(Access):
    """Ask whether an interrupt waits for this LP; whoever raises one writes the same state."""

    __slots__ = ()
    verb = "test interrupts"
    reads = True
    target: Callable[[], bool]

    def perform(self, thread: Thread) -> bool:
        return self.target()

    def touches(self) -> tuple[Touch, ...]:
        return ()  # `target` says what it looks at

    def __repr__(self) -> str:
        return self.verb
