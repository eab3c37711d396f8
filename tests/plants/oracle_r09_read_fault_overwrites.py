"""What if a fault did not ask whether its access is allowed already? A slow read fault takes a newer permission away.

The plant of `overwrite` by permissions. A read fault may find the host's mapping read-only (fast GUP lost a race), so it
makes a read-only SPTE. Source: races.md R09 (commit 386d69f9f29b).
"""

from mmu import fault, spte
from mmu.fault import RetPf
from sim import replaces


@replaces(fault.tdp_mmu_map_handle_target_level)
def tdp_mmu_map_handle_target_level(kvm, page_fault, it):
    """No L2, and read-only SPTEs for reads."""
    new_spte = spte.make_spte(
        pfn=page_fault.pfn,
        level=it.level,
        writable=page_fault.write,
        host_writable=page_fault.write,
        executable=True,
        dirty=page_fault.write,
    )
    if new_spte == it.old_spte:
        return RetPf.SPURIOUS
    if not (yield from fault.tdp_mmu_set_spte_atomic(kvm, it, new_spte)):
        return RetPf.RETRY
    return RetPf.FIXED
