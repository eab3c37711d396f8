"""Memory attributes: the array (mem_attr_array) in which userspace says which frames are private.

One word a frame, absent meaning 0 meaning shared. Ranges that were set when the world was built are kept as intervals;
a frame's word is made when somebody first loads or stores it. So a check of a whole range reads the frames with words
one by one, and all others, which nobody has stored, in one access. Writers hold slots_lock; faults load without any.

Source: reference 1.1, 4.7, 11.4; virt/kvm/kvm_main.c (kvm_range_has_memory_attributes, kvm_vm_set_mem_attributes),
mmu.c (hugepage_has_attrs). Not modelled: the xarray's nodes; xa_reserve's allocations.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from mmu.memslots import hugepage_test_mixed
from sim import Cell, Kernel, Steps
from sim.access import Access, ReadOnce
from sim.dependence import READ, UPDATE, Touch, note
from vcpu.addresses import LEVELS, PG_LEVEL_2M, Gfn, PgLevel

if TYPE_CHECKING:
    from mmu.memslots import Memslot
    from sim import Thread

KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3
WORDS = "mem_attr_array.words"
"""For searches that reorder accesses: which frames have a word of their own."""


class LoadUntouched(Access):
    """Compare all frames of [start, end) that have no word of their own with one value; True if they have it."""

    __slots__ = ("attrs", "end", "start")
    verb = "xas_load"
    reads = True
    target: MemoryAttributes

    def __init__(self, target: MemoryAttributes, start: int, end: int, attrs: int) -> None:
        self.target = target
        self.start = start
        self.end = end
        self.attrs = attrs

    def perform(self, thread: Thread) -> bool:
        return self.target.untouched_have(self.start, self.end, self.attrs)

    def touches(self) -> tuple[Touch, ...]:
        return ((WORDS, READ),)


class MemoryAttributes:
    """The attributes of all frames of a VM."""

    PRIVATE = KVM_MEMORY_ATTRIBUTE_PRIVATE

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        # Intervals: [_starts[i], _starts[i + 1]) has _values[i]; the last one has no end.
        self._starts: list[int] = [0]
        self._values: list[int] = [0]
        self._cells: dict[int, Cell[int]] = {}

    def __str__(self) -> str:
        return "mem_attr_array"

    def set_initial(self, start: int, end: int, attrs: int) -> None:
        """Give the frames of [start, end) a value before the world runs."""
        assert 0 <= start < end
        assert not self._touched(start, end), "attributes are initial only before somebody has looked"
        after = self._initial(end)
        low, high = bisect_left(self._starts, start), bisect_left(self._starts, end)
        starts, values = [start, end], [attrs, after]
        if high < len(self._starts) and self._starts[high] == end:
            starts, values = [start], [attrs]
        self._starts[low:high] = starts
        self._values[low:high] = values

    def cell(self, gfn: int) -> Cell[int]:
        """The frame's word."""
        cell = self._cells.get(gfn)
        if cell is None:
            note(WORDS, UPDATE)
            cell = self._cells[gfn] = Cell(f"mem_attr[gfn {gfn:#x}]", self._initial(gfn))
        return cell

    def load(self, gfn: int) -> ReadOnce[int]:
        """xa_load (kvm_get_memory_attributes)."""
        return self.cell(gfn).read_once()

    def store(self, gfn: int, attrs: int) -> Access:
        """xa_store, under slots_lock."""
        return self.cell(gfn).write_once(attrs)

    def peek(self, gfn: int) -> int:
        """The frame's attributes, for observers; makes no word."""
        cell = self._cells.get(gfn)
        note(f"mem_attr[gfn {gfn:#x}]", READ)
        return self._initial(gfn) if cell is None else cell.v

    def peek_private(self, gfn: int) -> bool:
        """Whether the frame is private, for observers."""
        return bool(self.peek(gfn) & KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def mem_is_private(self, gfn: int) -> Steps[bool]:
        """kvm_mem_is_private: one load, without locks."""
        attrs = yield self.load(gfn)
        return bool(attrs & KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def range_has(self, start: int, end: int, attrs: int) -> Steps[bool]:
        """kvm_range_has_memory_attributes: whether every frame of [start, end) has exactly `attrs`.

        Yields: one access for all frames that nobody stored, then one load a frame that somebody did, up to the first
        that differs. Only under slots_lock is the answer still true when it is given.
        """
        same = yield LoadUntouched(self, start, end, attrs)
        if not same:
            return False
        for gfn in self._touched(start, end):
            if (yield self.load(gfn)) != attrs:
                return False
        return True

    def hugepage_has_attrs(self, slot: Memslot, gfn: int, level: PgLevel, attrs: int) -> Steps[bool]:
        """Whether a huge page consists of nothing but `attrs`: if not, it is MIXED (step C11, slots_lock held).

        2M asks the frames; 1G trusts the MIXED flags of its 2M pages and asks the first frame of each.
        """
        start = gfn & -level.pages
        end = start + level.pages
        if level == PG_LEVEL_2M:
            return (yield from self.range_has(start, end, attrs))
        child = LEVELS[level - 1]
        same = yield LoadUntouched(self, start, end, attrs)
        touched = {at & -child.pages for at in self._touched(start, end)}
        flagged = set(slot.maybe_mixed(child, start, end))
        for at in sorted(touched | flagged):
            if at in flagged and (yield from hugepage_test_mixed(slot, at, child)):
                return False
            if (yield self.load(at)) != attrs:
                return False
        return bool(same)

    def is_uniform(self, start: int, end: int) -> bool:
        """Whether all frames of [start, end) have equal attributes, for observers (recomputes MIXED, Q5)."""
        return not self.changes(start, end)

    def changes(self, start: int, end: int) -> list[Gfn]:
        """Frames of (start, end) whose attributes differ from the frame before, for observers and slot creation."""
        low, high = bisect_right(self._starts, start), bisect_left(self._starts, end)
        spots = set(self._starts[low:high])
        for gfn in self._touched(start, end):
            spots |= {gfn, gfn + 1}
        return [Gfn(at) for at in sorted(spots) if start < at < end and self.peek(at) != self.peek(at - 1)]

    def untouched_have(self, start: int, end: int, attrs: int) -> bool:
        """Whether all frames of [start, end) without a word have `attrs`. Never yields."""
        at = bisect_right(self._starts, start) - 1
        while at < len(self._starts) and self._starts[at] < end:
            low = max(start, self._starts[at])
            high = min(end, self._starts[at + 1]) if at + 1 < len(self._starts) else end
            if self._values[at] != attrs and len(self._touched(low, high)) < high - low:
                return False
            at += 1
        return True

    def _initial(self, gfn: int) -> int:
        return self._values[bisect_right(self._starts, gfn) - 1]

    def _touched(self, start: int, end: int) -> list[int]:
        note(WORDS, READ)
        cells = self._cells
        if len(cells) < end - start:
            return sorted(gfn for gfn in cells if start <= gfn < end)
        return [gfn for gfn in range(start, end) if gfn in cells]
