"""TDH.MNG.KEY.FREEID: give the key id back; the TD's pages may be reclaimed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import HkidState, Lifecycle
from tdx.module.seamcall import lock_tdr, seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MNG.KEY.FREEID", leaf=20, rcx="td")
def tdh_mng_key_freeid(module: TdxModule, held: Held, *, td: Td) -> Steps[SeamcallReturn]:
    """Free the key id once all packages have written back their caches. Source: tdh_mng_key_freeid.c; reference 6.1."""
    tdr = yield from lock_tdr(held, td, Operand.RCX, exclusive=True)
    require(tdr.lifecycle is Lifecycle.BLOCKED, Status.TDX_LIFECYCLE_STATE_INCORRECT)
    yield from held.exclusive(module.kot.lock, Operand.KOT)
    hkid = module.kot.hkids[tdr.hkid]
    require(not hkid.to_write_back, Status.TDX_WBCACHE_NOT_COMPLETE)
    # All checks passed.
    hkid.state = HkidState.FREE
    tdr.lifecycle = Lifecycle.TEARDOWN
    return SUCCESS
