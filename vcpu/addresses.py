"""Addresses as types: what a number means, so that a frame number is never taken for a byte address.

Levels are KVM's: 4K is 1, 2M is 2, 1G is 3 (the TDX module counts from 0: `PgLevel.tdx`). Ranges are half-open.
Source: reference sections 0 and 1.8; arch/x86/kvm/mmu.h and vmx/tdx.c (TDX_SHARED_BIT_PWL_4, TDX_SHARED_BIT_PWL_5).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple, NewType

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
ENTRIES = 512
"""Entries of a page table."""

Gpa = NewType("Gpa", int)
"""Guest physical address in bytes; may carry the shared bit."""
Gfn = NewType("Gfn", int)
"""Guest frame number in 4 KiB units, without the shared bit unless said otherwise."""
Pfn = NewType("Pfn", int)
"""Host frame number in 4 KiB units."""


class PgLevel(IntEnum):
    """The size of a mapping, or the level of a table whose entries have that size.

    Attributes: `pages`, 4 KiB pages of one entry (KVM_PAGES_PER_HPAGE); `size`, its bytes; `tdx`, the TDX module's number
    of the level (0 is 4K); `short`, `4K`, `2M`, ... Kept, not computed: a walk asks for them at every level.
    """

    pages: int
    size: int
    tdx: int
    short: str

    PG_LEVEL_4K = 1
    PG_LEVEL_2M = 2
    PG_LEVEL_1G = 3
    PG_LEVEL_512G = 4
    PG_LEVEL_256T = 5

    def __new__(cls, value: int) -> PgLevel:
        """Make a member with what is known of its size."""
        level = int.__new__(cls, value)
        level._value_ = value
        level.pages = 1 << 9 * (value - 1)
        level.size = level.pages << PAGE_SHIFT
        level.tdx = value - 1
        level.short = ("4K", "2M", "1G", "512G", "256T")[value - 1]
        return level


PG_LEVEL_4K = PgLevel.PG_LEVEL_4K
PG_LEVEL_2M = PgLevel.PG_LEVEL_2M
PG_LEVEL_1G = PgLevel.PG_LEVEL_1G
PG_LEVEL_512G = PgLevel.PG_LEVEL_512G
PG_LEVEL_256T = PgLevel.PG_LEVEL_256T
LEVELS: tuple[PgLevel, ...] = (
    PG_LEVEL_4K,
    PG_LEVEL_4K,
    PG_LEVEL_2M,
    PG_LEVEL_1G,
    PG_LEVEL_512G,
    PG_LEVEL_256T,
)
"""`LEVELS[n]` is the level numbered n, without building an enum member (index 0 is not a level)."""


class GfnRange(NamedTuple):
    """A half-open range of guest frames."""

    start: Gfn
    end: Gfn

    def __contains__(self, gfn: object) -> bool:
        return isinstance(gfn, int) and self.start <= gfn < self.end

    def overlaps(self, start: int, end: int) -> bool:
        """Whether [start, end) and this range share a frame."""
        return self.start < end and start < self.end

    def frames(self) -> Iterator[Gfn]:
        """Every frame, in order."""
        return map(Gfn, range(self.start, self.end))


def gfn_of(gpa: int) -> Gfn:
    """The frame of an address; a shared bit stays in it."""
    return Gfn(gpa >> PAGE_SHIFT)


def gpa_of(gfn: int) -> Gpa:
    """The first byte of a frame."""
    return Gpa(gfn << PAGE_SHIFT)


def align_down(gfn: int, level: PgLevel) -> Gfn:
    """The first frame of the mapping of that size around `gfn`."""
    return Gfn(gfn & -level.pages)


def table_index(gfn: int, level: int) -> int:
    """The index of a frame's entry in its table of that level."""
    return gfn >> 9 * (level - 1) & (ENTRIES - 1)


def direct_bits(shared_bit: int | None) -> Gfn:
    """kvm_gfn_direct_bits: the shared bit as a frame number, 0 for VMs without one (reference 1.8)."""
    return Gfn(0 if shared_bit is None else 1 << (shared_bit - PAGE_SHIFT))
