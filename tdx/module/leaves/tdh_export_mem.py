"""TDH.EXPORT.MEM: send pages, send them again, or take back what was sent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration import Interrupted, MigrationContext, MigStream
from tdx.module.migration_data import (
    COMMAND_NEW,
    COMMAND_RESUME,
    MAC_LIST_ENTRIES,
    MBMD_BUFFER,
    SHARED_PAGE,
    GpaListEntry,
    GpaOperation,
    GpaStatus,
    Mbmd,
    MbType,
    MemoryBundle,
    PageListEntry,
    page_mac,
)
from tdx.module.migration_steps import (
    EntryFailed,
    ListCursor,
    PageRead,
    check_mbmd_buffer,
    check_memory_lists,
    interrupt_test,
    is_shared,
    lock_forward_stream,
    lock_listed_entry,
    private_gfn,
    require_listed,
    resume_list,
)
from tdx.module.objects import LogicalProcessor, Tdcs
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import NEXT_STATE, OpState
from tdx.module.septe import Septe, SeptState, W
from tdx.module.status import Operand, Refused, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SHIFT, PAGE_SIZE, PG_LEVEL_4K

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.EXPORT.MEM"
IN_ORDER = frozenset((OpState.LIVE_EXPORT, OpState.PAUSED_EXPORT))
CANCELLED = NEXT_STATE["TDH.EXPORT.RESTORE"]
"""A cancelled export makes of a page what RESTORE makes of it."""


@seamcall(
    LEAF,
    leaf=68,
    rcx="list_info",
    rdx="td",
    r8="mbmd_buffer",
    r9="mig_buffers",
    r10="stream",
    r11="mac_list_0",
    r12="mac_list_1",
)
def tdh_export_mem(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    gpa_list: list[GpaListEntry] | None = None,
    bundle: MemoryBundle | None = None,
    list_info: int | None = None,
    mbmd_buffer: int = MBMD_BUFFER,
    mig_buffers: int = SHARED_PAGE,
    stream: int = COMMAND_NEW,
    mac_list_0: int = SHARED_PAGE,
    mac_list_1: int = SHARED_PAGE,
    lp: LogicalProcessor | None = None,
) -> Steps[SeamcallReturn]:
    """Export the pages of a list: -> EXPORTED_BLOCKEDW or PENDING_EXPORTED_BLOCKEDW; cancelled ones -> MAPPED or PENDING.

    While the guest runs a page must be write-blocked, and BW_EPOCH tracked where the state asks for it; in PAUSED_EXPORT any page that
    was not sent or is dirty goes; after the start token any page goes again and nothing is cancelled. What the entries say afterwards
    (operation, pending) is part of the bundle. A page exported while it was writable keeps its W bit: the TD stands still.

    Args:
        gpa_list: in and out, see `migration_data`. bundle: out: MBMD, buffers, MACs; None if nobody wants to import them.
        list_info: RCX, or None for the whole list. stream: R10: stream index, and `COMMAND_RESUME` after an interruption.
        mbmd_buffer, mig_buffers, mac_list_0, mac_list_1: R8, R9, R11, R12: addresses only.
        lp: whose interrupts end the call between two entries.
    Returns: RCX the list-info word with the next entry, RDX the pages of shared memory that were written, at the end of the list; the
    count of entries that failed (since the last resumption) is added to TDX_SUCCESS.
    Cost: no row in the table, `seamcall_null`. Source: tdh_export_mem.c; reference 16.
    """
    gpa_list = [] if gpa_list is None else gpa_list
    cursor = ListCursor(list_info, gpa_list)
    bundle = MemoryBundle() if bundle is None else bundle
    info = cursor.info
    try:
        _, tdcs = yield from lock_td(held, td, LEAF, Operand.RDX)
        yield from held.shared(tdcs.migration.lock, Operand.MIG)
        migsc = yield from lock_forward_stream(held, tdcs, stream)
        yield from held.tree(tdcs)
        cursor.check(module, gpa_list)
        check_memory_lists(module, info, mig_buffers, mac_list_0, mac_list_1)
        check_mbmd_buffer(module, mbmd_buffer)
        bundle.room_for(info.last + 1)
        operands = (mig_buffers, mac_list_0, mac_list_1)
        if stream & COMMAND_RESUME:
            pages = resume_list(LEAF, migsc, tdcs.migration, (info.word, *operands))
        else:
            pages = _begin(migsc, tdcs.migration, cursor, bundle, stream & 0xFFFF)
        sender = _Sender(module, held, tdcs, migsc, stream & 0xFFFF, operands, pages)
        return (yield from _export(sender, cursor, gpa_list, bundle, lp))
    except Refused as refused:
        raise cursor.refused(refused) from None


def _begin(
    migsc: MigStream, migration: MigrationContext, cursor: ListCursor, bundle: MemoryBundle, index: int
) -> int:
    """A new call: start the stream if this is its first in the session, and write the MBMD. Returns the pages written so far."""
    info = cursor.info
    require(info.first == 0, Status.TDX_OPERAND_INVALID, Operand.RCX)
    if not migsc.initialized:
        migsc.start(migration.enc_working_key)
    migsc.interrupted = None
    mbmd = Mbmd(MbType.MEM, index, migsc.next_mb_counter, migration.mig_epoch, migsc.next_iv(), info.last + 1)
    mbmd.mac = mbmd.mac_with(migsc.key)
    bundle.mbmd = mbmd
    return 2 if info.last < MAC_LIST_ENTRIES else 3


@dataclass(slots=True)
class _Sender:
    """What stays the same from entry to entry, but for the pages written so far."""

    module: TdxModule
    held: Held
    tdcs: Tdcs
    migsc: MigStream
    migs_index: int
    operands: tuple[int, ...]
    pages: int


def _export(
    sender: _Sender,
    cursor: ListCursor,
    gpa_list: list[GpaListEntry],
    bundle: MemoryBundle,
    lp: LogicalProcessor | None,
) -> Steps[SeamcallReturn]:
    """Entry by entry, from the cursor on."""
    held, migsc, migration = sender.held, sender.migsc, sender.tdcs.migration
    problems = 0
    for at in cursor.entries():
        listed, buffer = gpa_list[at], bundle.buffers[at]
        asked = replace(listed)
        mark = held.depth
        entry: Septe | None = None
        try:
            entry = yield from _export_entry(sender, listed, buffer)
        except EntryFailed as failed:
            listed.failed(failed.status)
            problems += failed.status is not GpaStatus.SKIPPED
        iv = migsc.next_iv()
        if entry is None or listed.pending or listed.operation is GpaOperation.CANCEL:
            buffer.invalid, buffer.contents = True, ()
        elif is_shared(sender.module, buffer.pfn << PAGE_SHIFT, PAGE_SIZE):
            buffer.contents = yield PageRead(sender.module.memory, entry.pfn_at(PG_LEVEL_4K))
            sender.pages += 1
        else:  # too late: the page has its new state, but the list does not say so
            gpa_list[at] = asked
            raise Refused(Status.TDX_OPERAND_INVALID, Operand.MIG_BUFF_LIST_ENTRY)
        bundle.macs[at] = page_mac(migsc.key, sender.migs_index, iv, listed, buffer.contents)
        yield from held.release(down_to=mark)
        if at < cursor.info.last and (yield interrupt_test(lp)):
            cursor.at += 1
            operands = (cursor.word, *sender.operands)
            migsc.interrupted = Interrupted(LEAF, operands, sender.pages, migration.mig_epoch)
            return SeamcallReturn(Status.TDX_INTERRUPTED_RESUMABLE, rcx=cursor.word)
    yield migration.total_mb_count.fetch_add(1)
    migsc.next_mb_counter += 1
    return SeamcallReturn(Status.TDX_SUCCESS, problems or None, rcx=cursor.word, rdx=sender.pages)


def _export_entry(sender: _Sender, listed: GpaListEntry, buffer: PageListEntry) -> Steps[Septe]:
    """Lock the S-EPT entry of one list entry, see that its page may go, write its new state and the counts. Raises: EntryFailed."""
    module, held, tdcs = sender.module, sender.held, sender.tdcs
    if listed.operation is GpaOperation.NOP:
        require_listed(listed, listed.is_valid)
        raise EntryFailed(GpaStatus.SKIPPED)
    gfn = private_gfn(tdcs, listed)
    walk, entry = yield from lock_listed_entry(module, held, tdcs, gfn, LEAF)
    state = entry.state
    listed.operation = yield from _allowed(tdcs, listed.operation, state)
    listed.pending = state.is_pending
    listed.l2_map = 0
    migration = tdcs.migration
    if listed.operation is GpaOperation.CANCEL:
        written = entry.become(CANCELLED[state], PG_LEVEL_4K)
        sent = -1
    else:
        if not state.is_pending and buffer.invalid:
            raise EntryFailed(GpaStatus.MIG_BUFFER_NOT_AVAILABLE)
        written = Septe(entry.become(NEXT_STATE[LEAF][state], PG_LEVEL_4K) | entry & W)
        sent = 0 if state.is_exported else 1
    # This page is sure to be exported, or cancelled.
    yield module.write_entry(walk.septe, written)
    yield migration.mig_count.fetch_add(sent)
    yield migration.dirty_count.fetch_add(-1 if state.is_exported and state.is_dirty else 0)
    return entry


def _allowed(tdcs: Tdcs, operation: GpaOperation, state: SeptState) -> Steps[GpaOperation]:
    """What is done with a page of that state: on input, MIGRATE and REMIGRATE mean the same. Raises: EntryFailed."""
    op_state = tdcs.op_state
    if op_state not in IN_ORDER:
        if operation is GpaOperation.CANCEL:
            raise EntryFailed(GpaStatus.OP_STATE_INCORRECT)
        return GpaOperation.MIGRATE
    if operation is GpaOperation.CANCEL:
        _need(state in CANCELLED)
        return operation
    _need(not state.is_exported or state.is_dirty)
    if op_state is OpState.LIVE_EXPORT:
        _need(state.is_write_blocked)
        if state.is_tlb_tracking_required:
            bw_epoch = yield tdcs.migration.bw_epoch.read_once()
            unit = yield tdcs.epoch.read_once()
            if not unit.is_tlb_tracked(bw_epoch):
                raise EntryFailed(GpaStatus.TLB_TRACKING_NOT_DONE)
    return GpaOperation.REMIGRATE if state.is_exported else GpaOperation.MIGRATE


def _need(allowed: bool) -> None:
    if not allowed:
        raise EntryFailed(GpaStatus.SEPT_ENTRY_STATE_INCORRECT)
