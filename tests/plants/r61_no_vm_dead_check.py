"""R61: a fatal SEAMCALL makes the VM dead and the fault RET_PF_RETRY, and the handler's loop never asks whether it is dead.

Source: "KVM: x86/mmu: Bail out kvm_tdp_map_page() when VM dead" (Yan Zhao, v2 20 Feb 2025).
"""

from mmu.fault import RetPf, await_retry, kvm_mmu_do_page_fault
from sim import replaces
from tdx.kvm import vcpu_ops
from vcpu.addresses import gfn_of


@replaces(vcpu_ops.TdxOps.handle_ept_violation)
def handle_ept_violation(self, vcpu, guest_exit):
    """F03 to F08, where only an INVALID slot ends the loop."""
    gpa = guest_exit.gpa
    private = self.is_private_fault(gpa)
    access = "write" if private else vcpu_ops.access_of(guest_exit.qualification)
    while True:
        outcome, _ = yield from kvm_mmu_do_page_fault(self.kvm, vcpu, gpa, access, is_private=private)
        if outcome is not RetPf.RETRY or not private:
            break
        slots = yield self.kvm.memslots.load()
        slot = slots.find(gfn_of(gpa))
        if slot is not None and slot.invalid:
            break
        yield from await_retry(self.kvm, vcpu)
    return self.resolve(vcpu, guest_exit, outcome, private=private)
