"""TDH.IMPORT.TRACK: take the source's token: the next migration epoch begins here too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration import OUT_OF_ORDER
from tdx.module.migration_data import MBMD_BUFFER, Mbmd, MbType, TokenBuffer
from tdx.module.migration_steps import check_mbmd_buffer, fail_import
from tdx.module.objects import Tdcs
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.IMPORT.TRACK"


@seamcall(LEAF, leaf=84, rcx="td", r8="mbmd_buffer", r10="stream")
def tdh_import_track(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    token: TokenBuffer | None = None,
    mbmd_buffer: int = MBMD_BUFFER,
    stream: int = 0,
) -> Steps[SeamcallReturn]:
    """MIG_EPOCH := the token's; with the start token op_state STATE_IMPORT -> POST_IMPORT.

    A token that is not the source's next one ends the import for good, and so does the start token while a vCPU is missing.

    Args:
        token: the token. mbmd_buffer: R8. stream: R10, which must be 0.
    Cost: no row in the table, `seamcall_null`. Source: tdh_import_track.c; reference 6.2, 16.
    """
    _, tdcs = yield from lock_td(held, td, LEAF, Operand.RCX, exclusive=True)
    require(stream == 0, Status.TDX_OPERAND_INVALID, Operand.R10)
    check_mbmd_buffer(module, mbmd_buffer)
    migration = tdcs.migration
    migsc = migration.forward(0)
    yield from held.exclusive(migsc.lock, Operand.MIGSC)
    require(migsc.initialized, Status.TDX_MIGRATION_STREAM_STATE_INCORRECT)
    migsc.interrupted = None
    mbmd = None if token is None else token.mbmd
    total = yield migration.total_mb_count.read_once()
    if mbmd is None or not _is_next(mbmd, migration.mig_epoch, total):
        raise fail_import(tdcs, Status.TDX_INVALID_MBMD)
    if mbmd.mac != mbmd.mac_with(migsc.key):
        raise fail_import(tdcs, Status.TDX_INCORRECT_MBMD_MAC)
    if mbmd.mig_epoch == OUT_OF_ORDER:
        yield from _require_all_vcpus(tdcs)
        tdcs.op_state = OpState.POST_IMPORT
    # All checks passed.
    migsc.expected_mb_counter = 1
    yield migration.total_mb_count.fetch_add(1)
    migration.mig_epoch = mbmd.mig_epoch
    return SUCCESS


def _is_next(mbmd: Mbmd, mig_epoch: int, total_mb_count: int) -> bool:
    """Whether that is a token of a later epoch, and all bundles sent before it have arrived."""
    return (
        mbmd.kind is MbType.EPOCH_TOKEN
        and mbmd.migs_index == 0
        and mbmd.mb_counter == 0
        and mbmd.mig_epoch > mig_epoch
        and mbmd.value == total_mb_count + 1
    )


def _require_all_vcpus(tdcs: Tdcs) -> Steps[None]:
    arrived = yield tdcs.migration.num_migrated_vcpus.read_once()
    expected = yield tdcs.num_vcpus.read_once()
    if arrived != expected:
        raise fail_import(tdcs, Status.TDX_SOME_VCPUS_NOT_MIGRATED)
