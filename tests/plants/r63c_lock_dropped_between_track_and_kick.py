"""R63, a variant: mmu_lock is dropped between TDH.MEM.TRACK and the kick, and another removal TRACKs in between.

Source: the protocol comment above tdx_track() in tdx.c; assertion 2ff14116982c "KVM: TDX: Assert that mmu_lock is held for
write when removing S-EPT entries".
"""

from sim import replaces
from tdx.kvm import no_vcpus
from tdx.kvm.state import TdState
from vcpu.vcpu import OUTSIDE_GUEST_MODE


@replaces(no_vcpus.tdx_track)
def tdx_track(tdx):
    """TRACK, unlock, lock, kick."""
    if tdx.state.peek() is not TdState.RUNNABLE:
        return True
    result = yield from no_vcpus.tdh_do_no_vcpus(tdx, lambda: no_vcpus.tdh_mem_track(tdx.module, td=tdx.td))
    if tdx.bug_on(result, "TDH.MEM.TRACK"):
        return False
    yield tdx.kvm.mmu_lock.write_unlock()
    yield tdx.kvm.mmu_lock.write_lock()
    yield from tdx.kvm.make_all_cpus_request(OUTSIDE_GUEST_MODE)
    return True
