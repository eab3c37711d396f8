"""The physical address metadata table: who owns each page of the TDMRs, as what, in which size.

Three arrays (1G, 2M, 4K), filled on demand; an entry that was never looked at is NDA. A 2M page of a TD has its type in the
2M entry only, and all 4K entries below it are NDA.

Type and owner are read and written only by whoever holds the entry's lock, so they need no access of their own: they ride
on the access that takes or drops the lock. BEPOCH is written by RANGE.BLOCK without any lock and is a cell.

A walk to an explicit page operand locks the covering 1G and 2M entries shared and then the leaf. Here the whole walk is one
access, and so is the unwalk: another thread sees all of its locks or none. That hides one thing, two walks that make each
other fail in the middle, and saves four steps in every call.
Source: TDX module 1.5.01, pamt_manager.c; reference 2 and 2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

from sim import Cell
from sim.access import Access
from sim.dependence import READ, UPDATE, WRITE, Touch, note
from sim.thread import Thread
from tdx.module.sharex import (
    HP,
    HP_EXCLUSIVE,
    SharexHp,
    hp_add_reader,
    hp_drop_reader,
    hp_free,
    hp_shareable,
    hp_take,
    hp_wipe,
)
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


class PamtEntry:
    """One entry. `holds` is the control structure that lives in the page, if one does."""

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

    def check(self, pfn: int, level: PgLevel, operand: Operand) -> None:
        """Refuse an operand that cannot be a page of that size: alignment and address bits first, then the TDMRs."""
        if not 0 <= pfn < MAX_PFN or pfn & (level.pages - 1):
            raise Refused(Status.TDX_OPERAND_INVALID, operand)
        for start, end in self._tdmrs:
            if start <= pfn and pfn + level.pages <= end:
                return
        raise Refused(Status.TDX_OPERAND_ADDR_RANGE_ERROR, operand)

    def assigned(self) -> list[PamtEntry]:
        """All entries that are not NDA, in order of size and frame. For observers."""
        return [
            array[number]
            for array in self._arrays
            for number in sorted(array)
            if array[number].kind is not PageType.PT_NDA
        ]

    def assigned_below(self, pfn: int) -> bool:
        """Whether a 4K page of the 2M frame around `pfn` is in use."""
        array = self._arrays[PG_LEVEL_4K]
        first = pfn & ~511
        return any(
            entry is not None and entry.kind is not PageType.PT_NDA
            for entry in map(array.get, range(first, first + 512))
        )


class PamtWalk(Access):
    """Walk to a page and lock it; the thread gets its entry, or None if a lock on the way was taken.

    `target` is the lock of the entry asked for; the parents' locks change in the same access. A walk ends early at a REG
    entry of a larger size.
    """

    __slots__ = ("_exclusive", "_level", "_lost", "_pamt", "_pfn", "_taken")
    verb = "walk pamt"
    reads = writes = acquires = True

    def __init__(self, pamt: Pamt, pfn: Pfn, level: PgLevel, *, exclusive: bool) -> None:
        self.target = pamt.entry(pfn, level).lock
        self._pamt = pamt
        self._pfn = pfn
        self._level = level
        self._exclusive = exclusive
        self._taken: list[tuple[SharexHp, bool]] = []

    def perform(self, thread: Thread) -> PamtEntry | None:
        level = 3
        while True:
            entry = self._pamt.entry(self._pfn, level)
            lock = entry.lock
            note(entry.owned, READ)
            last = level == self._level or entry.kind is PageType.PT_REG
            word = lock.v
            exclusive = last and self._exclusive
            note(lock.name, WRITE if exclusive else UPDATE)
            lost = word & ~HP if exclusive else word & HP_EXCLUSIVE
            lock.v = hp_take(word) if exclusive else hp_add_reader(word)
            if lost:
                self._lost = lock, hp_free if exclusive else hp_shareable
                self._undo()
                return None
            self._taken.append((lock, exclusive))
            if last:
                return entry
            level -= 1

    def touches(self) -> tuple[Touch, ...]:
        return ()  # which locks it comes to, and in which mode, is known only on the way: all noted

    def _undo(self) -> None:
        for lock, exclusive in self._taken:
            note(lock.name, WRITE if exclusive else UPDATE)
            lock.v = hp_wipe(lock.v) if exclusive else hp_drop_reader(lock.v)
            lock.notify()

    def lost(self) -> tuple[SharexHp, Callable[[int], bool]]:
        """Of a walk that failed: the lock that was taken, and when it is free."""
        return self._lost

    def unwalk(self) -> PamtUnwalk:
        """The access that lets go of what the walk took."""
        return PamtUnwalk(self)


class PamtUnwalk(Access):
    """Let go of a walk's locks."""

    __slots__ = ("_walk",)
    verb = "unwalk pamt"
    reads = writes = releases = True

    def __init__(self, walk: PamtWalk) -> None:
        self.target = walk.target
        self._walk = walk

    def perform(self, thread: Thread) -> None:
        self._walk._undo()

    def touches(self) -> tuple[Touch, ...]:
        return ()  # noted, lock by lock


class PamtScan(Access):
    """Look at the 512 4K entries below a 2M frame; the thread gets whether one is in use."""

    __slots__ = ("_pamt", "_pfn")
    verb = "scan pamt"
    reads = True

    def __init__(self, pamt: Pamt, pfn: Pfn) -> None:
        self.target = pamt.entry(pfn, PG_LEVEL_2M).lock
        self._pamt = pamt
        self._pfn = pfn

    def perform(self, thread: Thread) -> bool:
        return self._pamt.assigned_below(self._pfn)

    def touches(self) -> tuple[Touch, ...]:
        return ((ASSIGNED, READ),)
