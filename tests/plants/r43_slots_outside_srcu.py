"""R43: an ioctl looks memslots up outside of an SRCU section.

Source: 4bcdd831d9d0 "KVM: x86: Acquire kvm->srcu when handling KVM_SET_VCPU_EVENTS" (CVE-2024-46830). That ioctl is not
modelled; here KVM_PRE_FAULT_MEMORY forgets the section.
"""

from mmu import prefault
from mmu.roots import kvm_mmu_load
from sim import replaces
from vcpu.addresses import gpa_of


@replaces(prefault.kvm_vcpu_pre_fault_memory)
def kvm_vcpu_pre_fault_memory(kvm, vcpu, gfns):
    """Map `gfns`, holding nothing."""
    gfn = gfns.start
    code = 0
    while gfn < gfns.end and not code:
        if vcpu.arch.root is None:
            yield from kvm_mmu_load(kvm, vcpu)
        code, pages = yield from prefault._prefault(kvm, vcpu, gpa_of(gfn | kvm.direct_bits), private=False)
        gfn = (gfn & -pages) + pages
    return code
