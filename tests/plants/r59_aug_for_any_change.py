"""R59: the mirror's hook is called for every change of a leaf, not only for the one that makes it present.

Source: Isaku Yamahata, v2 of "KVM: x86/tdp_mmu: Propagate building mirror page tables" (Sept 2024), reported by Sagi Shahar.
Two faults on one frame came to slightly different leafs; the model's are equal, so the plant also drops L2 and L4, which
came later and would hide it.
"""

from mmu import fault as faults
from mmu import tdp_mmu
from mmu.spte import FROZEN_SPTE, is_last_spte, spte_to_pfn
from sim import replaces


@replaces(faults.tdp_mmu_map_handle_target_level)
def tdp_mmu_map_handle_target_level(kvm, fault, it):
    """L1, L3, L5 and L8."""
    if it.sp.level != fault.goal_level:
        return faults.RetPf.RETRY
    if not (yield from tdp_mmu.tdp_mmu_set_spte_atomic(kvm, it, faults._make_leaf(fault, it))):
        return faults.RetPf.RETRY
    return faults.RetPf.FIXED


@replaces(tdp_mmu._set_external_spte_present)
def _set_external_spte_present(kvm, it, new_spte):
    """Freeze, hook, thaw; present to present, too."""
    old_spte = it.old_spte
    seen = yield it.sptep.cmpxchg(old_spte, FROZEN_SPTE)
    if seen != old_spte:
        return False
    if is_last_spte(new_spte, it.level):
        error = yield from kvm.external.set_external_spte(it.gfn, it.level, new_spte)
    else:
        child = kvm.page_tables.to_sp(spte_to_pfn(new_spte))
        error = yield from kvm.external.link_external_spt(it.gfn, it.level, child)
    yield it.sptep.write_once(old_spte if error else new_spte)
    return not error
