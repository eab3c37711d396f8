"""R55: KVM_TDX_FINALIZE_VM does not take the locks that keep the other TD-build ioctls out.

Source: 15945e9ec195 "KVM: TDX: Guard VM state transitions with "all" the locks". Both calls want the TDR exclusive, and
neither of them expects to find it busy.
"""

from sim import replaces
from tdx.kvm import life
from tdx.kvm.state import TdState
from tdx.module import tdh_mr_finalize


@replaces(life.td_finalize)
def td_finalize(tdx):
    """MR.FINALIZE, the state, the permission to prefault; under no lock."""
    life.must(tdx, "TDH.MR.FINALIZE", (yield from tdh_mr_finalize(tdx.module, td=tdx.td)))
    yield tdx.state.write(TdState.RUNNABLE)
    yield tdx.kvm.pre_fault_allowed.write(True)
