"""R65: a mirror table whose last leaf has gone is unlinked and freed with its S-EPT page, while the TD lives.

Source: tdx_sept_free_private_spt() in tdx.c: S-EPT pages are only freed once the key id is; a removal never takes the tables
of a living TD.
"""

from mmu import zap
from mmu.spte import SHADOW_NONPRESENT_VALUE, is_last_spte, is_shadow_present_pte
from mmu.tdp_iter import TdpIter
from mmu.tdp_mmu import free_sp, tdp_mmu_iter_cond_resched, tdp_mmu_set_spte
from sim import replaces


@replaces(zap.tdp_mmu_zap_leafs)
def tdp_mmu_zap_leafs(kvm, root, gfns, *, can_yield, flush):
    """Zap leafs, and mirror tables that become empty."""
    kvm.mmu_lock.assert_held_for_write()
    yield kvm.rcu.read_lock()
    it = TdpIter(kvm.page_tables, root, gfns.start, gfns.end, gfn_bits=kvm.direct_bits)
    yield from it.start()
    while it.valid:
        if can_yield and (yield from tdp_mmu_iter_cond_resched(kvm, it, flush=flush, shared=False)):
            flush = False
        elif is_shadow_present_pte(it.old_spte) and is_last_spte(it.old_spte, it.level):
            yield from tdp_mmu_set_spte(kvm, it.sp, it.sptep, it.old_spte, SHADOW_NONPRESENT_VALUE, it.gfn)
            flush = True
            if it.is_mirror and not list(it.sp.present()):
                yield from free_table(kvm, it)
        yield from it.next()
    yield kvm.rcu.read_unlock()
    return flush


def free_table(kvm, it):
    """Planted: the module is not asked."""
    sp = it.sp
    parent, index = sp.parent
    yield parent.cell(index).write_once(SHADOW_NONPRESENT_VALUE)
    kvm.page_tables.live -= 1
    kvm.rcu.call(f"free {sp}", lambda: free_sp(kvm, sp))
    it.yielded = True  # the walk must not stay in that table
