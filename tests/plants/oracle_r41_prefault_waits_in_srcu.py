"""What if prefault retried for an INVALID slot inside its SRCU section? The deletion waits for it, and it for the deletion.

The plant of `livelock` beside a thread that is blocked for ever: it spins, as the kernel did. r41_prefault_invalid_slot
waits for the memslots instead, which is a `deadlock`. Source: races.md R41 (commit 3ccbf6f47098).
"""

from mmu import fault, prefault
from sim import replaces


@replaces(prefault._prefault)
def retrying_prefault(kvm, vcpu, gpa, *, private):
    """Without the -EAGAIN that only prefetching faults get (F25)."""
    while True:
        outcome, level = yield from fault.kvm_mmu_do_page_fault(kvm, vcpu, gpa, "write", is_private=private)
        if outcome is not fault.RetPf.RETRY:
            return 0, level.pages
        vcpu.arch.invalid_slot = None  # or it would wait outside of SRCU
        yield from fault.await_retry(kvm, vcpu)
