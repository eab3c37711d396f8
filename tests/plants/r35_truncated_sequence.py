"""R35: the snapshot of mmu_invalidate_seq is kept in fewer bits than the counter has; from some day on it never matches.

Source: 82d811ff5665 "KVM: x86/mmu: Fix an sign-extension bug with mmu_seq that hangs vCPUs" (6.1 stable). An int there,
two bits here, so that four invalidations are enough.
"""

from mmu import invalidate
from sim import replaces

SNAPSHOT_BITS = 2


def kept(mmu_seq):
    """What is left of F21's snapshot."""
    return mmu_seq & (1 << SNAPSHOT_BITS) - 1


@replaces(invalidate.mmu_invalidate_retry_gfn)
def mmu_invalidate_retry_gfn(kvm, mmu_seq, gfn):
    """The exact question."""
    kvm.mmu_lock.assert_held()
    if (yield kvm.mmu_invalidate_in_progress.read()):
        start = yield kvm.mmu_invalidate_range_start.read()
        end = yield kvm.mmu_invalidate_range_end.read()
        if start <= gfn < end:
            return True
    seq = yield kvm.mmu_invalidate_seq.read()
    return seq != kept(mmu_seq)


@replaces(invalidate.mmu_invalidate_retry_gfn_unsafe)
def mmu_invalidate_retry_gfn_unsafe(kvm, mmu_seq, gfn):
    """The question without mmu_lock."""
    if (yield kvm.mmu_invalidate_in_progress.read_once()):
        start = yield kvm.mmu_invalidate_range_start.read()
        end = yield kvm.mmu_invalidate_range_end.read()
        if start <= gfn < end:
            return True
    seq = yield kvm.mmu_invalidate_seq.read_once()
    return seq != kept(mmu_seq)
