"""S-EPT pages: 512 entries each, FREE until written."""

from __future__ import annotations

from sim import Cell
from tdx.module.septe import FREE
from vcpu.addresses import Pfn, PgLevel

_FREE = int(FREE)


class SeptPage:
    """One page of the S-EPT; `level` is the size its entries map. Entries are made when first looked at."""

    __slots__ = ("_base", "entries", "level", "pfn")

    def __init__(self, pfn: Pfn, level: PgLevel, base: int) -> None:
        self.pfn = pfn
        self.level = level
        self._base = base
        self.entries: dict[int, Cell[int]] = {}

    def septe(self, gfn: int) -> Cell[int]:
        """The entry that covers `gfn`."""
        index = gfn >> 9 * (self.level - 1) & 511
        cell = self.entries.get(index)
        if cell is None:
            first = self.gfn(index)
            cell = self.entries[index] = Cell(f"sept[{first:#x},{self.level.short}]", _FREE)
        return cell

    def gfn(self, index: int) -> int:
        """The first frame that the entry at `index` covers."""
        return self._base + (index << 9 * (self.level - 1))
