"""R95: a conversion closes its invalidation window when it has dropped mmu_lock already.

Source: "[PATCH 4/8] KVM: gmem: protect kvm_mmu_invalidate_end()" (Isaku Yamahata, 15 Aug 2023). Without the assertion that
kvm_mmu_invalidate_end() makes today, which would see it in every execution.
"""

from mmu import conversion
from sim import replaces


@replaces(conversion._post)
def _post(kvm, slots, gfns, attributes):
    """C11 under mmu_lock, C10 behind it."""
    yield kvm.mmu_lock.write_lock()
    for slot in slots:
        yield from conversion.update_mixed(kvm, slot, conversion._within(slot, gfns), attributes)
    yield kvm.mmu_lock.write_unlock()
    seq = yield kvm.mmu_invalidate_seq.read()
    yield kvm.mmu_invalidate_seq.write(seq + 1)
    in_progress = yield kvm.mmu_invalidate_in_progress.read()
    yield kvm.mmu_invalidate_in_progress.write(in_progress - 1)
