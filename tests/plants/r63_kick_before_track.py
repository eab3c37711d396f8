"""R63: the kick comes before TDH.MEM.TRACK, so that a vCPU may enter in between under the old epoch.

Source: the protocol comment above tdx_track() in tdx.c. TRACK without any kick is no_kick_after_track.
"""

from sim import replaces
from tdx.kvm import no_vcpus
from tdx.kvm.state import TdState
from vcpu.vcpu import OUTSIDE_GUEST_MODE


@replaces(no_vcpus.tdx_track)
def tdx_track(tdx):
    """Kick, TRACK."""
    if tdx.state.peek() is not TdState.RUNNABLE:
        return True
    yield from tdx.kvm.make_all_cpus_request(OUTSIDE_GUEST_MODE)
    result = yield from no_vcpus.tdh_do_no_vcpus(tdx, lambda: no_vcpus.tdh_mem_track(tdx.module, td=tdx.td))
    return not tdx.bug_on(result, "TDH.MEM.TRACK")
