"""The migration side of a TD: its session, its streams, and the steps of the protocol that several calls share.

A TD moves in *sessions*. The source goes from RUNNABLE to LIVE_EXPORT, PAUSED_EXPORT and POST_EXPORT; the destination from
UNINITIALIZED to MEMORY_IMPORT, STATE_IMPORT, POST_IMPORT and, if it is committed early, LIVE_IMPORT. A session has *migration
epochs*: within one, a page is sent once; EXPORT.TRACK starts the next and says so in a token, IMPORT.TRACK takes the token. The
last epoch is `OUT_OF_ORDER`: from then on each page is sent at most once more and order does not matter.

A *stream* (MIGSC) is a page that the host gives; its link in the TDCS has a lock bit. The first one goes backwards (abort tokens), all
others forwards; the host numbers the forward ones from 0. The links are there from the beginning, the pages are not.

What lies in shared memory is in `migration_data`; what is locked by whom says reference 4 and seamcall_locks.csv.
Modelled: locks and their order, checks in order, counters, epochs, what an interrupted call remembers. Not modelled: the service TD that
carries keys between the two sides (`MigrationContext.read_key` and `write_key` stand for its two accesses), versions of the
protocol (there is one, 0), entropy that runs out.
Source: TDX module 1.5.01, migration.h, migration.c, td_control_structures.h; reference 16 and 6.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim import Cell
from tdx.module.sharex import Sharex
from vcpu.addresses import Pfn

if TYPE_CHECKING:
    from tdx.module.migration_data import Mbmd

OUT_OF_ORDER = 0xFFFFFFFF
"""The migration epoch that comes after the start token."""
MIN_MIGS = 2
"""Streams that a session needs: one backwards, one forwards."""
MAX_MIGS = 512
MAX_EXPORT_COUNT = 0x7FFFFFFF
BEPOCH_MIGRATION = 1 << 63
"""Bit 63 of BEPOCH: the page was imported and not blocked since; then 62:32 are EXPORT_COUNT, 31:0 the migration epoch."""
MIG_EPOCH_BITS = 0xFFFFFFFF


class MigrationKey:
    """A 256-bit key that nobody can guess: equal to itself only."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Where a call stopped for an interrupt, kept in the stream until a call resumes it.

    `operands` is what the resuming call must repeat to the letter, else INVALID_RESUMPTION; `pages` is what is done so far, `mig_epoch` when.
    """

    leaf: str
    operands: tuple[object, ...]
    pages: int
    mig_epoch: int = 0


class MigStream:
    """A migration stream context. Plain fields are guarded by `lock`, or by OP_STATE or the TDR taken exclusive."""

    def __init__(self, name: str) -> None:
        self.pfn: Pfn | None = None
        self.lock = Sharex(name, 0)
        """The link's lock bit: only ever taken exclusive."""
        self.initialized = False
        self.key: MigrationKey | None = None
        self.iv_counter = 0
        self.next_mb_counter = 0
        self.expected_mb_counter = 0
        self.interrupted: Interrupted | None = None
        self.mbmd: Mbmd | None = None
        """Of a bundle of metadata that is on its way."""

    def start(self, key: MigrationKey | None) -> None:
        """Begin a session with that key: all counters 0 (migsc_init)."""
        self.initialized = True
        self.key = key
        self.iv_counter = 0
        self.next_mb_counter = 0
        self.expected_mb_counter = 0
        self.interrupted = None

    def next_iv(self) -> int:
        """A number never used before with this key, which every bundle and every page takes."""
        self.iv_counter += 1
        return self.iv_counter


class MigrationContext:
    """The migration block of a TDCS. Plain fields are guarded by OP_STATE taken exclusive together with `lock`, or by the TDR."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = Sharex(f"{name}.mig_lock", 0)
        self.bw_epoch: Cell[int] = Cell(f"{name}.bw_epoch", 0)
        """TD_EPOCH at the last BLOCKW: one for the whole TD, so that a later BLOCKW postpones the export of every page."""
        self.mig_count: Cell[int] = Cell(f"{name}.mig_count", 0)
        """Pages exported in this session and not cancelled or restored."""
        self.dirty_count: Cell[int] = Cell(f"{name}.dirty_count", 0)
        """Exported pages that the guest may have written since."""
        self.total_mb_count: Cell[int] = Cell(f"{name}.total_mb_count", 0)
        self.num_migrated_vcpus: Cell[int] = Cell(f"{name}.num_migrated_vcpus", 0)
        self.mig_epoch = 0
        self.export_count = 0
        """Export sessions so far, aborted ones included; the destination takes it over."""
        self.import_count = 0
        self.num_migs = 0
        self._streams: dict[int, MigStream] = {}
        self._keys_made = 0
        self._enc_key = self._fresh_key()
        self.enc_working_key: MigrationKey | None = None
        self._dec_key: MigrationKey | None = None
        self.dec_working_key: MigrationKey | None = None

    @property
    def backward(self) -> MigStream:
        """The stream of abort tokens."""
        return self.stream(0)

    def forward(self, migs_index: int) -> MigStream:
        """The forward stream that the host calls `migs_index`."""
        return self.stream(migs_index + 1)

    def stream(self, index: int) -> MigStream:
        """The stream behind link `index` of the TDCS, backward one included."""
        stream = self._streams.get(index)
        if stream is None:
            stream = self._streams[index] = MigStream(f"{self.name}.migsc[{index}]")
        return stream

    def has_forward(self, migs_index: int) -> bool:
        """Whether the module lets that index pass: its comparison is unsigned, and lets all pass while there is no stream."""
        return self.num_migs == 0 or migs_index < self.num_migs - 1

    @property
    def dec_key_set(self) -> bool:
        """Whether a decryption key was written since the last session began (MIG_DEC_KEY_SET)."""
        return self._dec_key is not None

    def bepoch(self) -> int:
        """BEPOCH of a page that is imported now."""
        return BEPOCH_MIGRATION | self.export_count << 32 | self.mig_epoch

    # What the migration TD of each side does with TDG.SERVTD.RD and WR.

    def read_key(self) -> MigrationKey:
        """MIG_ENC_KEY, a new one at every reading."""
        self._enc_key = self._fresh_key()
        return self._enc_key

    def write_key(self, key: MigrationKey) -> None:
        """MIG_DEC_KEY: what the other side encrypts with."""
        self._dec_key = key

    # What the module does with the keys.

    def begin_session(self) -> None:
        """Use up the keys, put the counters back, and forget what the streams did before."""
        self.enc_working_key = self._enc_key
        self._enc_key = self._fresh_key()
        self.dec_working_key, self._dec_key = self._dec_key, None
        self.mig_epoch = 0
        self.close_streams()

    def close_streams(self) -> None:
        """No stream is enabled, backward or forward."""
        for stream in self._streams.values():
            stream.initialized = False

    def _fresh_key(self) -> MigrationKey:
        self._keys_made += 1
        return MigrationKey(f"{self.name}.key{self._keys_made}")


def exchange_keys(source: MigrationContext, destination: MigrationContext) -> None:
    """What the two migration TDs do for their TDs before a session: each side learns what the other encrypts with."""
    destination.write_key(source.read_key())
    source.write_key(destination.read_key())
