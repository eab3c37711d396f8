"""KVM_SET_MEMORY_ATTRIBUTES: private to shared and back, steps C1 to C11 of the reference (4.7).

The range stays inside an invalidation window from before the zap (C4) until after the attributes are stored (C10), so
a fault meets the window, or took its snapshot before it and is found stale.
Source: virt/kvm/kvm_main.c, kvm_vm_set_mem_attributes(); mmu.c, kvm_arch_pre/post_set_memory_attributes().
"""

from __future__ import annotations

from mmu.errno import Errno
from mmu.events import SetMemAttributes
from mmu.invalidate import kvm_mmu_invalidate_begin, kvm_mmu_invalidate_end, kvm_mmu_invalidate_range_add
from mmu.memslots import Memslot, hugepage_clear_mixed, hugepage_set_mixed, hugepage_test_mixed
from mmu.vm import Kvm
from mmu.zap import Filter, kvm_unmap_gfn_range
from sim import Steps
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, Gfn, GfnRange


def kvm_vm_set_mem_attributes(kvm: Kvm, gfns: GfnRange, *, private: bool) -> Steps[int]:
    """Make every frame of `gfns` private or shared; returns 0 or a negative errno. Takes slots_lock.

    Cost: `kvm_user_exit` for the ioctl; zapping costs what its steps cost.
    """
    kernel = kvm.kernel
    began_ns = kernel.now_ns
    attributes = kvm.attributes.PRIVATE if private else 0
    if kernel.events is not None:
        kernel.emit(SetMemAttributes(gfns.start, gfns.end, attributes))  # C1
    yield kvm.slots_lock.lock()
    if (yield from kvm.attributes.range_has(gfns.start, gfns.end, attributes)):  # C2
        yield kvm.slots_lock.unlock()
        return 0
    if kvm.host_memory.may_fail is not None and kvm.host_memory.may_fail("mem_attr_array"):  # C3
        yield kvm.slots_lock.unlock()
        return -Errno.ENOMEM
    slots = kvm.slots().overlapping(gfns.start, gfns.end)
    if slots:
        yield from _pre(kvm, slots, gfns, private=private)
        for slot in slots:
            kvm.promise_unmapped(
                "KVM_SET_MEMORY_ATTRIBUTES", _within(slot, gfns), direct=private, mirror=not private
            )
    for gfn in gfns.frames():
        yield kvm.attributes.store(gfn, attributes)  # C9
    if slots:
        yield from _post(kvm, slots, gfns, attributes)
    yield kvm.slots_lock.unlock()
    kernel.count("convert.done")
    kernel.record("convert", kernel.now_ns - began_ns)
    return 0


def _pre(kvm: Kvm, slots: list[Memslot], gfns: GfnRange, *, private: bool) -> Steps[None]:
    """C4 to C8: open the window and zap, slot by slot; without a slot there is neither lock nor window."""
    yield kvm.mmu_lock.write_lock()
    yield from kvm_mmu_invalidate_begin(kvm)  # C4
    flush = False
    for slot in slots:
        flush |= yield from kvm_pre_set_memory_attributes(kvm, slot, _within(slot, gfns), private=private)
    if flush:
        yield from kvm.flush_remote_tlbs()  # C8
    yield kvm.mmu_lock.write_unlock()  # C8


def _post(kvm: Kvm, slots: list[Memslot], gfns: GfnRange, attributes: int) -> Steps[None]:
    """C10, C11: close the window, then recompute which huge pages are mixed, in one critical section."""
    yield kvm.mmu_lock.write_lock()
    yield from kvm_mmu_invalidate_end(kvm)  # C10
    for slot in slots:
        yield from update_mixed(kvm, slot, _within(slot, gfns), attributes)  # C11
    yield kvm.mmu_lock.write_unlock()


def _within(slot: Memslot, gfns: GfnRange) -> GfnRange:
    return GfnRange(max(slot.base_gfn, gfns.start), min(slot.end_gfn, gfns.end))


def kvm_pre_set_memory_attributes(kvm: Kvm, slot: Memslot, gfns: GfnRange, *, private: bool) -> Steps[bool]:
    """C5 to C7 for one slot: widen the window, to whole huge pages at the edges, and zap what must go.

    Only mappings of the type that is given up are zapped: becoming private takes away shared ones, and the other way.
    """
    yield from kvm_mmu_invalidate_range_add(kvm, gfns.start, gfns.end)  # C5
    for level in (PG_LEVEL_2M, PG_LEVEL_1G):
        for gfn in (gfns.start, gfns.end - 1):
            start = gfn & -level.pages
            huge = GfnRange(Gfn(start), Gfn(start + level.pages))
            straddles = huge.start < gfns.start or huge.end > gfns.end
            if not straddles or not slot.contains_hugepage(start, level):
                continue
            if not (yield from hugepage_test_mixed(slot, start, level)):
                yield from kvm_mmu_invalidate_range_add(kvm, huge.start, huge.end)  # C6
    return (yield from kvm_unmap_gfn_range(kvm, gfns, Filter.SHARED if private else Filter.PRIVATE))  # C7


def update_mixed(kvm: Kvm, slot: Memslot, gfns: GfnRange, attributes: int) -> Steps[None]:
    """C11: recompute which huge pages of the slot have mixed attributes: head, whole ones, tail; 2M before 1G."""
    for level in (PG_LEVEL_2M, PG_LEVEL_1G):
        for first in range(gfns.start & -level.pages, gfns.end, level.pages):
            if not slot.contains_hugepage(first, level):
                continue
            whole = gfns.start <= first and first + level.pages <= gfns.end
            if whole or (yield from kvm.attributes.hugepage_has_attrs(slot, first, level, attributes)):
                yield from hugepage_clear_mixed(slot, first, level)
            else:
                yield from hugepage_set_mixed(slot, first, level)
