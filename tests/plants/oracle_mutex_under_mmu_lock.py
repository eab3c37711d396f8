"""What if opening a window took a mutex? mmu_lock is an rwlock: its holder must not sleep.

The plant of `lock-rule` by a sleeping call. Source: Documentation/virt/kvm/locking.rst; races.md R21 (wrong context).
"""

from mmu import invalidate
from sim import replaces


@replaces(invalidate.kvm_mmu_invalidate_begin)
def kvm_mmu_invalidate_begin(kvm):
    """With kvm->lock."""
    yield kvm.lock.lock()
    in_progress = yield kvm.mmu_invalidate_in_progress.read()
    yield kvm.mmu_invalidate_in_progress.write(in_progress + 1)
    yield kvm.lock.unlock()
