"""Memslots change: create, delete, move. Source: kvm_set_memslot(), kvm_arch_flush_shadow_memslot(); reference 4.9.

A slot that goes is first replaced by a copy flagged INVALID; after an SRCU grace period no reader holds the old one, its
mappings are zapped, and only then the slot disappears, after a second grace period. vCPUs hold SRCU while they handle a
fault: a fault that waits inside for an INVALID slot to go away would wait for ever, which is why v7 lets it go (F08).
"""

from __future__ import annotations

from mmu.memslots import Memslot
from mmu.vm import Kvm
from mmu.zap import BOTH, kvm_mmu_zap_all_fast, kvm_unmap_gfn_range
from sim import Steps
from vcpu.addresses import Gfn, GfnRange


def swap_memslots(kvm: Kvm, change: str, slot: Memslot) -> Steps[None]:
    """kvm_swap_active_memslots: publish a new set when no MMU-notifier window is open, then wait for the readers.

    The count is looked at under the lock, which is dropped only to sleep.
    """
    yield kvm.mn_invalidate_lock.lock()
    while (yield kvm.mn_active_invalidate_count.read()):
        yield kvm.mn_invalidate_lock.unlock()
        yield kvm.mn_active_invalidate_count.wait_until(lambda count: count == 0)
        yield kvm.mn_invalidate_lock.lock()
    slots = kvm.slots()
    changed = slots.without(slot.id) if change == "delete" else slots.with_slot(slot)
    yield kvm.memslots.publish(changed)
    yield kvm.mn_invalidate_lock.unlock()
    yield kvm.srcu.synchronize()


def create_memslot(kvm: Kvm, slot: Memslot) -> Steps[None]:
    """KVM_MR_CREATE."""
    yield kvm.slots_lock.lock()
    yield from swap_memslots(kvm, "create", slot)
    yield kvm.slots_lock.unlock()
    kvm.kernel.count("memslot.created")


def invalidate_memslot(kvm: Kvm, slot: Memslot) -> Steps[None]:
    """kvm_invalidate_memslot: publish the INVALID copy, wait, zap."""
    yield from swap_memslots(kvm, "invalidate", slot.invalidated())
    yield from kvm_arch_flush_shadow_memslot(kvm, slot)
    gfns = GfnRange(slot.base_gfn, slot.end_gfn)
    kvm.promise_unmapped("a memslot's invalidation", gfns, direct=True, mirror=True)


def kvm_arch_flush_shadow_memslot(kvm: Kvm, slot: Memslot) -> Steps[None]:
    """Zap the slot: all roots fast for a plain VM (the ZAP_ALL quirk), only the slot's range where memory is private."""
    if not kvm.has_private_mem:
        yield from kvm_mmu_zap_all_fast(kvm)
        return
    yield kvm.mmu_lock.write_lock()
    if (yield from kvm_unmap_gfn_range(kvm, GfnRange(slot.base_gfn, slot.end_gfn), BOTH)):
        yield from kvm.flush_remote_tlbs()
    yield kvm.mmu_lock.write_unlock()


def delete_memslot(kvm: Kvm, slot: Memslot) -> Steps[None]:
    """KVM_MR_DELETE."""
    yield kvm.slots_lock.lock()
    yield from invalidate_memslot(kvm, slot)
    yield from swap_memslots(kvm, "delete", slot)
    slot.free()
    yield kvm.slots_lock.unlock()
    kvm.kernel.count("memslot.deleted")


def move_memslot(kvm: Kvm, slot: Memslot, base_gfn: Gfn) -> Steps[None]:
    """KVM_MR_MOVE: the same backing at another guest address. Not for slots bound to guest_memfd (the kernel refuses)."""
    yield kvm.slots_lock.lock()
    yield from invalidate_memslot(kvm, slot)
    yield from swap_memslots(
        kvm,
        "move",
        Memslot(slot.id, base_gfn, slot.npages, userspace_addr=slot.userspace_addr, flags=slot.flags),
    )
    yield kvm.slots_lock.unlock()
    kvm.kernel.count("memslot.moved")
