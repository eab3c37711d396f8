"""R15: zapping everything fast invalidates the roots and returns; whoever uses one last is to empty it.

Source: 4c6654bd160d "KVM: x86/mmu: Tear down roots before kvm_mmu_zap_all_fast returns".
"""

from mmu import roots, zap
from sim import replaces
from vcpu.vcpu import FREE_OBSOLETE_ROOTS


@replaces(zap.kvm_mmu_zap_all_fast)
def kvm_mmu_zap_all_fast(kvm):
    """The critical section only."""
    yield kvm.mmu_lock.write_lock()
    generation = yield kvm.mmu_valid_gen.read()
    yield kvm.mmu_valid_gen.write(1 - generation)
    yield from roots.kvm_tdp_mmu_invalidate_roots(kvm, mirror=False)
    yield from kvm.make_all_cpus_request(FREE_OBSOLETE_ROOTS)
    yield kvm.mmu_lock.write_unlock()


@replaces(roots.kvm_mmu_free_obsolete_roots)
def kvm_mmu_free_obsolete_roots(kvm, vcpu):
    """Drop the root, and pay for it."""
    mmu = vcpu.arch
    if mmu.root is not None and (yield mmu.root.invalid.read()):
        yield from roots.kvm_mmu_free_roots(kvm, vcpu)
        yield kvm.mmu_lock.read_lock()
        yield from zap.zap_scheduled_roots(kvm, shared=True)
        yield kvm.mmu_lock.read_unlock()
