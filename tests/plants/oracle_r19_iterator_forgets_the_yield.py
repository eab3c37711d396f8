"""What if the iterator advanced after a restart? The SPTE that it had reached when the lock was dropped is never zapped.

The plant of `stale-spte` by a skipped entry, in a walk over leafs. r19_step_after_restart takes the step from the root
instead, as v5.15 did: that skips entries when a whole root is zapped, and none here. Source: races.md R19 (commit
3a0f64de479c).
"""

from mmu import tdp_mmu
from mmu.tdp_iter import TdpIter
from sim import replaces


@replaces(tdp_mmu.tdp_mmu_iter_cond_resched)
def tdp_mmu_iter_cond_resched(kvm, it, *, flush, shared):
    """Restarts the walk at once, and lets the loop take its next step as if nothing had happened."""
    if it.next_last_level_gfn == it.yielded_gfn or not kvm.mmu_lock.contended:
        return False
    if flush:
        yield from kvm.flush_remote_tlbs()
    yield kvm.rcu.read_unlock()
    if shared:
        yield kvm.mmu_lock.read_unlock()
        yield kvm.mmu_lock.read_lock()
    else:
        yield kvm.mmu_lock.write_unlock()
        yield kvm.mmu_lock.write_lock()
    yield kvm.rcu.read_lock()
    yield from TdpIter.start(it)
    while it.valid and it.level > 1 and tdp_mmu.is_shadow_present_pte(it.old_spte):
        yield from it.next()
    return True
