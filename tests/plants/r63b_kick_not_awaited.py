"""R63, a variant: the kick after TDH.MEM.TRACK is sent, and nobody waits until the vCPUs have left the guest.

Source: the protocol comment above tdx_track() in tdx.c.
"""

from sim import replaces
from tdx.kvm import no_vcpus
from tdx.kvm.state import TdState
from vcpu.vcpu import OUTSIDE_GUEST_MODE


@replaces(no_vcpus.tdx_track)
def tdx_track(tdx):
    """TRACK, and IPIs without acknowledgement."""
    if tdx.state.peek() is not TdState.RUNNABLE:
        return True
    result = yield from no_vcpus.tdh_do_no_vcpus(tdx, lambda: no_vcpus.tdh_mem_track(tdx.module, td=tdx.td))
    if tdx.bug_on(result, "TDH.MEM.TRACK"):
        return False
    yield from tdx.kvm.make_all_cpus_request(OUTSIDE_GUEST_MODE._replace(wait=False))
    return True
