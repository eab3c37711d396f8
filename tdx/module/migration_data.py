"""What a migration call reads and writes in shared memory: GPA lists, buffers, MBMDs, MACs.

How a list call is made. A SEAMCALL gets a word with the address of a page of shared memory; the model gets that word too, and the
page itself as a Python object, by keyword (`dispatch` takes it as context):

- `gpa_list`: a mutable list of `GpaListEntry`, the page of BLOCKW, RESTORE, EXPORT.MEM and IMPORT.MEM. RCX is the list-info word
  (`ListInfo`): first and last entry. Operation and status are written back into the entries. A list that is shorter than the word says
  is extended with entries of zeroes, which are NOPs.
- `bundle`: everything else of EXPORT.MEM and IMPORT.MEM (`MemoryBundle`): MBMD, migration buffers, page MACs. EXPORT.MEM fills it in;
  the host hands it, with the list, to IMPORT.MEM. `new_pages` are the pages that become the destination's.
- `bundle` of the STATE calls is a `StateBundle`; `token` of TRACK and ABORT is an `Mbmd` in a `TokenBuffer`.

A list call that is interrupted returns INTERRUPTED_RESUMABLE and in RCX the list-info word to go on with: the same call is made
again with it, with the same objects, and `COMMAND_RESUME` in R10 if it has a stream.

Not modelled: cryptography. A MAC is the very thing that it authenticates, key and counter included, so it is right exactly if nothing was
changed, replayed or mixed up. Contents are not encrypted. Serialised metadata are a mapping, cut into as many pages as Intel demands
of the host's list.
Source: TDX module 1.5.01, tdx_api_defs.h (gpa_list_info_t, gpa_list_entry_t), migration.h; reference 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from tdx.module.migration import MigrationContext, MigrationKey, MigStream
from vcpu.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Pfn

Mac = tuple[object, ...]
Contents = tuple[tuple[int, int], ...]
"""A 4K page: offset and value of every qword that is not zero."""

LIST_ENTRIES = 512
MAC_LIST_ENTRIES = 256
"""Page MACs in one page: the second MAC list page is looked at only for longer GPA lists."""
SHARED_PAGE = 0x3000_0000_0000
"""An address of shared memory, for callers to whom it does not matter which."""
MBMD_SIZE = 48
MBMD_ALIGN = 128
MBMD_BUFFER = MBMD_SIZE << 52 | SHARED_PAGE
"""R8: address and size of a buffer that holds an MBMD."""
COMMAND_NEW = 0
COMMAND_RESUME = 1 << 63
"""R10 beside the stream index in 15:0: go on with the call that was interrupted."""
COMMAND_IN_ORDER_DONE = 1 << 63
"""R10 of EXPORT.TRACK: the start token."""
STREAM_RESERVED = (1 << 63) - (1 << 16)


class GpaOperation(IntEnum):
    """What is asked for, or was done, with the page of a GPA list entry."""

    NOP = 0
    MIGRATE = 1
    CANCEL = 2
    REMIGRATE = 3


class GpaStatus(IntEnum):
    """How it went."""

    SUCCESS = 0
    SKIPPED = 1
    SEPT_WALK_FAILED = 2
    SEPT_ENTRY_BUSY_HOST_PRIORITY = 3
    SEPT_ENTRY_STATE_INCORRECT = 4
    TLB_TRACKING_NOT_DONE = 5
    OP_STATE_INCORRECT = 6
    MIGRATED_IN_CURRENT_EPOCH = 7
    MIG_BUFFER_NOT_AVAILABLE = 8
    NEW_PAGE_NOT_AVAILABLE = 9
    INVALID_PAGE_MAC = 10
    DISALLOWED_IMPORT_OVER_REMOVED = 11
    TD_PAGE_BUSY_HOST_PRIORITY = 12
    L2_SEPT_WALK_FAILED = 13
    ATTR_LIST_ENTRY_INVALID = 14
    GPA_LIST_ENTRY_INVALID = 15


@dataclass(slots=True)
class GpaListEntry:
    """One entry of a GPA list: a 64-bit word, taken apart.

    Bits: level 1:0, pending 2, l2_map 9:7, mig_type 11:10, GPA 51:12, operation 53:52, status 60:56; the rest is reserved.
    `reserved` holds the reserved bits at their place: any of them, or a level, makes the entry invalid.
    """

    gpa: Gpa = Gpa(0)  # noqa: RUF009 - a NewType
    operation: GpaOperation = GpaOperation.MIGRATE
    pending: bool = False
    status: int = GpaStatus.SUCCESS
    level: int = 0
    l2_map: int = 0
    mig_type: int = 0
    reserved: int = 0

    @property
    def word(self) -> int:
        """The entry as it lies in memory."""
        return (
            self.level
            | self.pending << 2
            | self.l2_map << 7
            | self.mig_type << 10
            | self.gpa & (1 << 52) - PAGE_SIZE
            | self.operation << 52
            | self.status << 56
            | self.reserved
        )

    @classmethod
    def from_word(cls, word: int) -> GpaListEntry:
        """The entry that lies in memory."""
        return cls(
            gpa=Gpa(word & (1 << 52) - PAGE_SIZE),
            operation=GpaOperation(word >> 52 & 3),
            pending=bool(word >> 2 & 1),
            status=word >> 56 & 31,
            level=word & 3,
            l2_map=word >> 7 & 7,
            mig_type=word >> 10 & 3,
            reserved=word & (0xF << 3 | 3 << 54 | 7 << 61),
        )

    @property
    def is_valid(self) -> bool:
        """Whether reserved bits are clear and the level is 4K."""
        return not self.reserved and self.level == 0

    def failed(self, status: GpaStatus) -> None:
        """Nothing was done with it, and why."""
        self.operation = GpaOperation.NOP
        self.status = status


class ListInfo(NamedTuple):
    """RCX of the list calls: first entry to process, last entry, address of the list, format (0), reserved bits 54:52."""

    first: int
    last: int
    address: int = SHARED_PAGE
    format: int = 0
    reserved: int = 0

    @property
    def word(self) -> int:
        """The register's value."""
        return (
            self.format
            | self.first % LIST_ENTRIES << 3
            | self.address
            | self.reserved << 52
            | self.last << 55
        )

    @classmethod
    def from_word(cls, word: int) -> ListInfo:
        """What the register says."""
        return cls(word >> 3 & 511, word >> 55 & 511, word & (1 << 52) - PAGE_SIZE, word & 7, word >> 52 & 7)

    @classmethod
    def of(cls, gpa_list: list[GpaListEntry]) -> ListInfo:
        """The whole of a list, from its first entry on."""
        return cls(0, max(len(gpa_list), 1) - 1)


def page_list_info(pages: int, address: int = SHARED_PAGE) -> int:
    """R9 of the STATE calls: how many pages the host's list has."""
    return address | pages - 1 << 55


@dataclass(slots=True)
class PageListEntry:
    """An entry of a list of pages, and for a migration buffer what lies in its page. `invalid` is bit 63: no page here."""

    pfn: Pfn = Pfn(SHARED_PAGE >> PAGE_SHIFT)  # noqa: RUF009 - a NewType
    invalid: bool = False
    contents: Contents = ()


class MbType(IntEnum):
    """What a migration bundle carries."""

    IMMUTABLE_TD_STATE = 0
    MUTABLE_TD_STATE = 1
    MUTABLE_VCPU_STATE = 2
    MEM = 16
    EPOCH_TOKEN = 32
    ABORT_TOKEN = 33


@dataclass(slots=True)
class Mbmd:
    """Migration bundle metadata.

    `value` is what only this type has: entries of a GPA list, forward streams of the source, index of the vCPU, or bundles so far.
    """

    kind: MbType
    migs_index: int
    mb_counter: int
    mig_epoch: int
    iv_counter: int
    value: int = 0
    mac: Mac = ()

    def mac_with(self, key: MigrationKey | None, payload: object = None) -> Mac:
        """What its MAC must be."""
        counters = (self.migs_index, self.iv_counter, self.mb_counter, self.mig_epoch)
        return (key, self.kind, *counters, self.value, payload)


def page_mac(
    key: MigrationKey | None, migs_index: int, iv: int, entry: GpaListEntry, contents: Contents
) -> Mac:
    """What the MAC of one list entry and its page must be."""
    return (key, migs_index, iv, entry.word, contents)


@dataclass(slots=True)
class TokenBuffer:
    """A buffer for an MBMD alone: epoch tokens, start token, abort token."""

    mbmd: Mbmd | None = None


@dataclass(slots=True)
class StateBundle:
    """MBMD and metadata of a TD or a vCPU: `pages` of them, by name of the field."""

    mbmd: Mbmd | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    pages: int = 0

    def payload(self, pages: int) -> Mac:
        """What the MBMD's MAC covers beside the MBMD, when `pages` of the host's list are read."""
        return (pages, *sorted(self.metadata.items()))


@dataclass(slots=True)
class MemoryBundle:
    """Beside the GPA list: MBMD, migration buffers and page MACs, index by index as the list has its entries.

    `buffers` are the host's pages: EXPORT.MEM uses one for each page that has contents, and marks the others invalid.
    """

    mbmd: Mbmd | None = None
    buffers: list[PageListEntry] = field(default_factory=list)
    macs: list[Mac] = field(default_factory=list)

    def room_for(self, entries: int, new_pages: list[PageListEntry] | None = None) -> None:
        """Shared memory is there whether the host has put something in it or not."""
        self.buffers.extend(PageListEntry() for _ in range(len(self.buffers), entries))
        self.macs.extend(() for _ in range(len(self.macs), entries))
        if new_pages is not None:
            new_pages.extend(PageListEntry(Pfn(0)) for _ in range(len(new_pages), entries))

    @classmethod
    def sent_to(
        cls,
        migration: MigrationContext,
        gpa_list: list[GpaListEntry],
        contents: Mapping[int, Contents] | None = None,
        *,
        migs_index: int = 0,
    ) -> MemoryBundle:
        """What an honest source would send now, for a destination alone on the stage.

        Args:
            migration: the destination's context, its session begun.
            contents: by index in the list; a page that is migrated, not pending and not named here is a page of zeroes.
        """
        stream: MigStream = migration.forward(migs_index)
        fresh = not stream.initialized
        key = migration.dec_working_key if fresh else stream.key
        iv = 1 if fresh else stream.iv_counter + 1
        counter = 0 if fresh else stream.expected_mb_counter
        mbmd = Mbmd(MbType.MEM, migs_index, counter, migration.mig_epoch, iv, len(gpa_list))
        mbmd.mac = mbmd.mac_with(key)
        bundle = cls(mbmd)
        for index, entry in enumerate(gpa_list):
            carries = entry.operation in (GpaOperation.MIGRATE, GpaOperation.REMIGRATE) and not entry.pending
            page = (contents or {}).get(index, ()) if carries else ()
            bundle.buffers.append(PageListEntry(invalid=not carries, contents=page))
            bundle.macs.append(page_mac(key, migs_index, iv + 1 + index, entry, page))
        return bundle
