"""TDH.IMPORT.MEM: pages that arrive, arrive again, or are taken back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.import_page import IN_ORDER, Arrival, Importer, ImportFailed, import_entry
from tdx.module.migration import Interrupted
from tdx.module.migration_data import (
    COMMAND_NEW,
    COMMAND_RESUME,
    MBMD_BUFFER,
    SHARED_PAGE,
    GpaListEntry,
    GpaStatus,
    Mbmd,
    MbType,
    MemoryBundle,
    PageListEntry,
)
from tdx.module.migration_steps import (
    EntryFailed,
    ListCursor,
    abort_import,
    check_mbmd_buffer,
    check_memory_lists,
    interrupt_test,
    is_shared,
    lock_forward_stream,
    resume_list,
)
from tdx.module.objects import LogicalProcessor
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.status import NULL_PA, Operand, Refused, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SIZE

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.IMPORT.MEM"


@seamcall(
    LEAF,
    leaf=83,
    rcx="list_info",
    rdx="td",
    r8="mbmd_buffer",
    r9="mig_buffers",
    r10="stream",
    r11="mac_list_0",
    r12="mac_list_1",
    r13="new_page_list",
)
def tdh_import_mem(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    gpa_list: list[GpaListEntry] | None = None,
    bundle: MemoryBundle | None = None,
    new_pages: list[PageListEntry] | None = None,
    list_info: int | None = None,
    mbmd_buffer: int = MBMD_BUFFER,
    mig_buffers: int = SHARED_PAGE,
    stream: int = COMMAND_NEW,
    mac_list_0: int = SHARED_PAGE,
    mac_list_1: int = SHARED_PAGE,
    new_page_list: int | None = None,
    lp: LogicalProcessor | None = None,
) -> Steps[SeamcallReturn]:
    """Import the pages of a list: FREE or REMOVED -> MAPPED or PENDING; once more; or cancelled, -> REMOVED.

    Until its MBMD is accepted a call changes nothing. From then on what goes wrong ends the session: FAILED_IMPORT with the fatal bit, or
    RUNNABLE if it was committed (LIVE_IMPORT). After the start token what the host may have brought about is only counted.
    op_state changes although its lock is held shared: other calls of this TD may have read it before.

    Args:
        gpa_list, bundle: as EXPORT.MEM left them; `MemoryBundle.sent_to` makes a bundle without a source.
        new_pages: pages that become the TD's, index by index; None, or an invalid entry: the migration buffer's own page does.
        list_info: RCX, or None for the whole list. stream: R10: stream index, and `COMMAND_RESUME` after an interruption.
        mbmd_buffer, mig_buffers, mac_list_0, mac_list_1, new_page_list: R8, R9, R11 to R13: addresses only. None: what fits `new_pages`.
        lp: whose interrupts end the call between two entries.
    Returns: RCX the list-info word with the next entry, or with the one at fault; the count of entries that failed (since the last
    resumption) is added to TDX_SUCCESS.
    Cost: no row in the table, `seamcall_null`. Source: tdh_import_mem.c; reference 16.
    """
    gpa_list = [] if gpa_list is None else gpa_list
    bundle = MemoryBundle() if bundle is None else bundle
    cursor = ListCursor(list_info, gpa_list)
    info = cursor.info
    if new_page_list is None:
        new_page_list = NULL_PA if new_pages is None else SHARED_PAGE
    try:
        tdr, tdcs = yield from lock_td(held, td, LEAF, Operand.RDX)
        migration = tdcs.migration
        yield from held.shared(migration.lock, Operand.MIG)
        migsc = yield from lock_forward_stream(held, tdcs, stream)
        yield from held.tree(tdcs)
        cursor.check(module, gpa_list)
        check_memory_lists(module, info, mig_buffers, mac_list_0, mac_list_1)
        if new_page_list == NULL_PA:
            new_pages = None
        else:
            require(is_shared(module, new_page_list, PAGE_SIZE), Status.TDX_OPERAND_INVALID, Operand.R13)
            new_pages = [] if new_pages is None else new_pages
        check_mbmd_buffer(module, mbmd_buffer)
        bundle.room_for(info.last + 1, new_pages)
        importer = Importer(module, held, tdr, tdcs, migsc, stream & 0xFFFF)
        operands = (mig_buffers, mac_list_0, mac_list_1, new_page_list)
        if stream & COMMAND_RESUME:
            resume_list(LEAF, migsc, migration, (info.word, *operands))
        else:
            _begin(importer, cursor, bundle.mbmd)
        return (yield from _import(importer, cursor, gpa_list, bundle, new_pages, operands, lp))
    except Refused as refused:
        raise cursor.refused(refused) from None


def _begin(importer: Importer, cursor: ListCursor, mbmd: Mbmd | None) -> None:
    """A new call: refuse what is not the stream's next bundle; after that it cannot be replayed."""
    migsc, migration = importer.migsc, importer.tdcs.migration
    require(cursor.info.first == 0, Status.TDX_OPERAND_INVALID, Operand.RCX)
    if not migsc.initialized:
        migsc.start(migration.dec_working_key)
    migsc.interrupted = None
    in_order = importer.tdcs.op_state in IN_ORDER
    if (
        mbmd is None
        or (mbmd.kind, mbmd.migs_index) != (MbType.MEM, importer.migs_index)
        or (mbmd.mig_epoch, mbmd.value) != (migration.mig_epoch, cursor.info.last + 1)
        or (in_order and mbmd.mb_counter != migsc.expected_mb_counter)
    ):
        raise Refused(Status.TDX_INVALID_MBMD)
    migsc.iv_counter = mbmd.iv_counter
    require(mbmd.mac == mbmd.mac_with(migsc.key), Status.TDX_INCORRECT_MBMD_MAC)
    migsc.expected_mb_counter += 1


def _import(
    importer: Importer,
    cursor: ListCursor,
    gpa_list: list[GpaListEntry],
    bundle: MemoryBundle,
    new_pages: list[PageListEntry] | None,
    operands: tuple[int, ...],
    lp: LogicalProcessor | None,
) -> Steps[SeamcallReturn]:
    """Entry by entry, from the cursor on."""
    held, migsc, migration = importer.held, importer.migsc, importer.tdcs.migration
    problems = 0
    for at in cursor.entries():
        new_page = None if new_pages is None else new_pages[at]
        arrival = Arrival(gpa_list[at], bundle.buffers[at], new_page, bundle.macs[at], migsc.next_iv())
        mark = held.depth
        try:
            yield from import_entry(importer, arrival)
        except EntryFailed as skipped:
            _not_used(arrival, skipped.status)
        except ImportFailed as failed:
            _not_used(arrival, failed.status)
            if not failed.in_order_only or importer.tdcs.op_state in IN_ORDER:
                raise abort_import(importer.tdcs, failed.refused) from None
            problems += 1
        yield from held.release(down_to=mark)
        if at < cursor.info.last and (yield interrupt_test(lp)):
            cursor.at += 1
            migsc.interrupted = Interrupted(LEAF, (cursor.word, *operands), 0, migration.mig_epoch)
            return SeamcallReturn(Status.TDX_INTERRUPTED_RESUMABLE, rcx=cursor.word)
    yield migration.total_mb_count.fetch_add(1)
    return SeamcallReturn(Status.TDX_SUCCESS, problems or None, rcx=cursor.word)


def _not_used(arrival: Arrival, status: GpaStatus) -> None:
    """Say so in both lists."""
    arrival.listed.failed(status)
    if arrival.new_page is not None:
        arrival.new_page.invalid = True
