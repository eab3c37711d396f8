"""for_each_tdp_pte: a pre-order walk over the SPTEs of a root that overlap a range, safe against concurrent change.

Before it steps down the iterator reads the SPTE again, and descends only into what it then sees: the table of a stale
value may be unlinked already. After a yield (lock dropped) it starts over from the root at the frame it had reached.
Source: arch/x86/kvm/mmu/tdp_iter.c. Steps: one READ_ONCE per SPTE looked at, one more before each descent (F35, F39).
"""

from __future__ import annotations

from mmu.page_table import KvmMmuPage, PageTables
from mmu.spte import is_last_spte, is_shadow_present_pte, spte_to_pfn
from sim import Cell, Steps
from vcpu.addresses import ENTRIES, LEVELS, Gfn, PgLevel, table_index


class TdpIter:
    """The iterator. Use: `yield from it.start()`, then `while it.valid: ...; yield from it.next()`.

    `old_spte` is what was read at `sptep`; a writer that changes the SPTE keeps it up to date. `gfn` has no shared bit.
    """

    __slots__ = (
        "_gfn_bits",
        "_tables",
        "end",
        "gfn",
        "level",
        "min_level",
        "next_last_level_gfn",
        "old_spte",
        "root",
        "sp",
        "sptep",
        "valid",
        "yielded",
        "yielded_gfn",
    )

    def __init__(
        self,
        tables: PageTables,
        root: KvmMmuPage,
        start: int,
        end: int,
        min_level: int = 1,
        gfn_bits: int = 0,
    ) -> None:
        self._tables = tables
        self._gfn_bits = 0 if root.is_mirror else gfn_bits
        self.root = root
        self.end = end
        self.min_level = min_level
        self.next_last_level_gfn = start
        self.yielded_gfn = start
        self.yielded = False
        self.valid = True
        self.sp = root
        self.level: PgLevel = root.level
        self.gfn = Gfn(0)
        self.old_spte = 0
        self.sptep: Cell[int] = root.cell(0)

    @property
    def is_mirror(self) -> bool:
        """Whether the SPTE belongs to a mirror table."""
        return self.root.is_mirror

    def start(self) -> Steps[None]:
        """Read the root's entry for the next frame of interest."""
        self.yielded = False
        self.yielded_gfn = self.next_last_level_gfn
        self.valid = self.next_last_level_gfn < self.end
        if self.valid:
            yield from self._read(self.root, self.next_last_level_gfn)

    def next(self) -> Steps[None]:
        """Go down, else aside, else up and aside; at the end of the range `valid` is False."""
        if self.yielded:
            yield from self.start()
            return
        if self.level > self.min_level:
            self.old_spte = yield self.sptep.read_once()
            child = self._child()
            if child is not None:
                yield from self._read(child, self.next_last_level_gfn)
                return
        sp, level = self.sp, self.level
        gfn = (self.gfn & -level.pages) + level.pages
        while gfn % (level.pages * ENTRIES) == 0:
            if sp.parent is None:
                self.valid = False
                return
            sp = sp.parent[0]
            level = LEVELS[level + 1]
        self.next_last_level_gfn = gfn
        if gfn >= self.end:
            self.valid = False
            return
        yield from self._read(sp, gfn)

    def reread(self) -> Steps[None]:
        """Read the same SPTE again."""
        self.old_spte = yield self.sptep.read_once()

    def _child(self) -> KvmMmuPage | None:
        spte = self.old_spte
        if not is_shadow_present_pte(spte) or is_last_spte(spte, self.level):
            return None
        return self._tables.to_sp(spte_to_pfn(spte))

    def _read(self, sp: KvmMmuPage, gfn: int) -> Steps[None]:
        level = sp.level
        self.sp = sp
        self.level = level
        self.gfn = Gfn(gfn & -level.pages)
        self.sptep = sp.cell(table_index(gfn | self._gfn_bits, level))
        self.old_spte = yield self.sptep.read_once()
