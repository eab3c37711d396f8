"""Page tables: `KvmMmuPage` (KVM calls one an SP), its 512 words, and the way from a table's frame to its SP.

A table's words are made when somebody first looks at them: a new table costs nothing. The memory of a freed table is
poisoned, and so is every word made of it later: any access is a finding `uaf-table`. The paths unlink a table, wait
for RCU and only then call `free` (invariant I11); this file holds no rule of its own.

Source: reference 1.3, 1.4, 1.7; arch/x86/kvm/mmu/mmu_internal.h (struct kvm_mmu_page).
Not modelled: the shadow MMU's fields (hash_link, unsync, write flooding), role bits that are constant for TDP
(access, direct, efer_nx, cr0_wp), SMM's second address space.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmu import spte as bits
from sim import Cell, Kernel
from sim.access import UseAfterFree
from vcpu.addresses import ENTRIES, LEVELS, Gfn, Pfn, PgLevel, table_index


class Role(NamedTuple):
    """The immutable part of kvm_mmu_page_role; `invalid` changes, so it is a word of the SP."""

    level: PgLevel
    is_mirror: bool = False
    ad_disabled: bool = False

    def child(self) -> Role:
        """The role of a table one level down."""
        return self._replace(level=LEVELS[self.level - 1])


class SpteCell(Cell[int]):
    """One entry of a table. Its name is made when a report asks, for most are never in one."""

    __slots__ = ("index", "sp")

    def __init__(self, sp: KvmMmuPage, index: int) -> None:
        self.sp = sp
        self.index = index
        self.v = bits.SHADOW_NONPRESENT_VALUE
        self.watchers = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """`spte[mirror 4K gfn 0x1000]`."""
        sp = self.sp
        return f"spte[{sp.kind} {sp.level.short} gfn {sp.gfn_of(self.index):#x}]"

    def __str__(self) -> str:
        return self.name

    @property
    def gfn(self) -> Gfn:
        """The first frame the entry maps."""
        return self.sp.gfn_of(self.index)

    @property
    def level(self) -> PgLevel:
        """The size of what the entry maps."""
        return self.sp.level


class FreedSpteCell(SpteCell):
    """What an entry becomes when its table is freed."""

    __slots__ = ()

    def _touched(self) -> Any:
        raise UseAfterFree(self.name, "uaf-table")

    v = property(_touched, lambda self, _value: self._touched())

    def peek(self) -> Any:
        """Freed memory shows nothing to observers."""
        return None


class KvmMmuPage:
    """One page table.

    Args:
        role: level (an entry of it maps a page of that size, or leads to a table of the level below) and kind.
        gfn: what entry 0 maps, without shared bit; it is aligned down to what the table covers.
        spt_pfn: the frame of the table itself.
        external_spt: the frame that the TDX module uses for this table; None for direct tables and the mirror's root.

    Attributes:
        parent: the table and index of the entry that leads here; None for roots and tables that are not linked (`ptep`).
        external_spt: set before the table is linked and cleared by whoever removes it; None after a deliberate leak.
        nx_huge_page_disallowed: the table exists because of the NX mitigation; written under tdp_mmu_pages_lock.
        freed: its memory was given back.
    """

    __slots__ = (
        "_invalid",
        "_root_count",
        "_scheduled_root_to_zap",
        "cells",
        "external_spt",
        "freed",
        "gfn",
        "is_mirror",
        "level",
        "nx_huge_page_disallowed",
        "parent",
        "role",
        "spt_pfn",
    )

    def __init__(
        self,
        role: Role,
        gfn: int,
        spt_pfn: Pfn,
        *,
        external_spt: Pfn | None = None,
        parent: tuple[KvmMmuPage, int] | None = None,
    ) -> None:
        self.take_place(role, gfn)
        self.spt_pfn = spt_pfn
        self.external_spt = external_spt
        self.parent = parent
        self.nx_huge_page_disallowed = False
        self.freed = False
        self.cells: dict[int, SpteCell] = {}
        self._invalid: Cell[bool] | None = None
        self._root_count: Cell[int] | None = None
        self._scheduled_root_to_zap: Cell[bool] | None = None

    def take_place(self, role: Role, gfn: int) -> None:
        """Set role and base frame; a table from the caches has none before it is to be linked."""
        self.role = role
        self.level = role.level
        self.is_mirror = role.is_mirror
        self.gfn = Gfn(gfn & -(role.level.pages * ENTRIES))

    def __str__(self) -> str:
        return f"table[{self.kind} {self.level.short} gfn {self.gfn:#x}]"

    @property
    def kind(self) -> str:
        """`mirror` or `direct`."""
        return "mirror" if self.is_mirror else "direct"

    @property
    def pages(self) -> int:
        """4 KiB pages that the table covers."""
        return self.level.pages * ENTRIES

    @property
    def invalid(self) -> Cell[bool]:
        """role.invalid of a root: written under mmu_lock held for write, stable under mmu_lock in any mode."""
        if self._invalid is None:
            self._invalid = Cell(f"{self}.role.invalid", False)
        return self._invalid

    @property
    def root_count(self) -> Cell[int]:
        """tdp_mmu_root_count of a root, a refcount_t; 2 at creation: the vCPU's and the MMU's."""
        if self._root_count is None:
            self._root_count = Cell(f"{self}.root_count", 0)
        return self._root_count

    @property
    def scheduled_root_to_zap(self) -> Cell[bool]:
        """This invalid root still owes its zap and the MMU's reference; meaningful under slots_lock."""
        if self._scheduled_root_to_zap is None:
            self._scheduled_root_to_zap = Cell(f"{self}.scheduled_root_to_zap", False)
        return self._scheduled_root_to_zap

    def cell(self, index: int) -> SpteCell:
        """The word of an entry (`sptep`)."""
        cell = self.cells.get(index)
        if cell is None:
            assert 0 <= index < ENTRIES
            cell = self.cells[index] = SpteCell(self, index)
            if self.freed:
                cell.__class__ = FreedSpteCell
        return cell

    def index_of(self, gfn: int) -> int:
        """The index of the entry for a frame."""
        return table_index(gfn, self.level)

    def gfn_of(self, index: int) -> Gfn:
        """The first frame of an entry."""
        return Gfn(self.gfn + index * self.level.pages)

    def peek(self, index: int) -> int:
        """The entry's value, for observers; makes no word. A hole, if the table was freed."""
        cell = self.cells.get(index)
        return bits.SHADOW_NONPRESENT_VALUE if cell is None or self.freed else cell.v

    def touched(self, first: int = 0, end: int = ENTRIES) -> list[int]:
        """Indices in [first, end) whose word somebody has looked at, ascending; all others are holes."""
        return sorted(index for index in self.cells if first <= index < end)

    def present(self) -> Iterator[tuple[int, int]]:
        """(index, value) of the present entries, for observers, in the order in which they were first touched."""
        if not self.freed:
            for index, cell in list(self.cells.items()):
                if cell.v & bits.SPTE_MMU_PRESENT_MASK:
                    yield index, cell.v

    def free(self, kernel: Kernel) -> None:
        """Give the memory back: from now on a look at any of the table's words is a finding. Never yields."""
        if self.freed:
            kernel.find("uaf-table", f"{self} is freed twice")
            return
        self.freed = True
        for cell in self.cells.values():
            cell.__class__ = FreedSpteCell


class PageTables:
    """All tables of a VM by frame (what page_private of a table's page is for), and the MMU's statistics.

    Attributes:
        pages: present leaves by level (kvm->stat.pages_4k, _2m, _1g), counted in the step that changes the entry.
        live: linked tables (tdp_mmu_pages), counted by the paths that link and unlink.

    The kernel's counters are atomics which nothing branches on, hence no words here.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.by_pfn: dict[Pfn, KvmMmuPage] = {}
        self.pages: dict[PgLevel, int] = {}
        self.live = 0

    def add(self, sp: KvmMmuPage) -> KvmMmuPage:
        """Register a table; returns it."""
        assert sp.spt_pfn not in self.by_pfn, f"{sp} has the frame of {self.by_pfn[sp.spt_pfn]}"
        self.by_pfn[sp.spt_pfn] = sp
        return sp

    def to_sp(self, pfn: Pfn) -> KvmMmuPage:
        """spte_to_child_sp, sptep_to_sp: the table in a frame.

        Raises: UseAfterFree: there is none (any more); the kernel makes the finding `uaf-table` of it.
        """
        sp = self.by_pfn.get(pfn)
        if sp is None:
            raise UseAfterFree(f"the page table in pfn {pfn:#x}", "uaf-table")
        return sp

    def child(self, spte: int) -> KvmMmuPage:
        """The table that a present non-leaf entry leads to."""
        return self.to_sp(bits.spte_to_pfn(spte))

    def init_child(self, sp: KvmMmuPage, parent: KvmMmuPage, gfn: int) -> KvmMmuPage:
        """tdp_mmu_init_child_sp: give a fresh table its place under the parent's entry for `gfn`, and register it."""
        sp.take_place(parent.role.child(), gfn)
        sp.parent = (parent, parent.index_of(gfn))
        return self.add(sp)

    def find(self, pfn: Pfn) -> KvmMmuPage | None:
        """Like `to_sp`, for observers."""
        return self.by_pfn.get(pfn)

    def free(self, sp: KvmMmuPage) -> None:
        """Poison a table and forget it; its frames are the caller's to give back."""
        if self.by_pfn.get(sp.spt_pfn) is sp:
            del self.by_pfn[sp.spt_pfn]
        sp.free(self.kernel)

    def count_leaf(self, level: PgLevel, n: int) -> None:
        """kvm_update_page_stats."""
        self.pages[level] = self.pages.get(level, 0) + n

    def pages_at(self, level: PgLevel) -> int:
        """Present leaves of that size."""
        return self.pages.get(level, 0)

    def __len__(self) -> int:
        """Tables that exist, roots included."""
        return len(self.by_pfn)

    def __iter__(self) -> Iterator[KvmMmuPage]:
        """Every live table, oldest first, for observers."""
        return iter(list(self.by_pfn.values()))
