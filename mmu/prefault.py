"""KVM_PRE_FAULT_MEMORY: map before the guest asks. Source: kvm_arch_vcpu_pre_fault_memory(); reference 3.10."""

from __future__ import annotations

from mmu.errno import Errno
from mmu.fault import RetPf, await_retry, kvm_mmu_do_page_fault
from mmu.roots import kvm_mmu_load
from mmu.vm import Kvm
from sim import Steps
from vcpu.addresses import GfnRange, Gpa, gpa_of
from vcpu.vcpu import VM_DEAD, Vcpu


def kvm_vcpu_pre_fault_memory(kvm: Kvm, vcpu: Vcpu, gfns: GfnRange) -> Steps[int]:
    """Map `gfns` for `vcpu`, which must not be running; 0 or a negative errno. Refused before the TD is finalized."""
    yield kvm.srcu.read_lock()
    gfn: int = gfns.start
    code = 0
    while gfn < gfns.end and not code:
        if not (yield kvm.pre_fault_allowed.read()):
            code = -Errno.EOPNOTSUPP
            break
        if vcpu.arch.root is None:
            yield from kvm_mmu_load(kvm, vcpu)
        private = kvm.has_private_mem and bool((yield kvm.attributes.load(gfn)) & kvm.attributes.PRIVATE)
        gpa = gpa_of(gfn if private else gfn | kvm.direct_bits)
        code, pages = yield from _prefault(kvm, vcpu, gpa, private=private)
        gfn = (gfn & -pages) + pages
    yield kvm.srcu.read_unlock()
    return code


def _prefault(kvm: Kvm, vcpu: Vcpu, gpa: Gpa, *, private: bool) -> Steps[tuple[int, int]]:
    while True:
        outcome, level = yield from kvm_mmu_do_page_fault(
            kvm, vcpu, gpa, "write", is_private=private, prefetch=True
        )
        if isinstance(outcome, Errno):
            return -outcome, 1
        if outcome is RetPf.EMULATE:
            return -Errno.ENOENT, 1
        if outcome is not RetPf.RETRY:
            kvm.kernel.count("prefault.mapped")
            return 0, level.pages
        if (yield vcpu.requests.read_once()) & VM_DEAD.mask:
            return -Errno.EIO, 1
        yield from await_retry(kvm, vcpu)
