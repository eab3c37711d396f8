"""N10: TRACK is refused because vCPUs are still inside from the epoch before; the caller has not kicked yet, and now does."""

from sim import replaces
from tdx.kvm import no_vcpus
from tdx.kvm.state import TdState
from tdx.module import Status
from vcpu.vcpu import OUTSIDE_GUEST_MODE


@replaces(no_vcpus.tdx_track)
def tdx_track(tdx):
    """One TRACK too many, the kick where it is refused, and the kick that is always due."""
    if tdx.state.peek() is not TdState.RUNNABLE:
        return True

    def track():
        return no_vcpus.tdh_do_no_vcpus(tdx, lambda: no_vcpus.tdh_mem_track(tdx.module, td=tdx.td))

    result = yield from track()
    if not result.is_error:
        result = yield from track()
        if result.status is Status.TDX_PREVIOUS_TLB_EPOCH_BUSY:
            tdx.kvm.kernel.reached("track_refused")
            yield from tdx.kvm.make_all_cpus_request(OUTSIDE_GUEST_MODE)
            result = yield from track()
    if tdx.bug_on(result, "TDH.MEM.TRACK"):
        return False
    yield from tdx.kvm.make_all_cpus_request(OUTSIDE_GUEST_MODE)
    return True
