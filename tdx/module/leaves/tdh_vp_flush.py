"""TDH.VP.FLUSH: take a vCPU off its LP, with all that the LP has cached for its TD."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import NOT_ASSOCIATED, Lifecycle, LogicalProcessor
from tdx.module.seamcall import lock_vcpu, seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from vcpu.addresses import Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule


@seamcall("TDH.VP.FLUSH", leaf=18, rcx="tdvpr_pfn")
def tdh_vp_flush(
    module: TdxModule,  # noqa: ARG001
    held: Held,
    *,
    tdvpr_pfn: Pfn,
    lp: LogicalProcessor,
) -> Steps[SeamcallReturn]:
    """Drop the association with the calling LP. Busy while the vCPU is inside TDH.VP.ENTER.

    Neither a fatal TD nor a DISABLED vCPU keeps it from being flushed. Source: tdh_vp_flush.c; reference 6.1.
    """
    vcpu = yield from lock_vcpu(held, tdvpr_pfn, Operand.RCX, exclusive=True)
    require(vcpu.tdr.lifecycle is Lifecycle.KEYS_CONFIGURED, Status.TDX_TD_KEYS_NOT_CONFIGURED)
    require(1 + len(vcpu.tdcx) >= vcpu.tdcs.tdvps_pages, Status.TDX_TDCX_NUM_INCORRECT)
    associated = yield vcpu.assoc_lpid.read_once()
    require(associated == lp.lpid, Status.TDX_VCPU_NOT_ASSOCIATED)
    # All checks passed.
    lp.flush_tlb(vcpu.tdr.pfn)
    yield vcpu.assoc_lpid.write_once(NOT_ASSOCIATED)
    yield vcpu.tdcs.num_assoc_vcpus.fetch_add(-1)
    lp.last_tdvpr = None
    return SUCCESS
