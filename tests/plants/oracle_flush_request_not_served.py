"""What if a vCPU cleared KVM_REQ_TLB_FLUSH without flushing? It enters the guest with the translations of before the zap.

The plant of `stale-tlb`. Source: races.md R25 (a flush that the caller relies on does nothing).
"""

from mmu.vcpu_ops import VmOps
from sim import replaces


@replaces(VmOps.flush_tlb)
def flush_tlb(ops, vcpu):
    """Counts, and flushes nothing."""
    ops.kernel.count("tlb_flush")
