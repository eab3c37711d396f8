"""What if a memslot swap did not wait for its readers? A fault goes on with a slot whose arrays are freed.

The plant of `uaf-object`, on the writer's side; r43_slots_outside_srcu is a reader without its section, and breaks a
`lock-rule`. Source: races.md R43 (commit 4bcdd831d9d0).
"""

from mmu import memslot_paths
from sim import replaces


@replaces(memslot_paths.swap_memslots)
def swap_memslots(kvm, change, slot):
    """Publish, and go on."""
    slots = kvm.slots()
    yield kvm.memslots.publish(slots.without(slot.id) if change == "delete" else slots.with_slot(slot))
