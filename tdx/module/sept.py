"""S-EPT pages: 512 entries each, FREE until written. Pages of L2 VMs are such pages too; their FREE is another word."""

from __future__ import annotations

from sim import Cell
from tdx.module.septe import FREE, TDEL
from vcpu.addresses import ENTRIES, Pfn, PgLevel, table_index

_FREE = int(FREE)
_L2_FREE = 0


class SeptPage:
    """One page of the S-EPT; `level` is the size its entries map.

    An entry is made when first looked at, out of what the page was filled with: 512 times `first`, each `stride` more than the one
    before it. So DEMOTE fills a page at once, and a page of FREE entries costs nothing.

    Args:
        base: the first frame that the page covers.
        vm: whose tree it belongs to: 0 for the TD itself, 1 to 3 for an L2 VM.
        first: the first entry's word; FREE if not given.
        stride: what the words of neighbours differ by.
    """

    __slots__ = ("_base", "_cells", "_first", "_stride", "is_freed", "level", "pfn", "vm")

    def __init__(
        self, pfn: Pfn, level: PgLevel, base: int, vm: int = 0, *, first: int | None = None, stride: int = 0
    ) -> None:
        self.pfn = pfn
        self.level = level
        self.vm = vm
        self.is_freed = False
        """PROMOTE has taken the page out of the tree; whoever passed its parent before may still be here (`walk`)."""
        self._base = base
        self._first = (_L2_FREE if vm else _FREE) if first is None else first
        self._stride = stride
        self._cells: dict[int, Cell[int]] = {}

    @property
    def entries(self) -> dict[int, Cell[int]]:
        """By index, all that may be anything but FREE: those ever looked at, or all 512 of a page that was filled."""
        if self._first != (_L2_FREE if self.vm else _FREE) and len(self._cells) < ENTRIES:
            for index in range(ENTRIES):
                self.at(index)
        return self._cells

    def septe(self, gfn: int) -> Cell[int]:
        """The entry that covers `gfn`."""
        cell = self._cells.get(index := table_index(gfn, self.level))
        return self.at(index) if cell is None else cell

    def at(self, index: int) -> Cell[int]:
        """The entry at `index`."""
        cell = self._cells.get(index)
        if cell is None:
            tree = f"l2[{self.vm}]" if self.vm else "sept"
            word = self._first + index * self._stride
            cell = self._cells[index] = Cell(f"{tree}[{self.gfn(index):#x},{self.level.short}]", word)
        return cell

    def lets_go(self, word: int) -> bool:
        """Whether who waits for an entry with this word may go on: it is not locked, or gone with the page."""
        return self.is_freed or not word & TDEL

    def gfn(self, index: int) -> int:
        """The first frame that the entry at `index` covers."""
        return self._base + (index << 9 * (self.level - 1))
