"""TDH.MNG.VPFLUSHDONE: no vCPU is associated any more; the key id may be flushed."""

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


@seamcall("TDH.MNG.VPFLUSHDONE", leaf=19, rcx="td")
def tdh_mng_vpflushdone(module: TdxModule, held: Held, *, td: Td) -> Steps[SeamcallReturn]:
    """Block the TD for good; every package has its caches to write back. Source: tdh_mng_vpflushdone.c; reference 6.1."""
    tdr = yield from lock_tdr(held, td, Operand.RCX, exclusive=True)
    yield from held.exclusive(module.kot.lock, Operand.KOT)
    require(
        tdr.lifecycle in (Lifecycle.HKID_ASSIGNED, Lifecycle.KEYS_CONFIGURED),
        Status.TDX_LIFECYCLE_STATE_INCORRECT,
    )
    associated = yield tdr.tdcs.num_assoc_vcpus.read_once()
    require(associated == 0, Status.TDX_FLUSHVP_NOT_DONE)
    # All checks passed.
    tdr.lifecycle = Lifecycle.BLOCKED
    hkid = module.kot.hkids[tdr.hkid]
    hkid.state = HkidState.FLUSHED
    hkid.to_write_back = set(range(module.packages))
    return SUCCESS
