"""TDH.EXPORT.ABORT: the TD stays here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration_data import MBMD_BUFFER, Mbmd, MbType, TokenBuffer
from tdx.module.migration_steps import check_mbmd_buffer
from tdx.module.objects import Tdcs
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.EXPORT.ABORT"


@seamcall(LEAF, leaf=64, rcx="td", r8="mbmd_buffer", r10="stream")
def tdh_export_abort(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    token: TokenBuffer | None = None,
    mbmd_buffer: int | None = None,
    stream: int = 0,
) -> Steps[SeamcallReturn]:
    """Any export op_state -> RUNNABLE; the streams are closed. Exported pages stay exported until RESTORE.

    After the start token only the destination's word that it has given up makes this possible: its abort token.

    Args:
        token: the abort token, in POST_EXPORT only. mbmd_buffer: R8, which must be 0 before; None: whatever goes with `token`.
        stream: R10, which must be 0.
    Cost: no row in the table, `seamcall_null`. Source: tdh_export_abort.c; reference 6.2, 16.
    """
    _, tdcs = yield from lock_td(held, td, LEAF, Operand.RCX, op_state_exclusive=True)
    yield from held.exclusive(tdcs.migration.lock, Operand.MIG)
    require(stream == 0, Status.TDX_OPERAND_INVALID, Operand.R10)
    if mbmd_buffer is None:
        mbmd_buffer = 0 if token is None else MBMD_BUFFER
    if tdcs.op_state is OpState.POST_EXPORT:
        check_mbmd_buffer(module, mbmd_buffer)
        yield from _check_token(held, tdcs, None if token is None else token.mbmd)
    else:
        require(mbmd_buffer == 0, Status.TDX_OPERAND_INVALID, Operand.R8)
    # All checks passed.
    tdcs.migration.close_streams()
    tdcs.op_state = OpState.RUNNABLE
    return SUCCESS


def _check_token(held: Held, tdcs: Tdcs, mbmd: Mbmd | None) -> Steps[None]:
    """Refuse what is not the abort token that the destination of this session has made."""
    if mbmd is None or mbmd.kind is not MbType.ABORT_TOKEN or mbmd.migs_index:
        raise Refused(Status.TDX_INVALID_MBMD)
    migration = tdcs.migration
    migsc = migration.backward
    yield from held.exclusive(migsc.lock, Operand.MIGSC)
    if not migsc.initialized:
        migsc.start(migration.dec_working_key)
    migsc.interrupted = None
    require(mbmd.mac == mbmd.mac_with(migsc.key), Status.TDX_INCORRECT_MBMD_MAC)
