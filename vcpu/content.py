"""The page-version ledger: private content changes only by the guest's own writes and requests.

Of every private frame that the guest has written the ledger knows the version. Losing it is the guest's own wish when it
converts the page (MapGPA, or a touch as the other kind); then the page is *in transit* until the conversion has ended, and
what is written in between may go or stay. A host thread of the scenario that takes pages from the guest unasked is the
scenario's wish: such frames are *given up* for good. Everything else that changes or drops content is a finding.

The second question is asked when a frame goes back to the host: content under a TD's key must have been reset by then.
Not judged: shared memory, where the VMM may do as it likes, and private memory without a key (SNP's RMP is not modelled).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sim.dependence import READ, UPDATE, WRITE, note

if TYPE_CHECKING:
    from sim import Kernel
    from vcpu.addresses import Pfn
    from vcpu.memory import Memory


REQUESTS = "content.requests"
"""For searches that reorder accesses: how many conversions were asked for."""


def _gfn(gfn: int) -> str:
    """For searches that reorder accesses: what the ledger knows of a frame."""
    return f"content[gfn {gfn:#x}]"


class ContentLedger:
    """What the guest has written, by guest frame."""

    def __init__(self, kernel: Kernel, memory: Memory) -> None:
        self.kernel = kernel
        self.memory = memory
        self._written: dict[int, int] = {}
        self._in_transit: dict[int, int] = {}
        self._given_up: set[int] = set()
        self._requests = 0

    def give_up(self, gfns: Iterable[int]) -> None:
        """The scenario takes these frames from the guest."""
        for gfn in gfns:
            note(_gfn(gfn), WRITE)
            self._given_up.add(gfn)
            self._written.pop(gfn, None)

    def conversion_begins(self, gfns: Iterable[int]) -> None:
        """The guest asked for it: what these frames hold may go."""
        note(REQUESTS, UPDATE)
        self._requests += 1
        for gfn in gfns:
            note(_gfn(gfn), WRITE)
            self._in_transit[gfn] = self._in_transit.get(gfn, 0) + 1
            self._written.pop(gfn, None)

    def conversion_ends(self, gfns: Iterable[int]) -> None:
        """Done; what is written from now on counts again."""
        for gfn in gfns:
            note(_gfn(gfn), WRITE)
            left = self._in_transit.pop(gfn, 1) - 1
            if left:
                self._in_transit[gfn] = left

    def wrote(self, gfn: int, version: int) -> None:
        """A private write has just happened."""
        note(_gfn(gfn), WRITE)
        if gfn not in self._in_transit and gfn not in self._given_up:
            self._written[gfn] = version

    def saw(self, who: object, gfn: int, version: int) -> None:
        """A private read has just happened: it must have seen the last write."""
        note(_gfn(gfn), READ)
        written = self._written.get(gfn, version)
        if written != version:
            self.kernel.find(
                "content-lost",
                "the guest reads private content that it did not write there",
                vcpu=who,
                gfn=hex(gfn),
                written=f"version {written}",
                seen=f"version {version}",
            )

    def before_accept(self, gfn: int) -> tuple[int, int] | None:
        """What an ACCEPT of the frame would lose; to be handed to `accepted`."""
        note(_gfn(gfn), READ)
        note(REQUESTS, READ)
        written = self._written.get(gfn)
        return None if written is None else (written, self._requests)

    def accepted(self, who: object, gfn: int, before: tuple[int, int] | None) -> None:
        """An ACCEPT succeeded, so the page was new: what the guest had written there is gone, though nobody asked for it.

        Silent if a conversion was asked for during the call: it may have been of this page.
        """
        note(REQUESTS, READ)
        if before is not None and before[1] == self._requests:
            self.kernel.find(
                "content-lost",
                "the guest accepts a page that it had written: it was taken away unasked",
                vcpu=who,
                gfn=hex(gfn),
                written=f"version {before[0]}",
            )

    def frames_freed(self, pfn: Pfn, pages: int) -> None:
        """Frames go back to the host (`HostMemory.on_free`): nothing in them may be under a TD's key."""
        for frame, content in self.memory.known(pfn, pages):
            if content.key:
                self.kernel.find(
                    "content-lost",
                    "a frame reaches the host with content under a private key",
                    pfn=hex(frame),
                    version=content.version,
                    key=content.key,
                )
