"""N7: a table is counted a moment after it can be seen. The number is wrong for that moment, and nobody branches on it."""

from mmu import spte as sptes
from mmu import tdp_mmu
from sim import replaces


@replaces(tdp_mmu.tdp_mmu_link_sp)
def tdp_mmu_link_sp(kvm, it, sp):
    """Publish, let others run, count."""
    linked = yield from tdp_mmu.tdp_mmu_set_spte_atomic(kvm, it, sptes.make_nonleaf_spte(sp.spt_pfn))
    if linked:
        yield it.sptep.read_once()
        kvm.page_tables.live += 1
    return linked
