"""What if the fast zap did not tell the vCPUs (FREE_OBSOLETE_ROOTS)? The hardware walks tables that are being freed.

The plant of `uaf-table`. Source: races.md R23, R65 (a table is freed while a walker is inside).
"""

from mmu.vm import Kvm
from sim import replaces
from vcpu.vcpu import FREE_OBSOLETE_ROOTS, kvm_make_all_cpus_request


@replaces(Kvm.make_all_cpus_request)
def make_all_cpus_request(kvm, request, here=None):
    """All requests but this one."""
    if request is FREE_OBSOLETE_ROOTS:
        return 0
    return (yield from kvm_make_all_cpus_request(kvm.kernel, kvm.vcpus, kvm.pcpus, request, here=here))
