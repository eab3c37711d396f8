"""A fault installs a direct SPTE by compare and plain store, holding mmu_lock only for read (as in R01, on the other side).

Source: reference 3.7 and 8.3: under the read lock every change is a cmpxchg, for other faults read and change the entry too;
ba3a6120a4e7 "KVM: x86/mmu: Use atomic XCHG to write TDP MMU SPTEs with volatile bits" mended a plain store of this kind.
"""

from mmu import tdp_mmu
from sim import replaces


@replaces(tdp_mmu.tdp_mmu_set_spte_atomic)
def tdp_mmu_set_spte_atomic(kvm, it, new_spte):
    """For VMs without a mirror."""
    seen = yield it.sptep.read_once()
    if seen != it.old_spte:
        it.old_spte = seen
        return False
    yield it.sptep.write(new_spte)
    yield from tdp_mmu.handle_changed_spte(kvm, it.sp, it.gfn, it.level, it.old_spte, new_spte, shared=True)
    return True
