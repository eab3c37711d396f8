"""R41: a prefault that meets an INVALID slot tries again in the kernel, inside the SRCU section that its deletion waits for.

Source: 3ccbf6f47098 "KVM: x86/mmu: Return -EAGAIN if userspace deletes/moves memslot during prefault". The kernel spins;
like every retry of the model, the plant waits for the word that the loop looks at, here kvm->memslots.
"""

from mmu import prefault
from mmu.errno import Errno
from mmu.fault import RetPf, await_retry, kvm_mmu_do_page_fault
from sim import replaces
from vcpu.addresses import gfn_of
from vcpu.vcpu import VM_DEAD


@replaces(prefault._prefault)
def _prefault(kvm, vcpu, gpa, *, private):
    """EAGAIN is one more retry."""
    gfn = gfn_of(gpa) & ~kvm.direct_bits

    def resolved(slots):
        slot = slots.find(gfn)
        return slot is None or not slot.invalid

    while True:
        outcome, level = yield from kvm_mmu_do_page_fault(
            kvm, vcpu, gpa, "write", is_private=private, prefetch=True
        )
        if outcome is Errno.EAGAIN:
            yield kvm.memslots.cell.wait_until(resolved)  # planted
            continue
        if isinstance(outcome, Errno):
            return -outcome, 1
        if outcome is RetPf.EMULATE:
            return -Errno.ENOENT, 1
        if outcome is not RetPf.RETRY:
            return 0, level.pages
        if (yield vcpu.requests.read_once()) & VM_DEAD.mask:
            return -Errno.EIO, 1
        yield from await_retry(kvm, vcpu)
