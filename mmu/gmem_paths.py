"""What guest_memfd does to KVM: punching holes, closing the file, and back.

Order is everything: window open, S-EPT removal (with its write-back), page given back, window closed. A fault that still
holds the old frame took its snapshot before the window closed, and is found stale.
Source: virt/kvm/guest_memfd.c, kvm_gmem_punch_hole(), kvm_gmem_release(); reference 4.8.
"""

from __future__ import annotations

from mmu.gmem import GmemFile
from mmu.invalidate import kvm_mmu_invalidate_begin, kvm_mmu_invalidate_end, kvm_mmu_invalidate_range_add
from mmu.vm import Kvm
from mmu.zap import Filter, kvm_unmap_gfn_range
from sim import Steps
from vcpu.addresses import Gfn, GfnRange


def kvm_gmem_punch_hole(kvm: Kvm, file: GmemFile, start: int, end: int) -> Steps[None]:
    """fallocate(PUNCH_HOLE) of the file's pages [start, end)."""
    lock = file.inode.invalidate_lock
    yield lock.write_lock()
    yield from kvm_gmem_invalidate_begin(kvm, file, start, end)
    for gfns in bound_ranges(file, start, end):
        kvm.promise_unmapped("fallocate(PUNCH_HOLE)", gfns, direct=False, mirror=True)
    yield from file.inode.truncate_range(start, end)
    yield from kvm_gmem_invalidate_end(kvm, file, start, end)
    yield lock.write_unlock()
    kvm.kernel.count("punch_hole.done")


def kvm_gmem_invalidate_begin(kvm: Kvm, file: GmemFile, start: int, end: int) -> Steps[None]:
    """Open the window and zap what maps the pages; flushed before mmu_lock goes."""
    ranges = bound_ranges(file, start, end)
    if not ranges:
        return
    yield kvm.mmu_lock.write_lock()
    yield from kvm_mmu_invalidate_begin(kvm)
    flush = False
    for gfns in ranges:
        yield from kvm_mmu_invalidate_range_add(kvm, gfns.start, gfns.end)
        flush |= yield from kvm_unmap_gfn_range(kvm, gfns, Filter.PRIVATE)
    if flush:
        yield from kvm.flush_remote_tlbs()
    yield kvm.mmu_lock.write_unlock()


def kvm_gmem_invalidate_end(kvm: Kvm, file: GmemFile, start: int, end: int) -> Steps[None]:
    """Close the window."""
    if not bound_ranges(file, start, end):
        return
    yield kvm.mmu_lock.write_lock()
    yield from kvm_mmu_invalidate_end(kvm)
    yield kvm.mmu_lock.write_unlock()


def bound_ranges(file: GmemFile, start: int, end: int) -> list[GfnRange]:
    """The guest frames that the file's pages [start, end) are bound to, by slot."""
    ranges = []
    for slot, low, high in file.slots_in(start, end):
        first = slot.base_gfn - slot.gmem_index(slot.base_gfn)
        ranges.append(GfnRange(Gfn(first + low), Gfn(first + high)))
    return ranges
