"""TDH.EXPORT.STATE.IMMUTABLE: begin to export a TD, with what never changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration import MAX_EXPORT_COUNT, MIN_MIGS
from tdx.module.migration_data import MBMD_BUFFER, MbType, StateBundle, page_list_info
from tdx.module.migration_state import (
    PAGES,
    StateCall,
    begin_export,
    export_pages,
    finish_export,
    immutable_of,
)
from tdx.module.migration_steps import check_mbmd_buffer, lock_forward_stream
from tdx.module.objects import MIGRATABLE, LogicalProcessor
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import Operand, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SHIFT

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.EXPORT.STATE.IMMUTABLE"
KIND = MbType.IMMUTABLE_TD_STATE


@seamcall(LEAF, leaf=72, rcx="td", r8="mbmd_buffer", r9="page_list", r10="stream")
def tdh_export_state_immutable(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    bundle: StateBundle | None = None,
    mbmd_buffer: int = MBMD_BUFFER,
    page_list: int = page_list_info(PAGES[KIND]),
    stream: int = 0,
    lp: LogicalProcessor | None = None,
) -> Steps[SeamcallReturn]:
    """op_state RUNNABLE or LIVE_IMPORT -> LIVE_EXPORT, in the first migration epoch of a new session.

    Needs a decryption key that was set since the last session, and no page left exported by it. Key and counters are used up even if an
    interrupt ends the call; op_state changes when the last page of metadata is out.

    Args:
        bundle: out: MBMD and metadata. mbmd_buffer: R8. page_list: R9. stream: R10: stream 0, and `COMMAND_RESUME`.
        lp: whose interrupts end the call between two pages.
    Returns: RDX the pages of metadata written so far.
    Cost: no row in the table, `seamcall_null`. Source: tdh_export_state_immutable.c; reference 6.2, 16.
    """
    bundle = StateBundle() if bundle is None else bundle
    _, tdcs = yield from lock_td(held, td, LEAF, Operand.RCX, op_state_exclusive=True)
    migration = tdcs.migration
    yield from held.exclusive(migration.lock, Operand.MIG)
    require(bool(tdcs.attributes & MIGRATABLE), Status.TDX_TD_NOT_MIGRATABLE)
    exported = yield migration.mig_count.read_once()
    require(exported == 0, Status.TDX_PREVIOUS_EXPORT_CLEANUP_INCOMPLETE)
    require(migration.num_migs >= MIN_MIGS, Status.TDX_MIN_MIGS_NOT_CREATED)
    check_mbmd_buffer(module, mbmd_buffer)
    migsc = yield from lock_forward_stream(held, tdcs, stream, only_first=True)
    call = StateCall(LEAF, KIND, module, tdcs, migsc, bundle, page_list, stream, lp, td.tdr_pfn << PAGE_SHIFT)
    done = 0
    if call.is_resumed:
        require(migsc.initialized, Status.TDX_MIGRATION_STREAM_STATE_INCORRECT)
        done = call.resume()
    else:
        yield from _begin(call)
    metadata = yield from immutable_of(tdcs)
    stopped = yield from export_pages(call, done, metadata)
    if stopped is not None:
        return stopped
    # All checks passed.
    yield migration.total_mb_count.write_once(1)
    tdcs.op_state = OpState.LIVE_EXPORT
    return finish_export(call)


def _begin(call: StateCall) -> Steps[None]:
    """A new session."""
    sound = call.is_list_sound(PAGES[KIND]) and call.is_list_shared
    require(sound, Status.TDX_OPERAND_INVALID, Operand.R9)
    migration = call.tdcs.migration
    require(migration.dec_key_set, Status.TDX_MIGRATION_DECRYPTION_KEY_NOT_SET)
    migration.begin_session()
    yield migration.total_mb_count.write_once(0)
    yield migration.dirty_count.write_once(0)
    call.migsc.start(migration.enc_working_key)
    begin_export(call, migration.num_migs - 1)
    require(migration.export_count < MAX_EXPORT_COUNT, Status.TDX_MAX_EXPORTS_EXCEEDED)
    migration.export_count += 1
