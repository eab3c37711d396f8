"""R09: a read fault that found the page read-only overwrites the writable SPTE that a write fault has installed meanwhile.

Source: 386d69f9f29b "KVM: x86/mmu: Treat TDP MMU faults as spurious if access is already allowed"; the WARN that found it
came with 1a175082b190 and is left out: the oracle has to see it.
"""

from mmu import fault as faults
from mmu.spte import is_last_spte, is_mmu_writable_spte, is_shadow_present_pte
from mmu.tdp_mmu import tdp_mmu_set_spte_atomic
from sim import replaces


@replaces(faults.tdp_mmu_map_handle_target_level)
def tdp_mmu_map_handle_target_level(kvm, fault, it):
    """L3 to L8, without L2."""
    old_spte = it.old_spte
    if it.sp.level != fault.goal_level:  # L1
        return faults.RetPf.RETRY
    new_spte = faults._make_leaf(fault, it)  # L3; planted: L2, "access already allowed", is gone
    if new_spte == old_spte:  # L4
        return faults.RetPf.SPURIOUS
    if not (yield from tdp_mmu_set_spte_atomic(kvm, it, new_spte)):  # L5
        return faults.RetPf.RETRY
    if is_shadow_present_pte(old_spte):  # L6
        loses_write = is_mmu_writable_spte(old_spte) and not is_mmu_writable_spte(new_spte)
        if not is_last_spte(old_spte, it.level) or loses_write:
            yield from kvm.flush_remote_tlbs()
    return faults.RetPf.FIXED
