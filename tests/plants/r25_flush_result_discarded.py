"""R25: a zap says that a TLB flush is owed, and its caller does not listen.

Source: 048f49809c52 "KVM: x86/mmu: Ensure TLBs are flushed for TDP MMU during NX zapping". There the caller was the NX
recovery worker, which is not modelled; here it is the MMU notifier.
"""

from mmu import notifier
from mmu.invalidate import kvm_mmu_invalidate_begin, kvm_mmu_invalidate_range_add
from mmu.zap import Filter, kvm_unmap_gfn_range
from sim import replaces
from vcpu.addresses import GfnRange


@replaces(notifier.invalidate_range_start)
def invalidate_range_start(kvm, start, end):
    """Count, open the window, zap."""
    yield kvm.mn_invalidate_lock.lock()
    yield kvm.mn_active_invalidate_count.fetch_add(1)
    yield kvm.mn_invalidate_lock.unlock()
    yield kvm.srcu.read_lock()
    slots = yield kvm.memslots.load()
    ranges = [GfnRange(first, last) for _, first, last in slots.overlapping_hva(start, end)]
    if ranges:
        yield kvm.mmu_lock.write_lock()
        yield from kvm_mmu_invalidate_begin(kvm)
        for gfns in ranges:
            yield from kvm_mmu_invalidate_range_add(kvm, gfns.start, gfns.end)
            yield from kvm_unmap_gfn_range(kvm, gfns, Filter.SHARED)  # planted: the result is dropped
        yield kvm.mmu_lock.write_unlock()
    yield kvm.srcu.read_unlock()
