"""What if a fault kept the invalidation sequence in too few bits? Once the counter is beyond them, every fault is stale.

The plant of `livelock`; the snapshot has one bit here. Source: races.md R35 (commit 82d811ff5665).
"""

from mmu import fault, invalidate
from sim import replaces


@replaces(fault.is_page_fault_stale)
def is_page_fault_stale(kvm, vcpu, page_fault):
    """Compares with the truncated snapshot."""
    return (yield from invalidate.mmu_invalidate_retry_gfn(kvm, page_fault.mmu_seq & 1, page_fault.gfn))
