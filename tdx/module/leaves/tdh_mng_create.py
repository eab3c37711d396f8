"""TDH.MNG.CREATE: make a TD, of one page so far, and give it a key id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import HkidState, Tdr
from tdx.module.pamt import PageType
from tdx.module.seamcall import lock_new_page, seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MNG.CREATE", leaf=9, rcx="td", rdx="hkid")
def tdh_mng_create(module: TdxModule, held: Held, *, td: Td, hkid: int) -> Steps[SeamcallReturn]:
    """Turn a free page into the TDR of a new TD.

    RND_NO_ENTROPY comes by injection only. Source: tdh_mng_create.c; reference 6.1.
    """
    kot = module.kot
    require(hkid in kot.hkids, Status.TDX_OPERAND_INVALID, Operand.RDX)
    page = yield from lock_new_page(held, td.tdr_pfn, Operand.RCX)
    yield from held.exclusive(kot.lock, Operand.KOT)
    require(kot.hkids[hkid].state is HkidState.FREE, Status.TDX_HKID_NOT_FREE)
    # All checks passed.
    kot.hkids[hkid].state = HkidState.ASSIGNED
    tree_host_priority = module.profile.tree_host_priority
    tdr = Tdr(td.tdr_pfn, hkid, module.packages, tree_host_priority=tree_host_priority)
    page.assign(PageType.PT_TDR, None, tdr)
    yield from module.pamt.count_in(page)
    return SUCCESS
