"""guest_memfd: the file that holds a VM's private memory, and the race between a fault and a punched hole.

An inode has folios by index. A fault finds or makes one and brings it up to date under the folio's lock; a hole in the
file takes folios out under the same lock and drops the file's reference. What a fault returns may be truncated a moment
later: the page stays allocated while the fault holds its reference, and only mmu_invalidate_seq tells that it is stale.

Lock order: slots_lock > invalidate_lock > folio lock; a fault takes the folio lock alone, nobody takes it inside mmu_lock.
Source: virt/kvm/guest_memfd.c; reference 3.3 (F27), 4.8. Upstream has folios of one page: `order=0`. Larger ones follow
the huge-page series: split when a hole covers only part of one.
Not modelled: mmap of the file, in-place conversion, NUMA policy, hwpoison handling beyond the flag, writeback.
"""

from __future__ import annotations

from mmu.errno import EFAULT, EHWPOISON, EINVAL, EIO, ENOMEM, Errno
from mmu.host_memory import ORDER_1G, ORDER_2M, HostMemory
from mmu.memslots import GmemBinding, Memslot
from sim import Cell, Kernel, Mutex, Steps
from sim.dependence import WRITE, note
from vcpu.addresses import Pfn


class GmemFolio:
    """A folio of the file.

    Attributes:
        lock: protects the others.
        mapped: it is still in the file (folio->mapping); cleared by truncation.
        uptodate: it was zeroed, and may be given to the guest.
        hwpoison: the hardware reported the memory broken; tests set it.
    """

    __slots__ = ("hwpoison", "index", "lock", "mapped", "order", "pfn", "uptodate")

    def __init__(self, kernel: Kernel, index: int, pfn: Pfn, order: int, *, uptodate: bool = False) -> None:
        self.index = index
        self.pfn = pfn
        self.order = order
        self.hwpoison = False
        self.lock: Mutex = kernel.mutex(f"gmem.folio[{index:#x}].lock", "gmem.folio")
        self.mapped: Cell[bool] = Cell(f"gmem.folio[{index:#x}].mapping", True)
        self.uptodate: Cell[bool] = Cell(f"gmem.folio[{index:#x}].uptodate", uptodate)

    def __str__(self) -> str:
        return f"folio[index {self.index:#x} pfn {self.pfn:#x} order {self.order}]"


class GmemInode:
    """The file's memory.

    Args:
        pages: size of the file.
        order: of the folios it allocates: 0 (upstream), 9 or 18.

    Attributes:
        invalidate_lock: filemap_invalidate_lock: held for write by holes, binding and release, for read by populating.
        nrpages: pages in the file; changes together with the word of the folio.
        files: open files with bindings to VMs.
    """

    def __init__(self, kernel: Kernel, host_memory: HostMemory, pages: int, order: int = 0) -> None:
        assert order in {0, ORDER_2M, ORDER_1G}
        self.kernel = kernel
        self.host_memory = host_memory
        self.pages = pages
        self.order = order
        self.invalidate_lock = kernel.rwsem("gmem.invalidate_lock")
        self.nrpages: Cell[int] = Cell("gmem.nrpages", 0)
        self.files: list[GmemFile] = []
        self._cells: dict[tuple[int, int], Cell[GmemFolio | None]] = {}
        self._split: set[int] = set()

    def cell(self, index: int) -> Cell[GmemFolio | None]:
        """The word of the file that holds the folio around an index."""
        start = index >> self.order << self.order
        order = 0 if start in self._split else self.order
        key = (index >> order << order, order)
        cell = self._cells.get(key)
        if cell is None:
            cell = self._cells[key] = Cell(f"gmem.pages[{key[0]:#x}]", None)
        return cell

    def folio_order(self, index: int) -> int:
        """The order of the folio that the file has, or would allocate, at an index."""
        return 0 if index >> self.order << self.order in self._split else self.order

    def folios(self) -> list[GmemFolio]:
        """The folios in the file, ascending, for observers."""
        found = [self._cells[key].v for key in sorted(self._cells)]
        return [folio for folio in found if folio is not None]

    def peek(self, index: int) -> GmemFolio | None:
        """The folio around an index, for observers."""
        order = self.folio_order(index)
        cell = self._cells.get((index >> order << order, order))
        return None if cell is None else cell.v

    def peek_pfn(self, index: int) -> Pfn | None:
        """The frame of an index, for observers."""
        folio = self.peek(index)
        return None if folio is None else Pfn(folio.pfn + index - folio.index)

    def folio_put(self, pfn: int) -> None:
        """Drop a reference that `kvm_gmem_get_pfn` gave; by any frame of the folio. Never yields."""
        self.host_memory.put_page(pfn)

    def get_folio(self, index: int) -> Steps[GmemFolio | Errno]:
        """kvm_gmem_get_folio: the folio around an index, locked and with a reference; made if there is none.

        Yields: per try the look-up, the lock, and a check that it was not truncated meanwhile; a new folio costs a lock
        and a cmpxchg instead, and a lost race another try.
        Returns: EFAULT beyond the end of the file, ENOMEM.
        """
        memory = self.host_memory
        if index >= self.pages:
            yield self.nrpages.read_once()
            return EFAULT
        while True:
            cell = self.cell(index)
            folio: GmemFolio | None = yield cell.read_once()
            if folio is not None:
                memory.get_page(folio.pfn)  # in the look-up's step: filemap_get_folio looks again after it
                yield folio.lock.lock()
                if (yield folio.mapped.read()):
                    return folio
                self.kernel.reached("a fault found its gmem folio truncated")
                yield folio.lock.unlock()
                memory.put_page(folio.pfn)
                continue
            order = self.folio_order(index)
            pfn = memory.try_alloc(order, "gmem")
            if pfn is None:
                return ENOMEM
            fresh = GmemFolio(self.kernel, index >> order << order, pfn, order)
            yield fresh.lock.lock()
            raced = (yield cell.cmpxchg(None, fresh)) is not None
            if not raced and cell is self.cell(index):
                note(self.nrpages.name, WRITE)
                self.nrpages.v += 1 << order
                memory.get_page(pfn)  # one reference is the file's
                return fresh
            if not raced:
                note(cell.name, WRITE)
                cell.v = None
            yield fresh.lock.unlock()
            memory.free(pfn, order)

    def truncate_range(self, start: int, end: int) -> Steps[None]:
        """truncate_inode_pages_range: take the pages [start, end) out of the file, waiting for each folio's lock.

        The caller holds invalidate_lock for write and has zapped the range everywhere. A folio that sticks out is
        split; if somebody else refers to it, its pages in the range are zeroed and stay.
        """
        self.invalidate_lock.assert_held_for_write()
        if not (yield self.nrpages.read_once()):
            return
        for key in sorted(self._cells):
            first, order = key
            if not (first < end and start < first + (1 << order)):
                continue
            folio = yield self._cells[key].read_once()
            if folio is None:
                continue
            self.host_memory.get_page(folio.pfn)
            yield folio.lock.lock()
            if start <= first and first + (1 << order) <= end:
                yield from self._remove(self._cells[key], folio)
                yield folio.lock.unlock()
                self.host_memory.put_page(folio.pfn)
            else:
                yield from self._truncate_partial(folio, max(start, first), min(end, first + (1 << order)))

    def _remove(self, cell: Cell[GmemFolio | None], folio: GmemFolio) -> Steps[None]:
        """Take a locked folio out of the file, and drop the file's reference."""
        yield folio.mapped.write(False)
        yield cell.write_once(None)
        note(self.nrpages.name, WRITE)
        self.nrpages.v -= 1 << folio.order
        self.host_memory.put_page(folio.pfn)

    def _truncate_partial(self, folio: GmemFolio, start: int, end: int) -> Steps[None]:
        """truncate_inode_partial_folio: the caller has locked the folio and has a reference, which this drops."""
        memory = self.host_memory
        uptodate = yield folio.uptodate.read()
        cell = self._cells[folio.index, folio.order]

        def freeze(held: GmemFolio | None) -> GmemFolio | None:
            return held if memory.refs(folio.pfn) > 2 else None  # the file's, and the caller's

        yield cell.update(freeze, "freeze and split")
        if cell.v is not None:
            self.kernel.reached("a gmem folio could not be split")
            for index in range(start, end):
                memory.clear(folio.pfn + index - folio.index, 0)
            yield folio.lock.unlock()
            memory.put_page(folio.pfn)
            return
        memory.put_page(folio.pfn)
        memory.split(folio.pfn, folio.order)
        note(cell.name, WRITE)  # whoever looks this index up next looks at another word
        self._split.add(folio.index)
        for offset in range(1 << folio.order):
            index = folio.index + offset
            if start <= index < end:
                memory.free(folio.pfn + offset)
                note(self.nrpages.name, WRITE)
                self.nrpages.v -= 1
            else:
                page = GmemFolio(self.kernel, index, Pfn(folio.pfn + offset), 0, uptodate=uptodate)
                self.cell(index).v = page  # one section with the store above: xas_split
        yield folio.lock.unlock()


class GmemFile:
    """An open guest_memfd of one VM: which slot each index belongs to.

    `refs` is the struct file's reference count; at 0 nobody can get it any more (get_file_active).
    """

    def __init__(self, inode: GmemInode, name: str = "gmem.file") -> None:
        self.inode = inode
        self.name = name
        self.refs: Cell[int] = Cell(f"{name}.refs", 1)
        self._bindings: list[tuple[int, int, Cell[Memslot | None]]] = []
        self._unbound: Cell[Memslot | None] = Cell(f"{name}.bindings[none]", None)
        inode.files.append(self)

    def __str__(self) -> str:
        return self.name

    def attach(self, slot: Memslot, pgoff: int = 0) -> None:
        """Bind a slot while the world is built (`bind` does it while it runs)."""
        slot.gmem = GmemBinding(Cell(f"slot {slot.id}.gmem.file", self), pgoff)
        self._bind(slot, pgoff).v = slot

    def bind(self, slot: Memslot, pgoff: int = 0) -> Steps[int]:
        """kvm_gmem_bind, before the slot is published: 0, or -EINVAL if the range is outside or taken."""
        yield self.inode.invalidate_lock.write_lock()
        result = 0
        if pgoff + slot.npages > self.inode.pages or self.slots_in(pgoff, pgoff + slot.npages):
            result = -EINVAL
        else:
            slot.gmem = GmemBinding(Cell(f"slot {slot.id}.gmem.file", self), pgoff)
            yield self._bind(slot, pgoff).write_once(slot)
        yield self.inode.invalidate_lock.write_unlock()
        return result

    def unbind(self, slot: Memslot) -> Steps[None]:
        """Clear the slot's file pointer and its bindings (__kvm_gmem_unbind); under invalidate_lock held for write."""
        self.inode.invalidate_lock.assert_held_for_write()
        assert slot.gmem is not None
        yield self.binding(slot.gmem.pgoff).write_once(None)
        yield slot.gmem.file.write_once(None)

    def _bind(self, slot: Memslot, pgoff: int) -> Cell[Memslot | None]:
        end = pgoff + slot.npages
        assert end <= self.inode.pages, f"{slot} reaches beyond the end of {self}"
        assert not self.slots_in(pgoff, end), f"{slot} shares memory of {self}"
        cell: Cell[Memslot | None] = Cell(f"{self.name}.bindings[{pgoff:#x}, {end:#x})", None)
        self._bindings = [entry for entry in self._bindings if entry[1] <= pgoff or end <= entry[0]]
        self._bindings.append((pgoff, end, cell))
        return cell

    def binding(self, index: int) -> Cell[Memslot | None]:
        """The word that says whose an index is (xa_load, xa_store_range on `bindings`)."""
        for start, end, cell in self._bindings:
            if start <= index < end:
                return cell
        return self._unbound

    def slots_in(self, start: int, end: int) -> list[tuple[Memslot, int, int]]:
        """Bound slots that share [start, end) of the file, each with the indices concerned; under invalidate_lock."""
        bound = []
        for low, high, cell in self._bindings:
            if cell.v is not None and low < end and start < high:
                bound.append((cell.v, max(low, start), min(high, end)))
        return bound


def get_file_active(file_cell: Cell[GmemFile | None]) -> Steps[GmemFile | None]:
    """The file with a reference, or None where it is gone or going."""
    file = yield file_cell.load_acquire()
    if file is None:
        return None
    had = yield file.refs.update(lambda refs: refs + 1 if refs else 0, "inc_not_zero")
    return file if had else None


def kvm_gmem_get_pfn(
    file_cell: Cell[GmemFile | None], slot: Memslot, gfn: int
) -> Steps[tuple[Pfn, int] | Errno]:
    """The frame that backs a private gfn, and the order of what surrounds it; or an Errno.

    The frame comes with a reference (fault->refcounted_page): drop it by `folio_put`. Steps:

    F27a  a live reference to the file: none is EFAULT
    F27b  the slot still points to that file (else EFAULT), and the file's binding to the slot (else EIO)
    F27c  the folio, made if there is none, locked; waits for a truncation of the same folio
    F27d  broken memory is EHWPOISON; the frame; the order, 0 upstream, lowered where gfn and frame are not aligned alike
    F27e  zeroed unless up to date, marked up to date; unlocked. The reference stays.

    Cost: `gmem_alloc_clear_4k` a page or `clear_2m_contiguous` per 2M that is zeroed.
    """
    index = slot.gmem_index(gfn)
    file = yield from get_file_active(file_cell)  # F27a
    if file is None:
        return EFAULT
    result = yield from _get_pfn(file, file_cell, slot, gfn, index)
    yield file.refs.fetch_add(-1)
    return result


def _get_pfn(
    file: GmemFile, file_cell: Cell[GmemFile | None], slot: Memslot, gfn: int, index: int
) -> Steps[tuple[Pfn, int] | Errno]:
    inode = file.inode
    if (yield file_cell.read_once()) is not file:  # F27b
        return EFAULT
    bound = yield file.binding(index).read_once()
    if bound is not slot:
        return EIO
    folio = yield from inode.get_folio(index)  # F27c
    if isinstance(folio, Errno):
        return folio
    if folio.hwpoison:  # F27d
        yield folio.lock.unlock()
        inode.folio_put(folio.pfn)
        return EHWPOISON
    pfn = Pfn(folio.pfn + index - folio.index)
    order = folio.order
    while order and (gfn ^ pfn) & (1 << order) - 1:
        order -= ORDER_2M
    if not (yield folio.uptodate.read()):  # F27e
        inode.host_memory.clear(folio.pfn, folio.order)
        yield folio.uptodate.write(True)
    yield folio.lock.unlock()
    return pfn, order


__all__ = ["GmemFile", "GmemFolio", "GmemInode", "get_file_active", "kvm_gmem_get_pfn"]
