"""TDH.VP.INIT: the vCPU is complete; it can be entered once the TD is finalized."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import TDVPS_PAGES, LogicalProcessor, VcpuState
from tdx.module.seamcall import check_td, lock_vcpu, seamcall
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status, require
from vcpu.addresses import Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule


@seamcall("TDH.VP.INIT", leaf=22, rcx="tdvpr_pfn")
def tdh_vp_init(
    module: TdxModule,  # noqa: ARG001
    held: Held,
    *,
    tdvpr_pfn: Pfn,
    lp: LogicalProcessor,
) -> Steps[SeamcallReturn]:
    """Initialise the vCPU, which is then READY and associated with the calling LP. Reference 6.1."""
    vcpu = yield from lock_vcpu(held, tdvpr_pfn, Operand.RCX, exclusive=True)
    tdcs = yield from check_td(held, vcpu.tdr, "TDH.VP.INIT")
    require(1 + len(vcpu.tdcx) >= TDVPS_PAGES, Status.TDX_TDCX_NUM_INCORRECT)
    state = yield vcpu.state.read_once()
    require(state is VcpuState.UNINITIALIZED, Status.TDX_VCPU_STATE_INCORRECT)
    vcpus = yield tdcs.num_vcpus.fetch_add(1)
    if vcpus >= tdcs.max_vcpus:
        yield tdcs.num_vcpus.fetch_add(-1)
        raise Refused(Status.TDX_MAX_VCPUS_EXCEEDED)
    # All checks passed.
    yield vcpu.assoc_lpid.write_once(lp.lpid)
    yield tdcs.num_assoc_vcpus.fetch_add(1)
    yield vcpu.state.write_once(VcpuState.READY)
    return SUCCESS
