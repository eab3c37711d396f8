"""One entry of TDH.IMPORT.MEM's list: what it does to a page, and how it fails.

MIGRATE makes a page, REMIGRATE gives it new contents, CANCEL takes it away; the last two only before the start token. The
source's MAC is compared last, when the page already has its new contents: no entry is written, and no PAMT, before it is right.
Source: TDX module 1.5.01, tdh_import_mem.c; reference 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration import MIG_EPOCH_BITS
from tdx.module.migration_data import (
    Contents,
    GpaListEntry,
    GpaOperation,
    GpaStatus,
    Mac,
    PageListEntry,
    page_mac,
)
from tdx.module.migration_steps import EntryFailed, is_shared, lock_listed_entry, write_page
from tdx.module.pamt import MAX_PFN, PageType
from tdx.module.sept_states import OpState
from tdx.module.septe import Septe, SeptState, make, make_removed
from tdx.module.status import Operand, Refused, Status
from tdx.module.walk import Walk
from vcpu.addresses import PAGE_SHIFT, PAGE_SIZE, PG_LEVEL_4K, Pfn, gfn_of

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.migration import MigStream
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdcs, Tdr
    from tdx.module.pamt import PamtEntry

LEAF = "TDH.IMPORT.MEM"
IN_ORDER = frozenset((OpState.MEMORY_IMPORT, OpState.STATE_IMPORT))
FIRST_TIME = frozenset((SeptState.FREE, SeptState.REMOVED))
THERE_ALREADY = frozenset((SeptState.MAPPED, SeptState.PENDING))
BLOCKED_AS = {SeptState.MAPPED: SeptState.BLOCKED, SeptState.PENDING: SeptState.PENDING_BLOCKED}
REFUSED_AS = {
    GpaStatus.SEPT_WALK_FAILED: Status.TDX_EPT_WALK_FAILED,
    GpaStatus.SEPT_ENTRY_BUSY_HOST_PRIORITY: Status.TDX_OPERAND_BUSY,
    GpaStatus.SEPT_ENTRY_STATE_INCORRECT: Status.TDX_EPT_ENTRY_STATE_INCORRECT,
}


class ImportFailed(Exception):
    """An entry that cannot be imported. Args: its status, what the call refuses with, and whether that ends the session.

    `in_order_only`: it ends the session before the start token; after it the list goes on, for the host may have changed the tree.
    """

    def __init__(self, status: GpaStatus, refused: Refused, *, in_order_only: bool = False) -> None:
        super().__init__(status, refused)
        self.status = status
        self.refused = refused
        self.in_order_only = in_order_only


@dataclass(slots=True)
class Importer:
    """What stays the same from entry to entry."""

    module: TdxModule
    held: Held
    tdr: Tdr
    tdcs: Tdcs
    migsc: MigStream
    migs_index: int


@dataclass(slots=True)
class Arrival:
    """One list entry with what belongs to it. `new_page` is None if there is no list of new pages."""

    listed: GpaListEntry
    buffer: PageListEntry
    new_page: PageListEntry | None
    mac: Mac
    iv: int

    @property
    def state(self) -> SeptState:
        """What the page becomes."""
        return SeptState.PENDING if self.listed.pending else SeptState.MAPPED

    @property
    def contents(self) -> Contents:
        """What the page is filled with, if it is."""
        return () if self.listed.pending else self.buffer.contents


def import_entry(importer: Importer, arrival: Arrival) -> Steps[None]:
    """Process one entry. Raises: EntryFailed: it is skipped. ImportFailed."""
    listed, tdcs = arrival.listed, importer.tdcs
    if listed.operation is GpaOperation.NOP:
        _check_mac(importer, arrival, ())
        if not listed.is_valid:
            raise _invalid(GpaStatus.GPA_LIST_ENTRY_INVALID)
        raise EntryFailed(GpaStatus.SKIPPED)
    if not listed.is_valid or listed.gpa >= tdcs.private_end:
        raise _invalid(GpaStatus.GPA_LIST_ENTRY_INVALID)
    try:
        walk, entry = yield from lock_listed_entry(
            importer.module, importer.held, tdcs, gfn_of(listed.gpa), LEAF
        )
    except EntryFailed as failed:
        raise _failed(failed.status, REFUSED_AS[failed.status], in_order_only=True) from None
    if listed.operation is not GpaOperation.MIGRATE and tdcs.op_state not in IN_ORDER:
        raise ImportFailed(GpaStatus.OP_STATE_INCORRECT, Refused(Status.TDX_OP_STATE_INCORRECT))
    if listed.operation is not GpaOperation.CANCEL and not listed.pending:
        _check_buffer(importer, arrival)
    yield from OPERATIONS[listed.operation](importer, arrival, walk, entry)


def _migrate(importer: Importer, arrival: Arrival, walk: Walk, entry: Septe) -> Steps[None]:
    """FREE or REMOVED -> MAPPED or PENDING. The guest may run: it sees the entry blocked before it sees it open."""
    module, held, migration = importer.module, importer.held, importer.tdcs.migration
    if entry.state not in FIRST_TIME:
        raise _wrong_state(in_order_only=True)
    removed = entry.mig_epoch if entry.state is SeptState.REMOVED else None
    if removed is not None and removed >= migration.mig_epoch:
        raise _failed(GpaStatus.DISALLOWED_IMPORT_OVER_REMOVED, Status.TDX_DISALLOWED_IMPORT_OVER_REMOVED)
    pfn = _new_page(arrival)
    mark = held.depth
    operand = Operand.NEW_PAGE_LIST_ENTRY
    try:
        page = yield from held.page(pfn, PG_LEVEL_4K, PageType.PT_NDA, operand, exclusive=True)
    except Refused as refused:
        raise ImportFailed(GpaStatus.NEW_PAGE_NOT_AVAILABLE, refused, in_order_only=True) from None
    if not arrival.listed.pending:
        write_page(module.memory, pfn, arrival.contents)
    _check_mac(importer, arrival, arrival.contents)
    # All checks passed.
    yield importer.tdr.chldcnt.fetch_add(1)
    page.assign(PageType.PT_REG, importer.tdr.pfn)
    yield page.bepoch.write_once(migration.bepoch())
    yield from module.pamt.count_in(page)
    yield from held.release(down_to=mark)
    yield module.write_entry(walk.septe, make(BLOCKED_AS[arrival.state], pfn))
    yield from held.commit(walk, make(arrival.state, pfn))


def _remigrate(importer: Importer, arrival: Arrival, walk: Walk, entry: Septe) -> Steps[None]:
    """MAPPED or PENDING, of an earlier epoch, -> MAPPED or PENDING with new contents; never from MAPPED to PENDING."""
    migration = importer.tdcs.migration
    if entry.state not in THERE_ALREADY:
        raise _wrong_state()
    pfn = entry.pfn_at(PG_LEVEL_4K)
    page = importer.module.pamt.entry(pfn, PG_LEVEL_4K)
    yield from _check_epoch(importer, page)
    if arrival.listed.pending and entry.state is not SeptState.PENDING:
        raise _failed(GpaStatus.SEPT_ENTRY_STATE_INCORRECT, Status.TDX_IMPORT_MISMATCH)
    if not arrival.listed.pending:
        write_page(importer.module.memory, pfn, arrival.contents)
    _check_mac(importer, arrival, arrival.contents)
    # All checks passed.
    yield page.bepoch.write_once(migration.bepoch())
    yield from importer.held.commit(walk, make(arrival.state, pfn))


def _cancel(importer: Importer, arrival: Arrival, walk: Walk, entry: Septe) -> Steps[None]:
    """MAPPED or PENDING, of an earlier epoch, -> REMOVED; the page is nobody's."""
    module, held = importer.module, importer.held
    if entry.state not in THERE_ALREADY:
        raise _wrong_state()
    _check_mac(importer, arrival, ())
    page = module.pamt.entry(entry.pfn_at(PG_LEVEL_4K), PG_LEVEL_4K)
    try:
        yield from held.implicit_page(page, Operand.GPA_LIST_ENTRY, exclusive=True)
    except Refused as refused:
        raise ImportFailed(GpaStatus.TD_PAGE_BUSY_HOST_PRIORITY, refused) from None
    yield from _check_epoch(importer, page)
    # All checks passed.
    yield from held.commit(walk, make_removed(importer.tdcs.migration.mig_epoch))
    yield importer.tdr.chldcnt.fetch_add(-1)
    page.free()
    yield from module.pamt.count_out(page)  # the hint goes into the page list, which keeps no result here


OPERATIONS = {
    GpaOperation.MIGRATE: _migrate,
    GpaOperation.REMIGRATE: _remigrate,
    GpaOperation.CANCEL: _cancel,
}


def _check_buffer(importer: Importer, arrival: Arrival) -> None:
    """Contents come in a migration buffer, which is shared memory."""
    buffer = arrival.buffer
    if buffer.invalid or not is_shared(importer.module, buffer.pfn << PAGE_SHIFT, PAGE_SIZE):
        raise _invalid(GpaStatus.MIG_BUFFER_NOT_AVAILABLE, Operand.MIG_BUFF_LIST_ENTRY)


def _new_page(arrival: Arrival) -> Pfn:
    """The frame that becomes the TD's: from the list of new pages, or else the migration buffer itself."""
    new_page = arrival.new_page
    if new_page is None or new_page.invalid:
        if arrival.buffer.invalid:
            raise _invalid(GpaStatus.MIG_BUFFER_NOT_AVAILABLE, Operand.MIG_BUFF_LIST_ENTRY)
        return Pfn(arrival.buffer.pfn % MAX_PFN)
    if not 0 <= new_page.pfn < MAX_PFN:
        raise _invalid(GpaStatus.NEW_PAGE_NOT_AVAILABLE, Operand.NEW_PAGE_LIST_ENTRY)
    return new_page.pfn


def _check_epoch(importer: Importer, page: PamtEntry) -> Steps[None]:
    """Within one migration epoch a page is imported once. The last import is in BEPOCH: the TD has not run, nothing blocked it."""
    bepoch = yield page.bepoch.read_once()
    if bepoch & MIG_EPOCH_BITS >= importer.tdcs.migration.mig_epoch:
        raise _failed(GpaStatus.MIGRATED_IN_CURRENT_EPOCH, Status.TDX_MIGRATED_IN_CURRENT_EPOCH)


def _check_mac(importer: Importer, arrival: Arrival, contents: Contents) -> None:
    right = page_mac(importer.migsc.key, importer.migs_index, arrival.iv, arrival.listed, contents)
    if arrival.mac != right:
        raise _failed(GpaStatus.INVALID_PAGE_MAC, Status.TDX_INVALID_PAGE_MAC)


def _failed(status: GpaStatus, refused: Status, *, in_order_only: bool = False) -> ImportFailed:
    return ImportFailed(status, Refused(refused, Operand.GPA_LIST_ENTRY), in_order_only=in_order_only)


def _invalid(status: GpaStatus, operand: Operand = Operand.GPA_LIST_ENTRY) -> ImportFailed:
    return ImportFailed(status, Refused(Status.TDX_OPERAND_INVALID, operand))


def _wrong_state(*, in_order_only: bool = False) -> ImportFailed:
    status = GpaStatus.SEPT_ENTRY_STATE_INCORRECT
    return _failed(status, Status.TDX_EPT_ENTRY_STATE_INCORRECT, in_order_only=in_order_only)
