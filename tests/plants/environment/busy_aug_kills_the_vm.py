"""Not a bug of KVM: the injected refusal of PAGE.AUG stands for a fatal one, which kills the VM and is nobody's finding."""

from mmu.errno import Errno
from sim import replaces
from tdx.kvm import sept
from tdx.kvm.state import operand_busy
from vcpu.vcpu import VM_DEAD


@replaces(sept.TdxSept._installed)
def _installed(self, result, leaf):
    """kvm_vm_bugged without the report."""
    if operand_busy(result):
        self.tdx.kvm.vm_dead.v = True
        for vcpu in self.tdx.kvm.vcpus:
            vcpu.requests.v |= VM_DEAD.mask
        return -Errno.EIO
    return -Errno.EIO if self.tdx.bug_on(result, leaf) else 0
