"""What if a zap of private memory took one page more than was asked for? The neighbour's content is gone.

The plant of `td-dead`, and, where the guest takes a #VE for a pending page, of `content-lost`. Source: races.md R51, R79.
"""

from mmu import zap
from sim import replaces
from vcpu.addresses import GfnRange


@replaces(zap.tdp_mmu_zap_leafs)
def tdp_mmu_zap_leafs(kvm, root, gfns, *, can_yield, flush):
    """The range and one page more."""
    gfns = GfnRange(gfns.start, gfns.end + 1)
    yield kvm.rcu.read_lock()
    it = zap.TdpIter(kvm.page_tables, root, gfns.start, gfns.end, gfn_bits=kvm.direct_bits)
    yield from it.start()
    while it.valid:
        if zap.is_shadow_present_pte(it.old_spte) and zap.is_last_spte(it.old_spte, it.level):
            yield from zap.tdp_mmu_set_spte(
                kvm, it.sp, it.sptep, it.old_spte, zap.SHADOW_NONPRESENT_VALUE, it.gfn
            )
            flush = True
        yield from it.next()
    yield kvm.rcu.read_unlock()
    return flush
