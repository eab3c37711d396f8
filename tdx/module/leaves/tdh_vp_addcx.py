"""TDH.VP.ADDCX: add a page to a vCPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import TDVPS_PAGES_MAX, VcpuState
from tdx.module.pamt import PageType
from tdx.module.seamcall import check_td, lock_new_page, lock_vcpu, seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from vcpu.addresses import Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule


@seamcall("TDH.VP.ADDCX", leaf=4, rcx="pfn", rdx="tdvpr_pfn")
def tdh_vp_addcx(module: TdxModule, held: Held, *, tdvpr_pfn: Pfn, pfn: Pfn) -> Steps[SeamcallReturn]:
    """Add a TDCX page to the TDVPS. Source: tdh_vp_addcx.c; reference 6.1."""
    vcpu = yield from lock_vcpu(held, tdvpr_pfn, Operand.RDX, exclusive=True)
    yield from check_td(held, vcpu.tdr, "TDH.VP.ADDCX")
    state = yield vcpu.state.read_once()
    require(state is VcpuState.UNINITIALIZED, Status.TDX_VCPU_STATE_INCORRECT)
    require(1 + len(vcpu.tdcx) < TDVPS_PAGES_MAX, Status.TDX_TDCX_NUM_INCORRECT)
    page = yield from lock_new_page(held, pfn, Operand.RCX)
    # All checks passed.
    vcpu.tdcx.append(pfn)
    yield vcpu.tdr.chldcnt.fetch_add(1)
    page.assign(PageType.PT_TDCX, vcpu.tdr.pfn)
    yield from module.pamt.count_in(page)
    return SUCCESS
