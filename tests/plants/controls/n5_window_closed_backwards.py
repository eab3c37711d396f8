"""N5: the lockless look at the invalidation window may be wrong, because F31 asks again under mmu_lock.

An end that closes the window before it bumps the sequence lets F26 and F2A believe that nothing happened. Both words change
under mmu_lock for write, so F31 cannot be misled.
"""

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
