"""TDH.VP.INIT: the vCPU is complete; it can be entered once the TD is finalized."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.exits import LastTdExit
from tdx.module.objects import LogicalProcessor, VcpuState
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
    """Initialise the vCPU, which is then READY and associated with the calling LP.

    Not modelled: RDX, the guest's first RCX; INCONSISTENT_MSR, which comes by injection only and then before the vCPU was
    counted (the real module counts first and does not take it back). Source: tdh_vp_init.c; reference 6.1.
    """
    vcpu = yield from lock_vcpu(held, tdvpr_pfn, Operand.RCX, exclusive=True)
    tdcs = yield from check_td(held, vcpu.tdr, "TDH.VP.INIT")
    require(1 + len(vcpu.tdcx) >= vcpu.tdcs.tdvps_pages, Status.TDX_TDCX_NUM_INCORRECT)
    state = yield vcpu.state.read_once()
    require(state is VcpuState.UNINITIALIZED, Status.TDX_VCPU_STATE_INCORRECT)
    vcpus = yield tdcs.num_vcpus.fetch_add(1)
    if vcpus >= tdcs.max_vcpus:
        yield tdcs.num_vcpus.fetch_add(-1)
        raise Refused(Status.TDX_MAX_VCPUS_EXCEEDED)
    # All checks passed.
    yield vcpu.state.write_once(VcpuState.READY)
    vcpu.last_td_exit = LastTdExit.ASYNC_FAULT
    yield vcpu.assoc_lpid.write_once(lp.lpid)
    yield tdcs.num_assoc_vcpus.fetch_add(1)
    return SUCCESS
