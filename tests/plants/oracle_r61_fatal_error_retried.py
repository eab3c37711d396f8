"""What if a fatal SEAMCALL error looked like BUSY? The VM is dead, and the fault is retried for ever.

The plant of `livelock` without a lock in sight. That the VM died is no finding here: the TD may have been killed for a
reason of its own. Source: races.md R61 (Yan Zhao, "Bail out kvm_tdp_map_page() when VM dead").
"""

from mmu.errno import Errno
from mmu.fault import RetPf, await_retry, kvm_mmu_do_page_fault
from sim import replaces
from tdx.kvm.sept import TdxSept
from tdx.kvm.vcpu_ops import TdxOps


@replaces(TdxSept.set_external_spte)
def set_external_spte(sept, gfn, level, new_spte):
    """Always fails."""
    yield sept.tdx.state.read()
    return -Errno.EIO


@replaces(TdxOps.handle_ept_violation)
def handle_ept_violation(ops, vcpu, guest_exit):
    """F03 to F08 without the VM_DEAD check."""
    while True:
        outcome, _ = yield from kvm_mmu_do_page_fault(ops.kvm, vcpu, guest_exit.gpa, "write", is_private=True)
        if outcome is not RetPf.RETRY:
            return ops.resolve(vcpu, guest_exit, outcome, private=True)
        yield from await_retry(ops.kvm, vcpu)
