"""The physical address metadata table: who owns each page of the TDMRs, as what, in which size.

Three arrays (1G, 2M, 4K), filled on demand; an entry that was never looked at is NDA. A 2M page of a TD has its type in the
2M entry only, and all 4K entries below it are NDA.

Type and owner are read and written only by whoever holds the entry's lock, so they need no access of their own: they ride
on the access that takes or drops the lock. BEPOCH is written by RANGE.BLOCK without any lock and is a cell.

A walk to an explicit page operand locks the covering 1G and 2M entries shared and then the leaf (`locks.Held.page`).
With Dynamic PAMT the 4K array is not there to begin with: `tdx.module.dynamic_pamt`. What differs then are the methods of
`Pamt` below "What Dynamic PAMT has otherwise".
Source: TDX module 1.5.01, pamt_manager.c; reference 2 and 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any

from sim import Cell, Steps
from sim.access import Access
from sim.dependence import READ, UPDATE, WRITE, Touch, note
from sim.thread import Thread
from tdx.module.sharex import SharexHp
from tdx.module.status import Operand, Refused, Status
from vcpu.addresses import LEVELS, PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Pfn, PgLevel

MAX_PFN = 1 << (46 - 12)
"""First frame beyond physical memory: addresses have 52 bits, the upper six are the HKID's."""


ASSIGNED = "pamt.assigned"
"""For searches that reorder accesses: which pages are in use."""


class PageType(IntEnum):
    """What a page is used for (PAMT page types, with their numbers)."""

    PT_NDA = 0
    PT_RSVD = 1
    PT_REG = 3
    PT_TDR = 4
    PT_TDCX = 5
    PT_TDVPR = 6
    PT_EPT = 8
    PT_PAMT = 15
    """A 2M entry whose 4K entries live in a page pair, and a page of such a pair (Dynamic PAMT only)."""


class PamtEntry:
    """One entry. `holds` is the control structure that lives in the page, if one does; for PT_PAMT the page pair."""

    __slots__ = ("bepoch", "holds", "kind", "level", "lock", "owned", "owner", "pfn")

    def __init__(self, pfn: Pfn, level: PgLevel) -> None:
        name = f"pamt[{pfn:#x},{level.short}]"
        self.pfn = pfn
        self.level = level
        self.owned = f"{name}.owned"
        self.lock = SharexHp(f"{name}.lock", 0)
        self.kind = PageType.PT_NDA
        self.owner: Pfn | None = None
        self.bepoch: Cell[int] = Cell(f"{name}.bepoch", 0)
        self.holds: Any = None

    def assign(self, kind: PageType, owner: Pfn | None, holds: Any = None) -> None:
        """Give the page a type and an owner; the caller holds the entry exclusive. BEPOCH is the leaf's business."""
        note(self.owned, WRITE)
        note(ASSIGNED, UPDATE)
        self.kind = kind
        self.owner = owner
        self.holds = holds

    def free(self) -> None:
        """Make it NDA; BEPOCH stays."""
        note(self.owned, WRITE)
        note(ASSIGNED, UPDATE)
        self.kind = PageType.PT_NDA
        self.owner = None
        self.holds = None


class Pamt:
    """The table of all TDMRs, which are half-open ranges of frames."""

    __slots__ = ("_arrays", "_tdmrs")

    def __init__(self, tdmrs: Sequence[tuple[int, int]]) -> None:
        self._tdmrs = tuple(tdmrs)
        self._arrays: tuple[dict[int, PamtEntry], ...] = ({}, {}, {}, {})

    def entry(self, pfn: int, level: int) -> PamtEntry:
        """The entry of the page of that size around `pfn`."""
        number = pfn >> 9 * (level - 1)
        array = self._arrays[level]
        entry = array.get(number)
        if entry is None:
            entry = array[number] = PamtEntry(Pfn(number << 9 * (level - 1)), LEVELS[level])
        return entry

    def leaf(self, pfn: int) -> PamtEntry:
        """The entry that says what `pfn` is: the largest that is REG, else the 4K one. For observers and implicit use."""
        for level in (PG_LEVEL_1G, PG_LEVEL_2M):
            entry = self._arrays[level].get(pfn >> 9 * (level - 1))
            if entry is not None:
                note(entry.owned, READ)
                if entry.kind is PageType.PT_REG:
                    return entry
        entry = self.entry(pfn, PG_LEVEL_4K)
        note(entry.owned, READ)
        return entry

    def kind_of(self, entry: PamtEntry) -> PageType:
        """The entry's type, for who holds its lock."""
        note(entry.owned, READ)
        return entry.kind

    def check(self, pfn: int, level: PgLevel, operand: Operand) -> None:
        """Refuse an operand that cannot be a page of that size: alignment and address bits first, then the TDMRs."""
        self.check_address(pfn, level, operand)
        self.check_tdmr(pfn, level, operand)

    def check_address(self, pfn: int, level: PgLevel, operand: Operand) -> None:
        """Refuse an address that is misaligned, has key id bits or lies beyond physical memory."""
        if not 0 <= pfn < MAX_PFN or pfn & (level.pages - 1):
            raise Refused(Status.TDX_OPERAND_INVALID, operand)

    def check_tdmr(self, pfn: int, level: PgLevel, operand: Operand) -> None:
        """Refuse a page that no TDMR covers."""
        for start, end in self._tdmrs:
            if start <= pfn and pfn + level.pages <= end:
                return
        raise Refused(Status.TDX_OPERAND_ADDR_RANGE_ERROR, operand)

    # What Dynamic PAMT has otherwise.

    def is_leaf(self, entry: PamtEntry) -> bool:
        """Whether a walk ends at this 1G or 2M entry; for who holds its lock."""
        return self.kind_of(entry) is PageType.PT_REG

    def wrong_size(self, reached: PamtEntry, kind: PageType) -> Status:
        """Why a walk to a page of that type may not end at `reached`, which is larger."""
        return Status.TDX_PAGE_METADATA_INCORRECT

    def holds_metadata(self, pfn: int) -> Steps[bool]:
        """Whether the page, which is NDA, holds PAMT entries. Yields: nothing, for there are no such pages."""
        yield from ()
        return False

    def is_free(self, pfn: int) -> bool:
        """Whether no 4K page of the 2M frame is in use; one access, see `PamtScan`."""
        return self.first_assigned(pfn, 512) is None

    def count_in(self, page: PamtEntry) -> Steps[None]:
        """One page more is in use. Yields: nothing, for nobody counts."""
        yield from ()

    def count_out(self, page: PamtEntry) -> Steps[int]:
        """One page less is in use. Returns: the hint that is or-ed to the returned address: none."""
        yield from ()
        return 0

    def pair_addresses(self, entry: PamtEntry) -> tuple[int, int]:
        """Where the 4K entries below a 2M entry lie, if the host lent the pages; else 0 and 0."""
        return 0, 0

    # For observers, and for scans.

    def assigned(self) -> list[PamtEntry]:
        """All entries that are not NDA, in order of size and frame. For observers."""
        return [
            array[number]
            for array in self._arrays
            for number in sorted(array)
            if array[number].kind is not PageType.PT_NDA
        ]

    def known(self) -> Iterator[PamtEntry]:
        """All entries that were ever looked at. For observers."""
        for array in self._arrays:
            yield from array.values()

    def first_assigned(self, pfn: int, pages: int) -> Pfn | None:
        """The first of so many 4K pages that is in use, if any."""
        array = self._arrays[PG_LEVEL_4K]
        for number in range(pfn, pfn + pages):
            entry = array.get(number)
            if entry is not None and entry.kind is not PageType.PT_NDA:
                return entry.pfn
        return None


class PamtScan(Access):
    """Look whether anything in a 2M frame is in use; the thread gets whether so. Stands for the loop over 512 entries."""

    __slots__ = ("_pamt", "_pfn")
    verb = "scan pamt"
    reads = True

    def __init__(self, pamt: Pamt, pfn: Pfn) -> None:
        self.target = pamt.entry(pfn, PG_LEVEL_2M).lock
        self._pamt = pamt
        self._pfn = pfn

    def perform(self, thread: Thread) -> bool:
        return not self._pamt.is_free(self._pfn)

    def touches(self) -> tuple[Touch, ...]:
        return ((ASSIGNED, READ),)


class FirstAssigned(Access):
    """Look for the first 4K page in use among so many; the thread gets it or None. Stands for the loop over their entries."""

    __slots__ = ("_pages", "_pamt", "_pfn")
    verb = "scan pamt"
    reads = True

    def __init__(self, pamt: Pamt, pfn: Pfn, pages: int) -> None:
        self.target = pamt.entry(pfn, PG_LEVEL_2M).lock
        self._pamt = pamt
        self._pfn = pfn
        self._pages = pages

    def perform(self, thread: Thread) -> Pfn | None:
        return self._pamt.first_assigned(self._pfn, self._pages)

    def touches(self) -> tuple[Touch, ...]:
        return ((ASSIGNED, READ),)
