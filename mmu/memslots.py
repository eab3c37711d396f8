"""Memslots: what userspace says is where in guest memory, and which huge pages are impossible there.

A `Memslots` never changes; an update publishes a new one, and readers in an SRCU section keep the old one alive. What
does change is per slot: the words of lpage_info, made when somebody first looks at them, and the guest_memfd's file
pointer. A copy of a slot (the one flagged INVALID while a slot is deleted) shares both with its original, as in KVM.

Source: reference 1.2, 4.9, 11.4; virt/kvm/kvm_main.c (kvm_set_memslot), x86.c (kvm_alloc_memslot_metadata), mmu.c
(kvm_mmu_init_memslot_memory_attributes). Not modelled: dirty bitmaps, rmaps, write tracking, a second address space,
the two copies per address space that KVM alternates between (a new immutable set takes their place).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

from sim import Cell, Kernel, Srcu, Steps, free_cell
from sim.access import Access, LoadAcquire
from vcpu.addresses import LEVELS, PAGE_SHIFT, PG_LEVEL_1G, PG_LEVEL_2M, Gfn, PgLevel

if TYPE_CHECKING:
    from mmu.attributes import MemoryAttributes
    from mmu.gmem import GmemFile
    from mmu.host_memory import Hva

KVM_LPAGE_MIXED_FLAG = 1 << 31
"""The 4K pages of the huge page differ in their attributes."""
KVM_LPAGE_GUEST_INHIBIT_FLAG = 1 << 30
"""The guest accepted at a smaller size (huge-page profiles); never cleared."""
HUGE_LEVELS = (PG_LEVEL_2M, PG_LEVEL_1G)


class SlotFlag(IntFlag):
    """KVM_MEM_* and KVM_MEMSLOT_*."""

    NONE = 0
    LOG_DIRTY_PAGES = 1 << 0
    READONLY = 1 << 1
    GUEST_MEMFD = 1 << 2
    INVALID = 1 << 16
    GMEM_ONLY = 1 << 17


@dataclass(slots=True, eq=False)
class GmemBinding:
    """Where a slot's private memory is: the file (NULL once it is gone), and the slot's first index in it."""

    file: Cell[GmemFile | None]
    pgoff: int


class Memslot:
    """A range of guest frames with its backing.

    Args:
        userspace_addr: where the VMM maps the shared memory, in bytes.
        gmem: where the private memory is; set by `GmemFile.bind`.
        attributes: of the VM, to find the huge pages that are mixed from the start; None if there are none.
    """

    __slots__ = ("_lpage_info", "_mixed", "base_gfn", "flags", "gmem", "id", "npages", "userspace_addr")

    def __init__(
        self,
        id: int,  # noqa: A002 - the kernel's name
        base_gfn: int,
        npages: int,
        *,
        userspace_addr: Hva | int = 0,
        flags: SlotFlag = SlotFlag.NONE,
        attributes: MemoryAttributes | None = None,
    ) -> None:
        assert npages > 0
        self.id = id
        self.base_gfn = Gfn(base_gfn)
        self.npages = npages
        self.userspace_addr = userspace_addr
        self.flags = flags
        self.gmem: GmemBinding | None = None
        self._lpage_info: dict[tuple[int, int], Cell[int]] = {}
        self._mixed: set[tuple[int, int]] = set()
        if attributes is not None:
            self._init_mixed(attributes)

    def __str__(self) -> str:
        suffix = " INVALID" if self.invalid else ""
        return f"slot {self.id} [{self.base_gfn:#x}, {self.end_gfn:#x}){suffix}"

    @property
    def end_gfn(self) -> Gfn:
        """The first frame after the slot."""
        return Gfn(self.base_gfn + self.npages)

    @property
    def invalid(self) -> bool:
        """The slot is being deleted or moved: faults on it wait for the outcome."""
        return SlotFlag.INVALID in self.flags

    @property
    def readonly(self) -> bool:
        """The guest may not write shared memory here."""
        return SlotFlag.READONLY in self.flags

    @property
    def has_gmem(self) -> bool:
        """kvm_slot_can_be_private: a guest_memfd backs private memory."""
        return SlotFlag.GUEST_MEMFD in self.flags

    def __contains__(self, gfn: object) -> bool:
        return isinstance(gfn, int) and self.base_gfn <= gfn < self.end_gfn

    def contains_hugepage(self, gfn: int, level: PgLevel) -> bool:
        """Whether the huge page around `gfn` lies completely in the slot."""
        start = gfn & -level.pages
        return self.base_gfn <= start and start + level.pages <= self.end_gfn

    def hva_of(self, gfn: int) -> int:
        """Where the VMM maps a frame, in bytes."""
        return self.userspace_addr + (gfn - self.base_gfn << PAGE_SHIFT)

    def hva_to_gfn(self, hva: int) -> Gfn:
        """The frame that is mapped at a host virtual address."""
        return Gfn(self.base_gfn + (hva - self.userspace_addr >> PAGE_SHIFT))

    def gmem_index(self, gfn: int) -> int:
        """The frame's index in the guest_memfd."""
        assert self.gmem is not None, f"{self} has no guest_memfd"
        return gfn - self.base_gfn + self.gmem.pgoff

    def initial_disallow_lpage(self, level: PgLevel, gfn: int) -> int:
        """What the slot's creation put into lpage_info: reasons from alignment, and MIXED."""
        start = gfn & -level.pages
        reasons = 0 if self.contains_hugepage(gfn, level) else 1
        if (self.base_gfn ^ self.userspace_addr >> PAGE_SHIFT) & level.pages - 1:
            reasons = 1  # a huge page of the guest never meets one of the host
        return reasons | (KVM_LPAGE_MIXED_FLAG if (level, start) in self._mixed else 0)

    def disallow_lpage(self, level: PgLevel, gfn: int) -> Cell[int]:
        """The word that forbids the huge page of that level around `gfn`, if it is not 0 (lpage_info_slot)."""
        key = (level, gfn & -level.pages)
        cell = self._lpage_info.get(key)
        if cell is None:
            assert level in HUGE_LEVELS
            name = f"disallow_lpage[slot {self.id} {level.short} gfn {key[1]:#x}]"
            cell = self._lpage_info[key] = Cell(name, self.initial_disallow_lpage(level, gfn))
        return cell

    def peek_disallow_lpage(self, level: PgLevel, gfn: int) -> int:
        """The same for observers; makes no word."""
        cell = self._lpage_info.get((level, gfn & -level.pages))
        return self.initial_disallow_lpage(level, gfn) if cell is None else cell.v

    def maybe_mixed(self, level: PgLevel, start: int, end: int) -> list[Gfn]:
        """First frames of the huge pages in [start, end) whose MIXED flag must be read: all others never had it."""
        keys = self._mixed.union(self._lpage_info)
        return [Gfn(gfn) for at, gfn in sorted(keys) if at == level and start <= gfn < end]

    def invalidated(self) -> Memslot:
        """The copy that is installed while the slot is deleted."""
        return self.copy(flags=self.flags | SlotFlag.INVALID)

    def copy(self, *, flags: SlotFlag) -> Memslot:
        """kvm_copy_memslot, with other flags; lpage_info and the binding are shared with this one."""
        copy = Memslot(self.id, self.base_gfn, self.npages, userspace_addr=self.userspace_addr, flags=flags)
        copy.gmem = self.gmem
        copy._lpage_info = self._lpage_info
        copy._mixed = self._mixed
        return copy

    def free(self) -> None:
        """kvm_free_memslot, after SRCU readers have gone: lpage_info is poisoned."""
        for level in HUGE_LEVELS:
            for gfn in range(self.base_gfn & -level.pages, self.end_gfn, level.pages):
                free_cell(self.disallow_lpage(level, gfn))

    def _init_mixed(self, attributes: MemoryAttributes) -> None:
        """Only a huge page in which attributes change is mixed, so look at the changes instead of at all pages."""
        for change in attributes.changes(self.base_gfn, self.end_gfn):
            for level in HUGE_LEVELS:
                if change & level.pages - 1 and self.contains_hugepage(change, level):
                    self._mixed.add((level, change & -level.pages))


def hugepage_test_mixed(slot: Memslot, gfn: int, level: PgLevel) -> Steps[bool]:
    """Whether the huge page's attributes are mixed; under mmu_lock."""
    word = yield slot.disallow_lpage(level, gfn).read()
    return bool(word & KVM_LPAGE_MIXED_FLAG)


def hugepage_set_mixed(slot: Memslot, gfn: int, level: PgLevel) -> Steps[None]:
    """Note that the huge page's attributes are mixed: a plain read and write, under mmu_lock held for write."""
    cell = slot.disallow_lpage(level, gfn)
    word = yield cell.read()
    yield cell.write(word | KVM_LPAGE_MIXED_FLAG)


def hugepage_clear_mixed(slot: Memslot, gfn: int, level: PgLevel) -> Steps[None]:
    """Note that the huge page's attributes are all the same: see `hugepage_set_mixed`."""
    cell = slot.disallow_lpage(level, gfn)
    word = yield cell.read()
    yield cell.write(word & ~KVM_LPAGE_MIXED_FLAG)


class Memslots:
    """An immutable set of memslots that do not overlap, with the generation it was published in."""

    __slots__ = ("_starts", "generation", "slots")

    def __init__(self, slots: tuple[Memslot, ...] = (), generation: int = 0) -> None:
        self.slots = tuple(sorted(slots, key=lambda slot: slot.base_gfn))
        self.generation = generation
        self._starts = [slot.base_gfn for slot in self.slots]
        for one, other in zip(self.slots, self.slots[1:], strict=False):
            assert one.end_gfn <= other.base_gfn, f"{one} and {other} overlap"

    def __str__(self) -> str:
        return f"memslots generation {self.generation}"

    def __iter__(self) -> Iterator[Memslot]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)

    def find(self, gfn: int) -> Memslot | None:
        """gfn_to_memslot: the slot around a frame."""
        at = bisect_right(self._starts, gfn) - 1
        return self.slots[at] if at >= 0 and gfn < self.slots[at].end_gfn else None

    def by_id(self, slot_id: int) -> Memslot | None:
        """id_to_memslot."""
        return next((slot for slot in self.slots if slot.id == slot_id), None)

    def overlapping(self, start: int, end: int) -> list[Memslot]:
        """Slots that share a frame with [start, end), ascending."""
        return [slot for slot in self.slots if slot.base_gfn < end and start < slot.end_gfn]

    def overlapping_hva(self, start: int, end: int) -> list[tuple[Memslot, Gfn, Gfn]]:
        """Slots that map part of [start, end) of host virtual addresses, each with the frames concerned."""
        found = []
        for slot in self.slots:
            low = max(start, slot.userspace_addr)
            high = min(end, slot.userspace_addr + (slot.npages << PAGE_SHIFT))
            if low < high:
                found.append((slot, slot.hva_to_gfn(low), Gfn(slot.hva_to_gfn(high - 1) + 1)))
        return found

    def with_slot(self, slot: Memslot) -> Memslots:
        """The next set: `slot` added, or put in place of the one with its id."""
        return Memslots((*(old for old in self.slots if old.id != slot.id), slot), self.generation + 1)

    def without(self, slot_id: int) -> Memslots:
        """The next set: the slot of that id taken out."""
        return Memslots(tuple(old for old in self.slots if old.id != slot_id), self.generation + 1)


class MemslotsCell(Cell[Memslots]):
    """The word that says which set is current; a class of its own, so that observers find its readers."""

    __slots__ = ()


class MemslotsPointer:
    """kvm->memslots: the word that says which set is current, and the SRCU domain that keeps the others alive."""

    def __init__(self, kernel: Kernel, memslots: Memslots | None = None) -> None:
        self.srcu: Srcu = kernel.srcu("kvm.srcu")
        self.cell = MemslotsCell("kvm.memslots", memslots if memslots is not None else Memslots())

    def load(self) -> LoadAcquire[Memslots]:
        """srcu_dereference: read the current set, inside a read section of `srcu`."""
        self.srcu.assert_inside()
        return self.cell.load_acquire()

    def dereference_protected(self) -> LoadAcquire[Memslots]:
        """Read the current set under slots_lock."""
        return self.cell.load_acquire()

    def publish(self, memslots: Memslots) -> Access:
        """rcu_assign_pointer, under slots_lock; `srcu.synchronize()` before what only the old set needs is freed."""
        return self.cell.store_release(memslots)

    def peek(self) -> Memslots:
        """The current set, for observers."""
        return self.cell.peek()


def largest_allowed_level(slot: Memslot, gfn: int, max_level: PgLevel) -> Steps[PgLevel]:
    """The first part of kvm_mmu_max_mapping_level: go down while lpage_info forbids; under mmu_lock.

    Yields: one plain read a level from `max_level` (at most 1G) down to 2M, until one allows; none for 4K.
    """
    level = min(max_level, PG_LEVEL_1G)
    while level >= PG_LEVEL_2M:
        if not (yield slot.disallow_lpage(level, gfn).read()):
            break
        level = LEVELS[level - 1]
    return level
