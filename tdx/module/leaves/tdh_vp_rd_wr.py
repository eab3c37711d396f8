"""TDH.VP.RD and TDH.VP.WR: the metadata of a vCPU, field by field.

Both associate the vCPU with the calling LP, and it stays so whatever happens next; a vCPU that runs elsewhere is not READY.
Source: TDX module 1.5.01, tdh_vp_rd_wr.c; the fields: `metadata`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.metadata import (
    ALL,
    FIELD_ID_NA,
    VP_FIELDS,
    read_field,
    write_field,
)
from tdx.module.objects import LogicalProcessor, Tdvps, VcpuState
from tdx.module.seamcall import associate, check_td, lock_vcpu, seamcall
from tdx.module.status import Operand, Refused, SeamcallReturn, Status, require
from vcpu.addresses import Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule

READABLE_STATES = (VcpuState.READY, VcpuState.DISABLED)
WRITABLE_STATES = (VcpuState.READY,)


@seamcall("TDH.VP.RD", leaf=26, rcx="tdvpr_pfn", rdx="field_id")
def tdh_vp_rd(
    module: TdxModule,  # noqa: ARG001
    held: Held,
    *,
    tdvpr_pfn: Pfn,
    lp: LogicalProcessor,
    field_id: int,
    version: int = 0,
) -> Steps[SeamcallReturn]:
    """Read a field; R8 returns the bits that may be seen. Version 1: as TDH.MNG.RD. Cost: no row in the table, `seamcall_null`."""
    try:
        vcpu = yield from _lock(held, tdvpr_pfn, lp, "TDH.VP.RD", READABLE_STATES)
        return (yield from read_field(VP_FIELDS, field_id, vcpu, debug=vcpu.tdcs.is_debug, version=version))
    except Refused as refused:
        refused.rdx = FIELD_ID_NA if version else 0
        raise


@seamcall("TDH.VP.WR", leaf=43, rcx="tdvpr_pfn", rdx="field_id", r8="data", r9="mask")
def tdh_vp_wr(
    module: TdxModule,  # noqa: ARG001
    held: Held,
    *,
    tdvpr_pfn: Pfn,
    lp: LogicalProcessor,
    field_id: int,
    data: int,
    mask: int = ALL,
) -> Steps[SeamcallReturn]:
    """Write the bits of `mask` of a field; R8 returns what was there, as far as it may be seen. Cost: `seamcall_null`."""
    vcpu = yield from _lock(held, tdvpr_pfn, lp, "TDH.VP.WR", WRITABLE_STATES)
    before = yield from write_field(VP_FIELDS, field_id, vcpu, data, mask, debug=vcpu.tdcs.is_debug)
    return SeamcallReturn(Status.TDX_SUCCESS, r8=before)


def _lock(
    held: Held, tdvpr_pfn: Pfn, lp: LogicalProcessor, leaf: str, states: tuple[VcpuState, ...]
) -> Steps[Tdvps]:
    """TDVPR and TDR shared, OP_STATE shared, then the association."""
    vcpu = yield from lock_vcpu(held, tdvpr_pfn, Operand.RCX, exclusive=False)
    tdcs = yield from check_td(held, vcpu.tdr, leaf)
    require(1 + len(vcpu.tdcx) >= tdcs.tdvps_pages, Status.TDX_TDCX_NUM_INCORRECT)
    state = yield vcpu.state.read_once()
    require(state in states, Status.TDX_VCPU_STATE_INCORRECT)
    yield from associate(vcpu, lp)
    return vcpu
