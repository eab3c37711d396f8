"""TDH.MR.FINALIZE: the TD is built; vCPUs may enter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MR.FINALIZE", leaf=17, rcx="td")
def tdh_mr_finalize(module: TdxModule, held: Held, *, td: Td) -> Steps[SeamcallReturn]:  # noqa: ARG001
    """Close the measurement: op_state INITIALIZED -> RUNNABLE. Source: tdh_mr_finalize.c; reference 6.1."""
    _, tdcs = yield from lock_td(held, td, "TDH.MR.FINALIZE", Operand.RCX, exclusive=True)
    vcpus = yield tdcs.num_vcpus.read_once()
    require(vcpus > 0, Status.TDX_NO_VCPUS)
    # All checks passed.
    tdcs.op_state = OpState.RUNNABLE
    return SUCCESS
