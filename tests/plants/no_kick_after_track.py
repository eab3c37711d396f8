"""What if TDH.MEM.TRACK were not followed by a kick (Z3)? A vCPU in the guest keeps its old epoch and its translations."""

from sim import replaces
from tdx.kvm import no_vcpus
from tdx.kvm.state import TdState


@replaces(no_vcpus.tdx_track)
def tdx_track(tdx):
    """TRACK only."""
    if tdx.state.peek() is not TdState.RUNNABLE:
        return True
    result = yield from no_vcpus.tdh_do_no_vcpus(tdx, lambda: no_vcpus.tdh_mem_track(tdx.module, td=tdx.td))
    return not tdx.bug_on(result, "TDH.MEM.TRACK")
