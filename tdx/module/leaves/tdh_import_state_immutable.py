"""TDH.IMPORT.STATE.IMMUTABLE: begin to import a TD, instead of TDH.MNG.INIT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration import MIN_MIGS
from tdx.module.migration_data import MBMD_BUFFER, MbType, StateBundle, page_list_info
from tdx.module.migration_state import (
    PAGES,
    StateCall,
    check_import_list,
    import_pages,
    set_immutable,
    set_root,
    take_mbmd,
)
from tdx.module.migration_steps import check_import_mbmd_buffer, lock_forward_stream
from tdx.module.objects import LogicalProcessor, Tdr
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SHIFT

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.IMPORT.STATE.IMMUTABLE"
KIND = MbType.IMMUTABLE_TD_STATE


@seamcall(LEAF, leaf=85, rcx="td", r8="mbmd_buffer", r9="page_list", r10="stream")
def tdh_import_state_immutable(
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
    """op_state UNINITIALIZED -> MEMORY_IMPORT: the TDCS becomes that of the source's TD, with epoch 1 and nobody inside.

    Needs a decryption key; once it is used up, whatever goes wrong ends in FAILED_IMPORT.

    Args:
        bundle: MBMD and metadata. mbmd_buffer: R8. page_list: R9: exactly the pages that were written. stream: R10: stream 0, and
            `COMMAND_RESUME`. lp: whose interrupts end the call between two pages.
    Cost: no row in the table, `seamcall_null`. Source: tdh_import_state_immutable.c; reference 6.2, 16.
    """
    bundle = StateBundle() if bundle is None else bundle
    tdr, tdcs = yield from lock_td(held, td, LEAF, Operand.RCX, exclusive=True)
    migration = tdcs.migration
    require(migration.num_migs >= MIN_MIGS, Status.TDX_MIN_MIGS_NOT_CREATED)
    migsc = yield from lock_forward_stream(held, tdcs, stream, only_first=True)
    call = StateCall(LEAF, KIND, module, tdcs, migsc, bundle, page_list, stream, lp, td.tdr_pfn << PAGE_SHIFT)
    done = 0
    if call.is_resumed:
        require(migsc.initialized, Status.TDX_MIGRATION_STREAM_STATE_INCORRECT)
        done = call.resume(importing=True)
    else:
        yield from _begin(call, tdr, mbmd_buffer)
    check_import_list(call)
    stopped = yield from import_pages(call, done)
    if stopped is not None:
        return stopped
    if not (yield from set_immutable(tdr, bundle.metadata)):
        raise call.refuse_import(Status.TDX_OPERAND_INVALID, Operand.RDX)
    yield migration.total_mb_count.write_once(1)
    tdcs.op_state = OpState.MEMORY_IMPORT
    return SUCCESS


def _begin(call: StateCall, tdr: Tdr, mbmd_buffer: int) -> Steps[None]:
    """A new session. From the use of the key on, every failure ends it."""
    migration, migsc = call.tdcs.migration, call.migsc
    require(migration.dec_key_set, Status.TDX_MIGRATION_DECRYPTION_KEY_NOT_SET)
    migration.begin_session()
    yield migration.total_mb_count.write_once(0)
    migsc.start(migration.dec_working_key)
    set_root(tdr)
    check_import_mbmd_buffer(call.module, call.tdcs, mbmd_buffer)
    mbmd = take_mbmd(call, mb_counter=0, mig_epoch=0)
    if mbmd.value > migration.num_migs - 1:
        raise call.refuse_import(Status.TDX_NUM_MIGS_HIGHER_THAN_CREATED)
    migsc.expected_mb_counter = 1
