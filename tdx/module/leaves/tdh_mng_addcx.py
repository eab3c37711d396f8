"""TDH.MNG.ADDCX: add a page to the TDCS; one of them becomes the S-EPT root."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import TDCX_PAGES_MAX, Lifecycle
from tdx.module.pamt import PageType
from tdx.module.seamcall import lock_new_page, lock_tdr, seamcall
from tdx.module.sept_states import ALLOWED_OP_STATES
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from vcpu.addresses import Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MNG.ADDCX", leaf=1, rcx="pfn", rdx="td")
def tdh_mng_addcx(module: TdxModule, held: Held, *, td: Td, pfn: Pfn) -> Steps[SeamcallReturn]:
    """Add a TDCX page. RND_NO_ENTROPY comes by injection only. Source: tdh_mng_add_cx.c; reference 6.1."""
    tdr = yield from lock_tdr(held, td, Operand.RDX, exclusive=True)
    require(not tdr.fatal, Status.TDX_TD_FATAL)
    require(tdr.lifecycle is Lifecycle.KEYS_CONFIGURED, Status.TDX_TD_KEYS_NOT_CONFIGURED)
    require(len(tdr.tdcx) < TDCX_PAGES_MAX, Status.TDX_TDCX_NUM_INCORRECT)
    page = yield from lock_new_page(held, pfn, Operand.RCX)
    require(tdr.tdcs.op_state in ALLOWED_OP_STATES["TDH.MNG.ADDCX"], Status.TDX_OP_STATE_INCORRECT)
    # All checks passed.
    tdr.tdcx.append(pfn)
    yield tdr.chldcnt.fetch_add(1)
    page.assign(PageType.PT_TDCX, td.tdr_pfn)
    yield from module.pamt.count_in(page)
    return SUCCESS
