"""R07: a zap that yields keeps its flush as a debt, and the next zapper of the same pages does not know of it.

Source: f81602958c11 "KVM: X86: Fix missed remote tlb flush in rmap_write_protect()". There the debt was tlbs_dirty of the
shadow MMU, which is not modelled; here it is the `flush` of a range zap, carried over a yield (Z: reference 2.3).
"""

from mmu import zap
from mmu.spte import SHADOW_NONPRESENT_VALUE, is_last_spte, is_shadow_present_pte
from mmu.tdp_iter import TdpIter
from mmu.tdp_mmu import tdp_mmu_iter_cond_resched, tdp_mmu_set_spte
from sim import replaces


@replaces(zap.tdp_mmu_zap_leafs)
def tdp_mmu_zap_leafs(kvm, root, gfns, *, can_yield, flush):
    """Yields without the flush it owes, and pays at its end."""
    kvm.mmu_lock.assert_held_for_write()
    yield kvm.rcu.read_lock()
    it = TdpIter(kvm.page_tables, root, gfns.start, gfns.end, gfn_bits=kvm.direct_bits)
    yield from it.start()
    while it.valid:
        if can_yield and (yield from tdp_mmu_iter_cond_resched(kvm, it, flush=False, shared=False)):
            pass  # planted: `flush` stays a debt while mmu_lock was dropped
        elif is_shadow_present_pte(it.old_spte) and is_last_spte(it.old_spte, it.level):
            yield from tdp_mmu_set_spte(kvm, it.sp, it.sptep, it.old_spte, SHADOW_NONPRESENT_VALUE, it.gfn)
            flush = True
        yield from it.next()
    yield kvm.rcu.read_unlock()
    return flush
