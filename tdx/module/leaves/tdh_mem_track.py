"""TDH.MEM.TRACK: begin a new TLB epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import next_epoch
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MEM.TRACK", leaf=38, cost="tdh_mem_track", rcx="td")
def tdh_mem_track(module: TdxModule, held: Held, *, td: Td) -> Steps[SeamcallReturn]:  # noqa: ARG001
    """TD_EPOCH += 1, unless a vCPU is still inside that entered in the epoch before this one. Section 7."""
    _, tdcs = yield from lock_td(held, td, "TDH.MEM.TRACK", Operand.RCX)
    yield from held.exclusive(tdcs.epoch_lock, Operand.TD_EPOCH, met="td_epoch_busy")
    unit = yield tdcs.epoch.read_once()
    require(unit.refcount(unit.epoch + 1) == 0, Status.TDX_PREVIOUS_TLB_EPOCH_BUSY)
    # All checks passed.
    yield tdcs.epoch.update(next_epoch, "next epoch")
    return SUCCESS
