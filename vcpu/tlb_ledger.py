"""The TLB ledger: which translations a host has promised away, and whether a guest access is still served by one.

A *promise* is made where an operation may rely on no vCPU reaching a range by an older translation: the end of an unmap
with its flush, a conversion, a punched hole, a deleted slot, an MMU notifier's start. Nothing that is in the way of the
operation can cache the range anew before that point, so whatever was cached earlier is dead from then on. It may still
sit in a TLB (the vCPU that owns it is outside the guest and flushes before it enters); it must not serve an access.

Every guest access is judged, in the step that reaches the content. Accesses served by a walk of their own are judged as
well: a vCPU that was not kicked may have walked before the promise and use it after.
Not judged: accessed and dirty bits, which hardware may set through a translation that is going away (control N1).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from sim.dependence import READ, UPDATE, note
from sim.thread import short_path

if TYPE_CHECKING:
    from sim import Kernel
    from vcpu.tlb import Translation


PROMISES = "tlb.promises"
"""For searches that reorder accesses: promises, which are compared with when a translation was filled and used."""


class Promise(NamedTuple):
    """Nobody reaches [start, end) of `space` by a translation older than `step`; made by `thread` at `place`."""

    space: str
    start: int
    end: int
    what: str
    step: int
    thread: str
    place: str

    def __str__(self) -> str:
        return f"{self.what}, step {self.step}, {self.thread} at {self.place}, gfns [{self.start:#x}, {self.end:#x})"


def place_of_caller(depth: int = 2) -> str:
    """`file:line function` of the code that called the caller (depth 2), for reports."""
    frame = sys._getframe(depth)
    return f"{short_path(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"


class TlbLedger:
    """The promises of one VM. `gfn`s carry no shared bit: the space tells the halves of a TD apart."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._promises: dict[tuple[str, int, int], Promise] = {}
        """By range, the latest last: an older promise of the same range says nothing more."""

    def promise(self, space: str, start: int, end: int, what: str, place: str) -> None:
        """From this step on no older translation of the range may serve an access. Never yields."""
        kernel = self.kernel
        note(PROMISES, UPDATE)
        self._promises.pop((space, start, end), None)
        self._promises[space, start, end] = Promise(
            space, start, end, what, kernel.steps, kernel.current.name, place
        )

    def judge(self, who: object, space: str, gfn: int, translation: Translation) -> None:
        """`who` has just reached the content of `gfn` by `translation`: a finding if that was promised away before."""
        note(PROMISES, READ)
        for promise in reversed(self._promises.values()):
            if promise.step <= translation.filled:
                return
            if promise.space == space and promise.start <= gfn < promise.end:
                self.kernel.find(
                    "stale-tlb",
                    f"a guest access is served by a translation that was promised away: {promise.what}",
                    vcpu=who,
                    gfn=hex(gfn),
                    pfn=hex(translation.frame(translation.gfn)),
                    filled=f"step {translation.filled}",
                    promised=promise,
                )
                return
