"""SEAMCALLs that must not fail: keep vCPUs out, and the module cannot be busy.

Under mmu_lock for write no other host call works on the S-EPT; what can still be in the way is a guest: ACCEPT holding
the entry, VP.ENTER in its epoch section or under zero-step suspicion. So on BUSY all vCPUs are kicked and kept out, and
the second try must succeed. Source: tdx.c, tdh_do_no_vcpus(), tdx_track(); reference 4.4, 7.4.
"""

from __future__ import annotations

from collections.abc import Callable

from sim import Steps
from tdx.kvm.state import KvmTdx, TdState, operand_busy
from tdx.module import SeamcallReturn, tdh_mem_track
from vcpu.vcpu import OUTSIDE_GUEST_MODE


def tdh_do_no_vcpus(tdx: KvmTdx, call: Callable[[], Steps[SeamcallReturn]]) -> Steps[SeamcallReturn]:
    """Make the call; if it is busy, once more with no vCPU inside.

    The flag goes up before the kick: a vCPU that slips in after it would make the second try busy, too.
    """
    kvm = tdx.kvm
    kvm.mmu_lock.assert_held_for_write()
    result = yield from call()
    if not operand_busy(result):
        return result
    kvm.kernel.reached("seamcall_busy_kicked")
    yield tdx.wait_for_sept_zap.write_once(True)
    yield from kvm.make_all_cpus_request(OUTSIDE_GUEST_MODE)
    result = yield from call()
    yield tdx.wait_for_sept_zap.write_once(False)
    return result


def tdx_track(tdx: KvmTdx) -> Steps[bool]:
    """Z3: next TD epoch, then every vCPU out once; from then on no vCPU has a translation older than the last BLOCK.

    TRACK and kick are one critical section of mmu_lock: a second TRACK would find the previous epoch not drained.
    Returns: whether it worked.
    """
    if tdx.state.peek() is not TdState.RUNNABLE:
        return True
    tdx.kvm.mmu_lock.assert_held_for_write()
    result = yield from tdh_do_no_vcpus(tdx, lambda: tdh_mem_track(tdx.module, td=tdx.td))
    if tdx.bug_on(result, "TDH.MEM.TRACK"):
        return False
    yield from tdx.kvm.make_all_cpus_request(OUTSIDE_GUEST_MODE)
    return True
