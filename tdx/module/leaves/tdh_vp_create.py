"""TDH.VP.CREATE: make a vCPU, of one page so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import Tdvps
from tdx.module.pamt import PageType
from tdx.module.seamcall import lock_new_page, lock_td, seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn
from vcpu.addresses import Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.VP.CREATE", leaf=10, rcx="tdvpr_pfn", rdx="td")
def tdh_vp_create(module: TdxModule, held: Held, *, td: Td, tdvpr_pfn: Pfn) -> Steps[SeamcallReturn]:
    """Turn a free page into a TDVPR. Source: tdh_vp_create.c; reference 6.1."""
    tdr, _ = yield from lock_td(held, td, "TDH.VP.CREATE", Operand.RDX)
    page = yield from lock_new_page(held, tdvpr_pfn, Operand.RCX)
    # All checks passed.
    vcpu = Tdvps(tdvpr_pfn, tdr)
    yield tdr.chldcnt.fetch_add(1)
    page.assign(PageType.PT_TDVPR, td.tdr_pfn, vcpu)
    tdr.vcpus.append(vcpu)
    yield from module.pamt.count_in(page)
    return SUCCESS
