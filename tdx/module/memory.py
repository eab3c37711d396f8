"""The memory behind private pages, as far as the module itself looks at it: 8 bytes at a time, zero until written.

Who only cares how pages move need not look; MEM.RD, MEM.WR, RELOCATE and migration move what is here. A qword is a cell, made when
first looked at. Zeroing and copying a page is part of the access that commits it: nobody may look at the page meanwhile.
"""

from __future__ import annotations

from sim import Cell
from sim.dependence import WRITE, note
from vcpu.addresses import PAGE_SHIFT, PAGE_SIZE


class Memory:
    """Contents by host physical address."""

    __slots__ = ("_qwords",)

    def __init__(self) -> None:
        self._qwords: dict[int, Cell[int]] = {}

    def qword(self, hpa: int) -> Cell[int]:
        """The 8 bytes at `hpa`, which is a multiple of 8."""
        cell = self._qwords.get(hpa)
        if cell is None:
            cell = self._qwords[hpa] = Cell(f"memory[{hpa:#x}]", 0)
        return cell

    def contents(self, pfn: int) -> dict[int, int]:
        """What is not zero in a 4K page, by offset. For observers."""
        start = pfn << PAGE_SHIFT
        return {
            hpa - start: cell.peek()
            for hpa, cell in sorted(self._qwords.items())
            if start <= hpa < start + PAGE_SIZE and cell.peek()
        }

    def read(self, hpa: int, length: int) -> bytes:
        """`length` bytes, both multiples of 8, for who keeps everybody else away."""
        return b"".join(self._peek(at).to_bytes(8, "little") for at in range(hpa, hpa + length, 8))

    def _peek(self, hpa: int) -> int:
        cell = self._qwords.get(hpa)
        return 0 if cell is None else cell.peek()

    def zero(self, pfn: int, pages: int = 1) -> None:
        """Zero 4K pages, inside the access that makes them the guest's."""
        start = pfn << PAGE_SHIFT
        for hpa, cell in self._qwords.items():
            if start <= hpa < start + pages * PAGE_SIZE:
                note(cell.name, WRITE)
                cell.v = 0

    def copy(self, source: int, target: int) -> None:
        """Copy a 4K page, inside the access that commits it. Args: frames."""
        self.zero(target)
        for offset, value in self.contents(source).items():
            cell = self.qword((target << PAGE_SHIFT) + offset)
            note(cell.name, WRITE)
            cell.v = value
