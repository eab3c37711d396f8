"""TDH.IMPORT.END: all has arrived that will arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, Operand, SeamcallReturn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.IMPORT.END", leaf=81, rcx="td")
def tdh_import_end(module: TdxModule, held: Held, *, td: Td) -> Steps[SeamcallReturn]:  # noqa: ARG001
    """op_state POST_IMPORT or LIVE_IMPORT -> RUNNABLE. One that was committed was counted then.

    Cost: no row in the table, `seamcall_null`. Source: tdh_import_end.c; reference 6.2.
    """
    _, tdcs = yield from lock_td(held, td, "TDH.IMPORT.END", Operand.RCX, exclusive=True)
    # All checks passed.
    if tdcs.op_state is not OpState.LIVE_IMPORT:
        tdcs.migration.import_count += 1
    tdcs.op_state = OpState.RUNNABLE
    return SUCCESS
