"""TDH.EXPORT.PAUSE: stop the TD; what is left to export is exported while it stands still."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import next_epoch
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, ModuleShutdown, Operand, SeamcallReturn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.EXPORT.PAUSE", leaf=70, rcx="td")
def tdh_export_pause(module: TdxModule, held: Held, *, td: Td) -> Steps[SeamcallReturn]:  # noqa: ARG001
    """op_state LIVE_EXPORT -> PAUSED_EXPORT. No vCPU can be inside: each holds the TDR shared.

    TD_EPOCH += 1, as TRACK would: should the export be aborted, every vCPU flushes what it cached, at its next entry.
    Cost: no row in the table, `seamcall_null`. Source: tdh_export_pause.c; reference 7, 16.
    """
    _, tdcs = yield from lock_td(held, td, "TDH.EXPORT.PAUSE", Operand.RCX, exclusive=True)
    # All checks passed.
    before = yield tdcs.epoch.update(next_epoch, "next epoch")
    if before.refcount0 or before.refcount1:
        raise ModuleShutdown("a vCPU is inside although the TDR is held exclusive")
    tdcs.op_state = OpState.PAUSED_EXPORT
    return SUCCESS
