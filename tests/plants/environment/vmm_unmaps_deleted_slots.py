"""Not a bug: once it has deleted a memslot, the VMM unmaps the memory that was behind it, as QEMU does."""

from mmu.memslot_paths import delete_memslot
from mmu.notifier import invalidate_hva_range
from scenarios.programs import HostProgram
from sim import replaces


@replaces(HostProgram._memslot_delete)
def _memslot_delete(self, args):
    """KVM_SET_USER_MEMORY_REGION2 with size 0, then munmap."""
    kvm = self.world.kvm
    slot = kvm.slots().by_id(args.slot)
    yield from delete_memslot(kvm, slot)
    yield from invalidate_hva_range(kvm, slot.userspace_addr, slot.userspace_addr + slot.npages * 4096)
