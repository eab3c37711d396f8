"""The host's memory: who owns which frame, and what the VMM's page tables map for memory that is shared.

`HostMemory` is a buddy allocator over frame numbers. Allocating, freeing and reference counting are parts of the
caller's step (the kernel's allocator has locks of its own which nothing here depends on), so they are plain calls. A
freed frame is handed out again at once, most recently freed first, as per-CPU lists do: whoever still uses it is seen.

`PrimaryMmu` is the VMM process's address space: one word a folio, so that GUP and unmapping race as they do in Linux.
Contents are another layer's (vcpu.memory): it hooks into `on_alloc`, `on_clear` and `on_free`.

Not modelled: NUMA, migration, swap (an unmap and a new fault are both), copy-on-write, mmap_lock.
Source: mm/page_alloc.c, mm/gup.c, mm/memory.c; reference 3.3 (F27, the shared branch).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, NewType

from sim import Cell, Kernel, ModelBug, Steps
from sim.dependence import READ, UPDATE, WRITE, note
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Pfn, PgLevel

Hva = NewType("Hva", int)
"""Host virtual address in bytes, of the VMM's address space."""

ORDER_4K = 0
ORDER_2M = 9
ORDER_1G = 18
FIRST_PFN = 512
"""Frame numbers start here: 0 is nobody's frame, and the first 2M block is aligned."""


def level_for_order(order: int) -> PgLevel:
    """kvm_max_level_for_order: the largest mapping that a folio of 2**order pages can back."""
    if order >= ORDER_1G:
        return PG_LEVEL_1G
    return PG_LEVEL_2M if order >= ORDER_2M else PG_LEVEL_4K


FRAMES = "frames"
"""For searches that reorder accesses: who gets which frame depends on the order of allocations."""


def _frame(pfn: int) -> str:
    """For searches that reorder accesses: a block of frames, by its first."""
    return f"frame[{pfn:#x}]"


class Allocation:
    """A block of 2**order frames in use: what for, and how many references keep it."""

    __slots__ = ("order", "refs", "what")

    def __init__(self, order: int, what: str) -> None:
        self.order = order
        self.what = what
        self.refs = 1


class HostMemory:
    """All frames of the host.

    Args:
        pages: how many frames there are, from `FIRST_PFN` on.

    Attributes:
        may_fail: asked before every allocation that may fail, with what it is for; True makes it fail. None: never.
        on_alloc, on_clear, on_free: called with (pfn, pages) when frames are handed out, zeroed, given back.
    """

    def __init__(self, kernel: Kernel, pages: int) -> None:
        self.kernel = kernel
        self.pages = pages
        self.end = FIRST_PFN + pages
        self.may_fail: Callable[[str], bool] | None = None
        self.on_alloc: list[Callable[[Pfn, int], object]] = []
        self.on_clear: list[Callable[[Pfn, int], object]] = []
        self.on_free: list[Callable[[Pfn, int], object]] = []
        self.in_use = 0
        self._untouched = FIRST_PFN
        self._free: dict[int, dict[int, None]] = {}
        self._blocks: dict[int, Allocation] = {}
        self._orders: list[int] = [0]

    def alloc(self, order: int = 0, what: str = "page") -> Pfn:
        """Take 2**order frames, aligned to their size, with one reference; this one does not fail.

        Raises: ModelBug: the world was built with too few frames.
        """
        block = self._take(order)
        if block is None:
            raise ModelBug(
                f"no {1 << order} frames left of {self.pages} for {what}: build the world with more"
            )
        return self._hand_out(block, order, what)

    def try_alloc(self, order: int = 0, what: str = "page") -> Pfn | None:
        """Like `alloc`, or None where memory is short or a failure was injected (`may_fail`)."""
        if self.may_fail is not None and self.may_fail(what):
            return None
        block = self._take(order)
        return None if block is None else self._hand_out(block, order, what)

    def _hand_out(self, block: int, order: int, what: str) -> Pfn:
        note(_frame(block), WRITE)
        self._blocks[block] = Allocation(order, what)
        if order not in self._orders:
            self._orders.append(order)
        self.in_use += 1 << order
        for hook in self.on_alloc:
            hook(Pfn(block), 1 << order)
        return Pfn(block)

    def _take(self, order: int) -> int | None:
        note(FRAMES, WRITE)
        for size, blocks in sorted(self._free.items()):
            if size >= order and blocks:
                block, _ = blocks.popitem()
                while size > order:  # keep the lower half, give back the upper
                    size -= 1
                    self._free.setdefault(size, {})[block + (1 << size)] = None
                return block
        start = -(-self._untouched >> order) << order
        if start + (1 << order) > self.end:
            return None
        while self._untouched < start:  # the gap in front of an aligned block stays usable
            size = (self._untouched & -self._untouched).bit_length() - 1
            self._free.setdefault(size, {})[self._untouched] = None
            self._untouched += 1 << size
        self._untouched = start + (1 << order)
        return start

    def free(self, pfn: int, order: int = 0) -> None:
        """Give a block back, whose only reference is the caller's."""
        block = self._blocks.get(pfn)
        if block is None or block.order != order:
            self.kernel.find("uaf-page", f"frames {self.describe(pfn)} are freed as a block of order {order}")
            return
        if block.refs != 1:
            self.kernel.find("refcount", f"{self.describe(pfn)} is freed with {block.refs} references")
        self._release(pfn, order)

    def _release(self, pfn: int, order: int) -> None:
        note(FRAMES, WRITE)
        note(_frame(pfn), WRITE)
        del self._blocks[pfn]
        self.in_use -= 1 << order
        for hook in self.on_free:
            hook(Pfn(pfn), 1 << order)
        block, size = pfn, order
        while (block ^ 1 << size) in self._free.get(size, ()):
            del self._free[size][block ^ 1 << size]
            block &= ~(1 << size)
            size += 1
        self._free.setdefault(size, {})[block] = None

    def get_page(self, pfn: int) -> None:
        """Take a reference to the block of a frame."""
        head = self._head(pfn)
        if head is None:
            self.kernel.find("uaf-page", f"{self.describe(pfn)} is taken a reference to")
        else:
            note(_frame(head), UPDATE)
            self._blocks[head].refs += 1

    def put_page(self, pfn: int) -> None:
        """Drop a reference to the block of a frame; the last one frees it."""
        head = self._head(pfn)
        if head is None:
            self.kernel.find("refcount", f"{self.describe(pfn)} is dropped a reference to")
            return
        note(_frame(head), UPDATE)  # the order of two shows only if one of them is the last, which is a store
        block = self._blocks[head]
        block.refs -= 1
        if not block.refs:
            self._release(head, block.order)

    def refs(self, pfn: int) -> int:
        """References to the block of a frame, for observers and for whoever holds the folio lock; 0 if it is free."""
        head = self._head(pfn)
        note(_frame(pfn if head is None else head), READ)
        return 0 if head is None else self._blocks[head].refs

    def split(self, pfn: int, order: int) -> None:
        """Make single frames, with one reference each, of a block with one reference."""
        note(_frame(pfn), WRITE)
        block = self._blocks.pop(pfn)
        assert block.order == order, f"{pfn:#x} is of order {block.order}"
        assert block.refs == 1, f"{pfn:#x} has {block.refs} references"
        for frame in range(pfn, pfn + (1 << order)):
            self._blocks[frame] = Allocation(0, block.what)

    def clear(self, pfn: int, order: int) -> None:
        """Zero a block; spends the time it takes, and yields nothing (nobody else knows the block yet)."""
        self.touch(pfn, "cleared")
        if order < ORDER_2M:
            for _ in range(1 << order):
                self.kernel.charge("gmem_alloc_clear_4k")
        else:
            for _ in range(1 << order - ORDER_2M):
                self.kernel.charge("clear_2m_contiguous")
        for hook in self.on_clear:
            hook(Pfn(pfn), 1 << order)

    def touch(self, pfn: int, how: str = "used") -> None:
        """Say that somebody uses a frame: a finding if it is nobody's."""
        if self._head(pfn) is None:
            self.kernel.find("uaf-page", f"{self.describe(pfn)} is {how}")

    def frames_of(self, what: str) -> int:
        """How many frames are in use for that, for observers."""
        return sum(1 << block.order for block in self._blocks.values() if block.what == what)

    def owner(self, pfn: int) -> str | None:
        """What the frame was allocated for; None if it is free."""
        head = self._head(pfn)
        return None if head is None else self._blocks[head].what

    def block(self, pfn: int) -> tuple[Pfn, int] | None:
        """First frame and order of the block of a frame; None if it is free."""
        head = self._head(pfn)
        return None if head is None else (Pfn(head), self._blocks[head].order)

    def describe(self, pfn: int) -> str:
        """`pfn 0x200 (gmem)`, for reports."""
        return f"pfn {pfn:#x} ({self.owner(pfn) or 'free'})"

    def _head(self, pfn: int) -> int | None:
        blocks = self._blocks
        for order in self._orders:
            head = pfn >> order << order
            block = blocks.get(head)
            if block is not None and pfn < head + (1 << block.order):
                return head
        return None


class Vma(NamedTuple):
    """Part of the VMM's address space, backed by folios of 2**folio_order pages."""

    hva_start: Hva
    pages: int
    folio_order: int = 0

    @property
    def hva_end(self) -> Hva:
        """First byte after it."""
        return Hva(self.hva_start + (self.pages << PAGE_SHIFT))


class HostFolio(NamedTuple):
    """What a word of the primary MMU maps."""

    pfn: Pfn
    order: int


SPLIT = HostFolio(Pfn(0), -1)
"""The word of a folio that was split: its pages have words of their own."""


class PrimaryMmu:
    """The VMM's page tables: which folio backs which host virtual address.

    One word a folio, made when it is first looked at. `fault_in` returns pages with a reference that the caller drops
    by `HostMemory.put_page`; the mapping has one reference too, which `unmap` drops.
    """

    def __init__(self, kernel: Kernel, host_memory: HostMemory) -> None:
        self.kernel = kernel
        self.host_memory = host_memory
        self.vmas: list[Vma] = []
        self.page_table_lock = kernel.spinlock("page_table_lock")
        self._cells: dict[tuple[int, int], Cell[HostFolio | None]] = {}

    def map(self, vma: Vma) -> None:
        """Add a VMA (world building); nothing is allocated before somebody touches it."""
        align = PAGE_SHIFT + vma.folio_order
        assert not vma.hva_start & (1 << align) - 1, f"hva {vma.hva_start:#x} is not aligned to its folios"
        assert all(vma.hva_end <= other.hva_start or other.hva_end <= vma.hva_start for other in self.vmas)
        self.vmas.append(vma)

    def vma(self, hva: int) -> Vma:
        """The VMA around an address.

        Raises: ModelBug: there is none; a memslot of this model always has one.
        """
        for vma in self.vmas:
            if vma.hva_start <= hva < vma.hva_end:
                return vma
        raise ModelBug(f"no VMA at hva {hva:#x}")

    def cell(self, hva: int, order: int) -> Cell[HostFolio | None]:
        """The word that maps the folio of that order around `hva`."""
        key = (hva >> PAGE_SHIFT + order, order)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = Cell(f"pte[hva {key[0] << PAGE_SHIFT + order:#x}]", None)
        return cell

    def fault_in(self, hva: int) -> Steps[tuple[Pfn, int]]:
        """GUP: the frame behind `hva`, with a reference, and its folio's order; allocates at the first touch.

        Yields: the look-up (two if the folio was split); where nothing is mapped, one cmpxchg that maps a new folio.
        """
        cell = self.cell(hva, self.vma(hva).folio_order)
        order = self.vma(hva).folio_order
        folio = yield cell.read_once()
        if folio == SPLIT:
            order = 0
            cell = self.cell(hva, 0)
            folio = yield cell.read_once()
        if folio is None:
            fresh = HostFolio(self.host_memory.alloc(order, "user"), order)
            self.host_memory.clear(fresh.pfn, order)
            folio = yield cell.cmpxchg(None, fresh)
            if folio is None:
                folio = fresh
            else:  # somebody else was first
                self.host_memory.free(fresh.pfn, order)
        self.host_memory.get_page(folio.pfn)
        return Pfn(folio.pfn | hva >> PAGE_SHIFT & (1 << folio.order) - 1), folio.order

    def host_mapping_level(self, hva: int) -> Steps[PgLevel]:
        """host_pfn_mapping_level: how large the host maps `hva` now; 4K where it maps nothing."""
        folio = yield self.cell(hva, self.vma(hva).folio_order).read_once()
        return PG_LEVEL_4K if folio is None or folio == SPLIT else level_for_order(folio.order)

    def unmap(self, start: int, end: int) -> Steps[None]:
        """Unmap [start, end) of host virtual addresses, splitting folios that stick out, and drop the references.

        The secondary MMU has been told before (mmu notifier): afterwards the frames may be anybody's.
        """
        yield self.page_table_lock.lock()
        for vma in self.vmas:
            order = vma.folio_order
            size = 1 << PAGE_SHIFT + order
            for key in sorted(self._cells):
                hva = key[0] << PAGE_SHIFT + key[1]
                inside = key[1] == order and vma.hva_start <= hva < vma.hva_end
                if not (inside and hva < end and start < hva + size):
                    continue
                if order and not (start <= hva and hva + size <= end):
                    yield from self._split(hva, order)
                    continue
                folio = yield self._cells[key].xchg(None)
                if folio == SPLIT:
                    yield from self._unmap_pages(start, end, hva, size)
                elif folio is not None:
                    self.host_memory.put_page(folio.pfn)
            yield from self._unmap_pages(start, end, vma.hva_start, vma.pages << PAGE_SHIFT if order else 0)
        yield self.page_table_lock.unlock()

    def _unmap_pages(self, start: int, end: int, hva: int, size: int) -> Steps[None]:
        """Unmap the single pages of [start, end) that lie in [hva, hva + size)."""
        low, high = max(start, hva) >> PAGE_SHIFT, min(end, hva + size) >> PAGE_SHIFT
        for key in sorted(key for key in self._cells if key[1] == 0 and low <= key[0] < high):
            folio = yield self._cells[key].xchg(None)
            if folio is not None:
                self.host_memory.put_page(folio.pfn)

    def _split(self, hva: int, order: int) -> Steps[None]:
        """Let single pages map what a folio mapped; the folio stays one block while somebody else refers to it."""
        cell = self.cell(hva, order)
        folio = yield cell.read_once()
        if folio is None or folio == SPLIT:
            return
        yield cell.write_once(SPLIT)  # only unmapping takes a folio away, and it holds the lock
        memory = self.host_memory
        whole = memory.refs(folio.pfn) > 1
        if not whole:
            memory.split(folio.pfn, order)
        for page in range(1 << order):
            if whole:
                memory.get_page(folio.pfn)
            small = self.cell(hva + (page << PAGE_SHIFT), 0)
            small.v = HostFolio(Pfn(folio.pfn + page), 0)  # in the step that made it reachable
        if whole:
            memory.put_page(folio.pfn)
