"""MMU notifiers: the host's memory management takes pages from under shared mappings.

Only shared mappings can be meant: private memory has no host address. Between start and end the host changes its own
page tables; a fault in that window must not map what is going away.
Source: kvm_mmu_notifier_invalidate_range_start/_end, kvm_handle_hva_range(); reference 4.6.
"""

from __future__ import annotations

from mmu.events import UnmapHvaRange
from mmu.invalidate import kvm_mmu_invalidate_begin, kvm_mmu_invalidate_end, kvm_mmu_invalidate_range_add
from mmu.vm import Kvm
from mmu.zap import Filter, kvm_unmap_gfn_range
from sim import Steps
from vcpu.addresses import GfnRange


def invalidate_hva_range(kvm: Kvm, start: int, end: int) -> Steps[None]:
    """What munmap, migration or swap-out of host addresses [start, end) does: start, unmap, end."""
    yield from invalidate_range_start(kvm, start, end)
    for _, first, last in kvm.slots().overlapping_hva(start, end):
        kvm.promise_unmapped("an MMU notifier's start", GfnRange(first, last), direct=True, mirror=False)
    yield from kvm.primary.unmap(start, end)
    yield from invalidate_range_end(kvm, start, end)
    kvm.kernel.count("notifier.done")


def invalidate_range_start(kvm: Kvm, start: int, end: int) -> Steps[None]:
    """Count the window (memslot swaps wait for it), open it, zap, flush before mmu_lock goes."""
    if kvm.kernel.events is not None:
        kvm.kernel.emit(UnmapHvaRange(start, end))
    yield kvm.mn_invalidate_lock.lock()
    yield kvm.mn_active_invalidate_count.fetch_add(1)
    yield kvm.mn_invalidate_lock.unlock()
    yield kvm.srcu.read_lock()
    slots = yield kvm.memslots.load()
    ranges = [GfnRange(first, last) for _, first, last in slots.overlapping_hva(start, end)]
    if ranges:
        yield kvm.mmu_lock.write_lock()
        yield from kvm_mmu_invalidate_begin(kvm)
        flush = False
        for gfns in ranges:
            yield from kvm_mmu_invalidate_range_add(kvm, gfns.start, gfns.end)
            flush |= yield from kvm_unmap_gfn_range(kvm, gfns, Filter.SHARED)
        if flush:
            yield from kvm.flush_remote_tlbs()
        yield kvm.mmu_lock.write_unlock()
    yield kvm.srcu.read_unlock()


def invalidate_range_end(kvm: Kvm, start: int, end: int) -> Steps[None]:
    """Close the window."""
    if kvm.slots().overlapping_hva(start, end):
        yield kvm.mmu_lock.write_lock()
        yield from kvm_mmu_invalidate_end(kvm)
        yield kvm.mmu_lock.write_unlock()
    yield kvm.mn_invalidate_lock.lock()
    yield kvm.mn_active_invalidate_count.fetch_add(-1)
    yield kvm.mn_invalidate_lock.unlock()
