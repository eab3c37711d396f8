"""TDH.IMPORT.ABORT: give up, and say so to the source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration_data import MBMD_BUFFER, Mbmd, MbType, TokenBuffer
from tdx.module.migration_steps import check_mbmd_buffer
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import Operand, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.IMPORT.ABORT"


@seamcall(LEAF, leaf=80, rcx="td", r8="mbmd_buffer", r10="stream")
def tdh_import_abort(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    token: TokenBuffer | None = None,
    mbmd_buffer: int = MBMD_BUFFER,
    stream: int = 0,
) -> Steps[SeamcallReturn]:
    """op_state -> FAILED_IMPORT, and an abort token that lets the source go on. Not possible once committed (LIVE_IMPORT).

    Args:
        token: out: the abort token. mbmd_buffer: R8. stream: R10, which must be 0.
    Returns: TDX_SUCCESS with the fatal bit: the TD can only be torn down.
    Cost: no row in the table, `seamcall_null`. Source: tdh_import_abort.c; reference 6.2, 16.
    """
    _, tdcs = yield from lock_td(held, td, LEAF, Operand.RCX, exclusive=True)
    require(stream == 0, Status.TDX_OPERAND_INVALID, Operand.R10)
    check_mbmd_buffer(module, mbmd_buffer)
    migration = tdcs.migration
    migsc = migration.backward
    yield from held.exclusive(migsc.lock, Operand.MIGSC)
    # All checks passed.
    tdcs.op_state = OpState.FAILED_IMPORT
    if not migsc.initialized:
        migsc.start(migration.enc_working_key)
    migsc.interrupted = None
    mbmd = Mbmd(MbType.ABORT_TOKEN, 0, migsc.next_mb_counter, 0, migsc.next_iv())
    mbmd.mac = mbmd.mac_with(migsc.key)
    migsc.next_mb_counter += 1
    if token is not None:
        token.mbmd = mbmd
    return SeamcallReturn(Status.TDX_SUCCESS, fatal=True)
