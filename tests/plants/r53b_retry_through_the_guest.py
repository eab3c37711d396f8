"""R53, the other half: RET_PF_RETRY goes back into the guest, whose next fault has the same RIP and counts as a step.

Source: as r53_aug_busy_is_fatal: b0327bb2e7e0 keeps the retry inside the handler, for a vCPU under zero-step suspicion takes
the S-EPT tree lock at every VP.ENTER and makes the others' SEAMCALLs busy.
"""

from mmu.errno import Errno
from mmu.fault import kvm_mmu_do_page_fault
from sim import replaces
from tdx.kvm import vcpu_ops


@replaces(vcpu_ops.TdxOps.handle_ept_violation)
def handle_ept_violation(self, vcpu, guest_exit):
    """F03 to F07, without F08."""
    gpa = guest_exit.gpa
    private = self.is_private_fault(gpa)
    access = "write" if private else vcpu_ops.access_of(guest_exit.qualification)
    pending = guest_exit.extended & 15 == vcpu_ops.ExtendedQualification.PENDING_VIOLATION
    if private and pending and not guest_exit.qualification & (vcpu_ops.PROT_MASK | vcpu_ops.EXEC_FOR_RING3):
        return self._pending_page_touched(vcpu, gpa)
    outcome, _ = yield from kvm_mmu_do_page_fault(self.kvm, vcpu, gpa, access, is_private=private)
    if outcome is Errno.EIO:
        vcpu.shut_down = True
    return self.resolve(vcpu, guest_exit, outcome, private=private)
