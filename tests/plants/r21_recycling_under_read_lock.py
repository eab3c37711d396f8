"""R21: a fault that holds mmu_lock for read recycles pages first, which takes it for write.

Source: 47b0c2e4c220 "KVM: x86/mmu: Fix race condition in direct_page_fault" (CVE-2022-45869).
"""

from mmu import fault as faults
from mmu.zap import tdp_mmu_zap_leafs
from sim import replaces
from vcpu.addresses import GfnRange


@replaces(faults.kvm_tdp_mmu_page_fault)
def kvm_tdp_mmu_page_fault(kvm, vcpu, fault):
    """F30 to F60, with make_mmu_pages_available() before F32."""
    mmu = vcpu.arch
    yield kvm.mmu_lock.read_lock()
    outcome = faults.RetPf.RETRY
    if not (yield from faults.is_page_fault_stale(kvm, vcpu, fault)):
        yield from tdp_mmu_zap_leafs(kvm, mmu.root, GfnRange(0, 512), can_yield=False, flush=False)  # planted
        root = mmu.root if kvm.is_direct_gpa(fault.addr) or not kvm.has_mirror else mmu.mirror_root
        outcome = yield from faults.kvm_tdp_mmu_map(kvm, vcpu, fault, root)
    faults.release_page(kvm, fault)
    yield kvm.mmu_lock.read_unlock()
    return outcome
