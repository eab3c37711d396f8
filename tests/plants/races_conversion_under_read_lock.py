"""A conversion opens and closes its invalidation window with mmu_lock held for read.

Source: virt/kvm/kvm_main.c, kvm_mmu_invalidate_begin() and _end() ("lockdep_assert_held_write(&kvm->mmu_lock)"); reference 11.3:
the window's words are plain, written under the write lock and read under the lock by faults.
"""

from mmu import conversion
from sim import replaces


@replaces(conversion._pre)
def _pre(kvm, slots, gfns, *, private):
    """C4 to C8; without the flush, which is not the point."""
    yield kvm.mmu_lock.read_lock()
    yield from conversion.kvm_mmu_invalidate_begin(kvm)
    for slot in slots:
        within = conversion._within(slot, gfns)
        yield from conversion.kvm_mmu_invalidate_range_add(kvm, within.start, within.end)
    yield kvm.mmu_lock.read_unlock()


@replaces(conversion._post)
def _post(kvm, slots, gfns, attributes):
    """C10."""
    yield kvm.mmu_lock.read_lock()
    yield from conversion.kvm_mmu_invalidate_end(kvm)
    yield kvm.mmu_lock.read_unlock()
