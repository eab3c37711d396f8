"""Steps that several migration calls share: operands in shared memory, streams, the walk through a GPA list.

Source: TDX module 1.5.01, migration.c, helpers.c:shared_hpa_check, abort_import_session; the loops of tdh_export_blockw.c and
tdh_export_restore.c; reference 16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sim import Steps
from sim.access import Access
from sim.dependence import WRITE, note
from sim.thread import Thread
from tdx.module.interrupts import InterruptTest
from tdx.module.memory import Memory
from tdx.module.migration_data import (
    LIST_ENTRIES,
    MAC_LIST_ENTRIES,
    MBMD_ALIGN,
    MBMD_SIZE,
    STREAM_RESERVED,
    Contents,
    GpaListEntry,
    GpaOperation,
    GpaStatus,
    ListInfo,
)
from tdx.module.sept_states import NEXT_STATE, OpState, next_state
from tdx.module.septe import Septe, SeptState
from tdx.module.status import Operand, Refused, SeamcallReturn, Status, require
from tdx.module.walk import Walk, secure_ept_walk
from vcpu.addresses import PAGE_SHIFT, PAGE_SIZE, PG_LEVEL_4K, Gfn, Pfn, gfn_of

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.migration import MigrationContext, MigStream
    from tdx.module.module import TdxModule
    from tdx.module.objects import LogicalProcessor, Tdcs

HKID_SHIFT = 46

Change = Callable[[Walk, Septe, SeptState], Steps[None]]
"""What a list call does to an entry that it has locked and may change: where it is, its word, its next state."""


class EntryFailed(Exception):
    """One entry of a GPA list cannot be processed. Args: its status."""

    def __init__(self, status: GpaStatus) -> None:
        super().__init__(status)
        self.status = status


class ListCursor:
    """RCX of a list call: it goes out with the entry that was reached, however the call ends."""

    def __init__(self, word: int | None, gpa_list: list[GpaListEntry]) -> None:
        self.info = ListInfo.of(gpa_list) if word is None else ListInfo.from_word(word)
        self.at = self.info.first

    @property
    def word(self) -> int:
        """The list-info word to return: the first entry that is left; 0 after entry 511."""
        return self.info._replace(first=self.at % LIST_ENTRIES).word

    def entries(self) -> Iterator[int]:
        """The entries that are left, by index; `at` goes with them, and beyond the last one."""
        while self.at <= self.info.last:
            yield self.at
            self.at += 1

    def refused(self, refused: Refused) -> Refused:
        """The same refusal, with the list-info word in RCX."""
        refused.rcx = self.word
        refused.rdx = 0
        return refused

    def check(self, module: TdxModule, gpa_list: list[GpaListEntry]) -> None:
        """Refuse a word that names no list; see to it that the list has all the entries that are named."""
        info = self.info
        fits = not info.reserved and not info.format and info.first <= info.last
        require(fits and is_shared(module, info.address, PAGE_SIZE), Status.TDX_OPERAND_INVALID, Operand.RCX)
        gpa_list.extend(GpaListEntry.from_word(0) for _ in range(len(gpa_list), info.last + 1))


def is_shared(module: TdxModule, address: int, alignment: int) -> bool:
    """Whether an address is aligned and shared memory's: its key id is none of the private ones."""
    return not address & alignment - 1 and not address >> 52 and address >> HKID_SHIFT not in module.kot.hkids


def check_mbmd_buffer(module: TdxModule, word: int) -> None:
    """R8: large enough for an MBMD, aligned, shared."""
    fits = word >> 52 >= MBMD_SIZE and is_shared(module, word & (1 << 52) - 1, MBMD_ALIGN)
    require(fits, Status.TDX_OPERAND_INVALID, Operand.R8)


def check_memory_lists(
    module: TdxModule, info: ListInfo, mig_buffers: int, mac_list_0: int, mac_list_1: int
) -> None:
    """R9, R11 and R12 of the MEM calls; a MAC list that no entry needs is not looked at."""
    require(is_shared(module, mig_buffers, PAGE_SIZE), Status.TDX_OPERAND_INVALID, Operand.R9)
    if info.first < MAC_LIST_ENTRIES:
        require(is_shared(module, mac_list_0, PAGE_SIZE), Status.TDX_OPERAND_INVALID, Operand.R11)
    if info.last >= MAC_LIST_ENTRIES:
        require(is_shared(module, mac_list_1, PAGE_SIZE), Status.TDX_OPERAND_INVALID, Operand.R12)


def lock_forward_stream(
    held: Held, tdcs: Tdcs, stream_and_command: int, *, only_first: bool = False
) -> Steps[MigStream]:
    """Check R10 and lock the stream it names; the state calls of the TD and the tokens have stream 0 only."""
    index = stream_and_command & 0xFFFF
    known = index == 0 if only_first else tdcs.migration.has_forward(index)
    require(known and not stream_and_command & STREAM_RESERVED, Status.TDX_OPERAND_INVALID, Operand.R10)
    stream = tdcs.migration.forward(index)
    yield from held.exclusive(stream.lock, Operand.MIGSC)
    return stream


def resume_list(
    leaf: str, migsc: MigStream, migration: MigrationContext, operands: tuple[object, ...]
) -> int:
    """The list call that was interrupted goes on, with the operands it was left with. Returns the pages written so far."""
    require(migsc.initialized, Status.TDX_MIGRATION_STREAM_STATE_INCORRECT)
    stopped, migsc.interrupted = migsc.interrupted, None
    if (
        stopped is None
        or (stopped.leaf, stopped.operands) != (leaf, operands)
        or stopped.mig_epoch != migration.mig_epoch
    ):
        raise Refused(Status.TDX_INVALID_RESUMPTION)
    return stopped.pages


def fatal(refused: Refused) -> Refused:
    """The same refusal with the bit that says: this TD can only be torn down."""
    refused.fatal = True
    return refused


def fail_import(tdcs: Tdcs, status: Status, operand: int | None = None) -> Refused:
    """End an in-order import for good; returns what the call refuses with."""
    tdcs.op_state = OpState.FAILED_IMPORT
    return fatal(Refused(status, operand))


def abort_import(tdcs: Tdcs, refused: Refused) -> Refused:
    """End an import; one that was committed loses what is still to come, and runs (helpers.c:abort_import_session)."""
    if tdcs.op_state is OpState.LIVE_IMPORT:
        tdcs.op_state = OpState.RUNNABLE
        return refused
    tdcs.op_state = OpState.FAILED_IMPORT
    return fatal(refused)


class PageRead(Access):
    """Copy a private page: the thread gets its contents.

    One access where the real module copies 4096 bytes: whoever could write meanwhile was write-blocked and tracked away before, or finds that a
    checker says so. It depends on every write, for a word that was never written has no name yet.
    """

    __slots__ = ("pfn",)
    verb = "copy page"
    reads = True

    def __init__(self, memory: Memory, pfn: Pfn) -> None:
        self.target = memory
        self.pfn = pfn

    def perform(self, thread: Thread) -> Contents:
        return tuple(self.target.contents(self.pfn).items())


def write_page(memory: Memory, pfn: Pfn, contents: Contents) -> None:
    """Put contents into a private page that nobody else may look at yet."""
    memory.zero(pfn)
    for offset, value in contents:
        cell = memory.qword((pfn << PAGE_SHIFT) + offset)
        note(cell.name, WRITE)
        cell.v = value


def _never() -> bool:
    return False


def interrupt_test(lp: LogicalProcessor | None) -> InterruptTest:
    """Look for interrupts of the calling LP; without one there are none."""
    return InterruptTest(_never if lp is None else lp.interrupt_pending)


def require_listed(listed: GpaListEntry, sound: bool) -> None:
    """End the whole call at a list entry that is not sound."""
    if not sound:
        listed.failed(GpaStatus.GPA_LIST_ENTRY_INVALID)
        raise Refused(Status.TDX_OPERAND_INVALID, Operand.GPA_LIST_ENTRY)


def private_gfn(tdcs: Tdcs, listed: GpaListEntry) -> Gfn:
    """The frame of a list entry."""
    require_listed(listed, listed.is_valid and listed.gpa < tdcs.private_end)
    return gfn_of(listed.gpa)


def lock_listed_entry(
    module: TdxModule, held: Held, tdcs: Tdcs, gfn: Gfn, leaf: str
) -> Steps[tuple[Walk, Septe]]:
    """Walk to the S-EPT entry of a list entry and lock it. Raises: EntryFailed."""
    walk = yield from secure_ept_walk(module, tdcs, gfn, PG_LEVEL_4K)
    if walk.level != PG_LEVEL_4K:
        raise EntryFailed(GpaStatus.SEPT_WALK_FAILED)
    try:
        entry = yield from held.entry(walk)
    except Refused:
        raise EntryFailed(GpaStatus.SEPT_ENTRY_BUSY_HOST_PRIORITY) from None
    if next_state(leaf, entry.state) is None:
        raise EntryFailed(GpaStatus.SEPT_ENTRY_STATE_INCORRECT)
    return walk, entry


def process_list(
    module: TdxModule,
    held: Held,
    tdcs: Tdcs,
    leaf: str,
    cursor: ListCursor,
    gpa_list: list[GpaListEntry],
    lp: LogicalProcessor | None,
    change: Change,
) -> Steps[SeamcallReturn]:
    """Do `change` to every entry of the list that `leaf` may act on: BLOCKW and RESTORE.

    NOP and CANCEL are skipped. Between two entries a pending interrupt ends the call. Problems are counted since the last
    resumption only.
    """
    problems = 0
    for at in cursor.entries():
        listed = gpa_list[at]
        mark = held.depth
        try:
            yield from _process(module, held, tdcs, leaf, listed, change)
        except EntryFailed as failed:
            listed.failed(failed.status)
            problems += failed.status is not GpaStatus.SKIPPED
        yield from held.release(down_to=mark)
        if at < cursor.info.last and (yield interrupt_test(lp)):
            cursor.at += 1
            return SeamcallReturn(Status.TDX_INTERRUPTED_RESUMABLE, rcx=cursor.word)
    return SeamcallReturn(Status.TDX_SUCCESS, problems or None, rcx=cursor.word)


def _process(
    module: TdxModule, held: Held, tdcs: Tdcs, leaf: str, listed: GpaListEntry, change: Change
) -> Steps[None]:
    if listed.operation in (GpaOperation.NOP, GpaOperation.CANCEL):
        require_listed(listed, listed.is_valid)
        raise EntryFailed(GpaStatus.SKIPPED)
    gfn = private_gfn(tdcs, listed)
    walk, entry = yield from lock_listed_entry(module, held, tdcs, gfn, leaf)
    yield from change(walk, entry, NEXT_STATE[leaf][entry.state])
    listed.status = GpaStatus.SUCCESS


def require_first_stream(stream_and_command: int) -> None:
    """R10 of the calls that have stream 0 and a command only."""
    sound = not stream_and_command & (0xFFFF | STREAM_RESERVED)
    require(sound, Status.TDX_OPERAND_INVALID, Operand.R10)


def check_import_mbmd_buffer(module: TdxModule, tdcs: Tdcs, word: int) -> None:
    """R8 of a STATE import, where a buffer that cannot be right ends the import."""
    try:
        check_mbmd_buffer(module, word)
    except Refused as refused:
        tdcs.op_state = OpState.FAILED_IMPORT
        raise fatal(refused) from None
