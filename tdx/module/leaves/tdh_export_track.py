"""TDH.EXPORT.TRACK: begin the next migration epoch, or the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration import OUT_OF_ORDER
from tdx.module.migration_data import COMMAND_IN_ORDER_DONE, MBMD_BUFFER, Mbmd, MbType, TokenBuffer
from tdx.module.migration_steps import check_mbmd_buffer, require_first_stream
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.EXPORT.TRACK"


@seamcall(LEAF, leaf=71, rcx="td", r8="mbmd_buffer", r10="stream")
def tdh_export_track(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    token: TokenBuffer | None = None,
    mbmd_buffer: int = MBMD_BUFFER,
    stream: int = 0,
) -> Steps[SeamcallReturn]:
    """MIG_EPOCH += 1 and an epoch token; with `COMMAND_IN_ORDER_DONE` the start token: op_state PAUSED_EXPORT -> POST_EXPORT.

    The start token needs that no exported page is dirty. That all vCPUs were exported is for the other side to see.

    Args:
        token: out: the token. mbmd_buffer: R8. stream: R10: stream 0, and the command.
    Cost: no row in the table, `seamcall_null`. Source: tdh_export_track.c; reference 6.2, 16.
    """
    _, tdcs = yield from lock_td(held, td, LEAF, Operand.RCX, op_state_exclusive=True)
    migration = tdcs.migration
    yield from held.exclusive(migration.lock, Operand.MIG)
    require_first_stream(stream)
    check_mbmd_buffer(module, mbmd_buffer)
    migsc = migration.forward(0)
    yield from held.exclusive(migsc.lock, Operand.MIGSC)
    require(migsc.initialized, Status.TDX_MIGRATION_STREAM_STATE_INCORRECT)
    if stream & COMMAND_IN_ORDER_DONE:
        require(tdcs.op_state is OpState.PAUSED_EXPORT, Status.TDX_OP_STATE_INCORRECT)
        dirty = yield migration.dirty_count.read_once()
        require(dirty == 0, Status.TDX_EXPORTED_DIRTY_PAGES_REMAIN)
        migration.mig_epoch = OUT_OF_ORDER
        tdcs.op_state = OpState.POST_EXPORT
    else:
        require(migration.mig_epoch != OUT_OF_ORDER - 1, Status.TDX_MIGRATION_EPOCH_OVERFLOW)
        migration.mig_epoch += 1
    # All checks passed.
    migsc.interrupted = None
    total = yield migration.total_mb_count.fetch_add(1)
    mbmd = Mbmd(MbType.EPOCH_TOKEN, 0, 0, migration.mig_epoch, migsc.next_iv(), total + 1)
    mbmd.mac = mbmd.mac_with(migsc.key)
    migsc.next_mb_counter = 1
    if token is not None:
        token.mbmd = mbmd
    return SUCCESS
