"""R37: memslots are swapped while an MMU notifier is between its start and its end.

Source: 52ac8b358b0c "KVM: Block memslot updates across range_start() and range_end()".
"""

from mmu import memslot_paths
from sim import replaces


@replaces(memslot_paths.swap_memslots)
def swap_memslots(kvm, change, slot):
    """Publish at once, then wait for the readers."""
    yield kvm.mn_invalidate_lock.lock()
    slots = kvm.slots()
    changed = slots.without(slot.id) if change == "delete" else slots.with_slot(slot)
    yield kvm.memslots.publish(changed)
    yield kvm.mn_invalidate_lock.unlock()
    yield kvm.srcu.synchronize()
