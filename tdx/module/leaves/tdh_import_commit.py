"""TDH.IMPORT.COMMIT: the TD runs here from now on, while pages still arrive."""

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


@seamcall("TDH.IMPORT.COMMIT", leaf=82, rcx="td")
def tdh_import_commit(module: TdxModule, held: Held, *, td: Td) -> Steps[SeamcallReturn]:  # noqa: ARG001
    """op_state POST_IMPORT -> LIVE_IMPORT: no abort token will be made any more.

    Cost: no row in the table, `seamcall_null`. Source: tdh_import_commit.c; reference 6.2.
    """
    _, tdcs = yield from lock_td(held, td, "TDH.IMPORT.COMMIT", Operand.RCX, exclusive=True)
    # All checks passed.
    tdcs.migration.import_count += 1
    tdcs.op_state = OpState.LIVE_IMPORT
    return SUCCESS
