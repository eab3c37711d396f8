"""TDH.MEM.TRACK: begin a new TLB epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import next_epoch
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.status import SUCCESS, ModuleShutdown, Operand, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

EPOCH_MAX = (1 << 63) - 1


@seamcall("TDH.MEM.TRACK", leaf=38, cost="tdh_mem_track", rcx="td")
def tdh_mem_track(module: TdxModule, held: Held, *, td: Td) -> Steps[SeamcallReturn]:
    """TD_EPOCH += 1, unless a vCPU is still inside that entered in the epoch before this one.

    The check and the step are two accesses: a vCPU that leaves in between counts the REFCOUNT down in the same word. From 1.5.05 on
    an epoch that has become 2^63 - 1 shuts the module down: BEPOCHs with bit 63 have another meaning.
    Raises: ModuleShutdown.
    Source: tdh_mem_track.c; reference 8.10, section 7.
    """
    _, tdcs = yield from lock_td(held, td, "TDH.MEM.TRACK", Operand.RCX)
    yield from held.exclusive(tdcs.epoch_lock, Operand.TD_EPOCH, met="td_epoch_busy")
    unit = yield tdcs.epoch.read_once()
    require(unit.refcount(unit.epoch + 1) == 0, Status.TDX_PREVIOUS_TLB_EPOCH_BUSY)
    # All checks passed.
    yield tdcs.epoch.update(next_epoch, "next epoch")
    if module.profile.epoch_overflow_is_fatal and unit.epoch + 1 >= EPOCH_MAX:
        raise ModuleShutdown(f"TD_EPOCH is {EPOCH_MAX:#x}")
    return SUCCESS
