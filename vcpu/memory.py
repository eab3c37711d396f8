"""Page contents as versions: lost, leaked or resurrected content is seen, without keeping 4096 bytes a page.

Every frame has a version: 0 after the host zeroed it, a new number after every guest write, and a *key* saying who wrote
it: content written under a TD's key is noise to the host. One word a frame, so one cell a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sim import Cell, Kernel
from sim.dependence import WRITE, note
from vcpu.addresses import Pfn


class Content(NamedTuple):
    """What a frame holds: the number of the write that made it (0: zeroed) and the key it was written under (0: host's)."""

    version: int
    key: int


ZEROED = Content(0, 0)


class Memory:
    """The contents of all frames; frames nobody touched hold zeroes."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._cells: dict[Pfn, Cell[Content]] = {}
        self._written = 0

    def cell(self, pfn: Pfn) -> Cell[Content]:
        """The frame's word."""
        cell = self._cells.get(pfn)
        if cell is None:
            cell = self._cells[pfn] = Cell(f"page[{pfn:#x}]", ZEROED)
        return cell

    def peek(self, pfn: Pfn) -> Content:
        """What the frame holds now, for observers."""
        cell = self._cells.get(pfn)
        return ZEROED if cell is None else cell.peek()

    def known(self, pfn: Pfn, pages: int) -> Iterator[tuple[Pfn, Content]]:
        """The frames among `pages` from `pfn` on that somebody touched, with what they hold, for observers."""
        cells = self._cells
        for frame in range(pfn, pfn + pages):
            cell = cells.get(Pfn(frame))
            if cell is not None:
                yield Pfn(frame), cell.peek()

    def new_version(self) -> int:
        """A number no write had before."""
        self._written += 1
        return self._written

    def zero(self, pfn: Pfn, pages: int, key: int = 0) -> None:
        """Zero frames as part of another access (the module's MOVDIR64B, the host's clear): never yields."""
        cells = self._cells
        for frame in range(pfn, pfn + pages):
            cell = cells.get(Pfn(frame))
            if cell is not None:
                note(cell.name, WRITE)
                cell.v = Content(0, key)
