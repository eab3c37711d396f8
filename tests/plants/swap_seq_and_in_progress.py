"""What if an invalidation closed its window (in_progress) before it bumped the sequence (C10 the wrong way round)?"""

from mmu import invalidate
from sim import replaces


@replaces(invalidate.kvm_mmu_invalidate_end)
def kvm_mmu_invalidate_end(kvm):
    """in_progress first, seq last."""
    kvm.mmu_lock.assert_held_for_write()
    in_progress = yield kvm.mmu_invalidate_in_progress.read()
    yield kvm.mmu_invalidate_in_progress.write(in_progress - 1)
    seq = yield kvm.mmu_invalidate_seq.read()
    yield kvm.mmu_invalidate_seq.write(seq + 1)
