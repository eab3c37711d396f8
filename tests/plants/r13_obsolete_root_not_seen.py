"""R13: the staleness test answers "not stale" for a root that it cannot ask.

Source: 18c841e1f411 "KVM: x86: Retry page fault if MMU reload is pending and root has no sp". There such roots had no
shadow page (PAE roots); every root of the model has one, so the plant does not ask any.
"""

from mmu import fault as faults
from mmu import invalidate
from sim import replaces


@replaces(faults.is_page_fault_stale)
def is_page_fault_stale(kvm, vcpu, fault):
    """F31 without the question whether the root is obsolete."""
    if fault.slot is None:
        return False
    return (yield from invalidate.mmu_invalidate_retry_gfn(kvm, fault.mmu_seq, fault.gfn))
