"""Not a bug: fast GUP for write loses every race in the primary MMU, so that a read fault finds its page read-only.

hva_to_pfn() asks for write access in passing when the guest only reads, and takes no for an answer.
"""

from mmu import fault as faults
from mmu import gmem
from mmu.errno import Errno
from mmu.host_memory import level_for_order
from sim import replaces


@replaces(faults.__kvm_mmu_faultin_pfn)
def __kvm_mmu_faultin_pfn(kvm, fault, slot):
    """F27, F28: writable only for those who write."""
    if fault.is_private:
        if slot.gmem is None:
            return Errno.EFAULT
        got = yield from gmem.kvm_gmem_get_pfn(slot.gmem.file, slot, fault.gfn)
        if isinstance(got, Errno):
            return got
        fault.pfn, order = got
    else:
        fault.pfn, order = yield from kvm.primary.fault_in(slot.hva_of(fault.gfn))
    fault.refcounted_page = True
    fault.map_writable = fault.write and not slot.readonly
    fault.max_level = level_for_order(order)
    if fault.write and not fault.map_writable:
        faults.release_page(kvm, fault)
        return faults.RetPf.EMULATE
    return faults.RetPf.CONTINUE
