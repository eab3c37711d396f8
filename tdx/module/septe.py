"""An S-EPT entry: one 64-bit word with Intel's bit layout, and the states that seven of its bits encode.

A word is what the CPU walks (RWX, MT, PS, HPA) and what the module keeps about the page (state, lock, host priority) at
the same time; hence one cell. `Septe` is a view on the word; cells hold plain integers of this layout.
Not modelled: accessed bits; the bits of an L1 entry that have a meaning for I/O only (TDUP).
Source: TDX module 1.5.01, sept_state definitions in tdx_basic_defs and sept_manager; reference 3.1 to 3.3.
"""

from __future__ import annotations

from enum import Enum

from vcpu.addresses import ENTRIES, Pfn

R, W, X = 1, 2, 4
RWX = R | W | X
MT = 7 << 3
MT_WB = 6 << 3
IPAT = 1 << 6
PS = 1 << 7
D = 1 << 9
TDEL = 1 << 11
"""The entry lock."""
TDHP = 1 << 52
"""A host call met the lock: guests keep off until a host call takes it."""
TDEX, TDBW, TDB, TDP = (1 << bit for bit in (53, 54, 55, 56))
TDAL_SHIFT = 58
TDAL = 7 << TDAL_SHIFT
"""Bits 60:58: which L2 VMs (1 to 3) have an entry of their own for this range, an alias."""
SVE = 1 << 63
HPA = (1 << 52) - (1 << 12)
ACCEPT_COUNTER = (ENTRIES - 1) << 12
"""Bits 20:12: in a PENDING 2M leaf, how many 4K pages TDG.MEM.PAGE.ACCEPT has zeroed."""
MIG_EPOCH_SHIFT = 12
MIG_EPOCH = (1 << 32) - 1 << MIG_EPOCH_SHIFT
"""Bits 43:12 of a REMOVED entry: the migration epoch in which it was removed."""
MIG_EPOCH_VALID = 1 << 44
STATE_BITS = D | TDEX | TDBW | TDB | TDP | IPAT | PS
_STATE_BIT_OF = (D, TDEX, TDBW, TDB, TDP, IPAT, PS)


def _spread(encoding: int) -> int:
    return sum(bit for n, bit in enumerate(_STATE_BIT_OF) if encoding >> n & 1)


class SeptState(Enum):
    """The state of an entry: encoding, public number, hardware permissions, TLB tracking required, blocked."""

    FREE = (0x0E, 0, 0, False, False)
    REMOVED = (0x0C, 5, 0, False, False)
    NL_MAPPED = (0x00, 0x84, RWX, True, False)
    NL_BLOCKED = (0x08, 0x81, 0, True, True)
    MAPPED = (0x60, 4, RWX, True, False)
    BLOCKED = (0x68, 1, 0, True, True)
    BLOCKEDW = (0x64, 8, R | X, True, False)
    EXPORTED_BLOCKEDW = (0x66, 9, R | X, False, False)
    EXPORTED_DIRTY = (0x63, 11, RWX, True, False)
    EXPORTED_DIRTY_BLOCKEDW = (0x67, 12, R | X, True, False)
    PENDING = (0x70, 2, 0, True, False)
    PENDING_BLOCKED = (0x78, 3, 0, True, True)
    PENDING_BLOCKEDW = (0x74, 16, 0, True, False)
    PENDING_EXPORTED_BLOCKEDW = (0x76, 17, 0, False, False)
    PENDING_EXPORTED_DIRTY = (0x73, 19, 0, True, False)
    PENDING_EXPORTED_DIRTY_BLOCKEDW = (0x77, 20, 0, True, False)

    def __init__(self, encoding: int, public: int, rwx: int, track: bool, blocked: bool) -> None:
        self.encoding = encoding
        self.public = public
        self.rwx = rwx
        self.is_tlb_tracking_required = track
        self.is_blocked = blocked
        self.bits = _spread(encoding)
        self.is_leaf = self.bits & PS != 0
        self.is_pending = self.is_leaf and self.bits & TDP != 0
        self.is_write_blocked = self.is_leaf and self.bits & TDBW != 0
        self.is_exported = self.is_leaf and self.bits & TDEX != 0
        self.is_dirty = self.is_leaf and self.bits & D != 0
        self.is_guest_accessible_leaf = self.is_leaf and rwx != 0
        self.is_guest_fully_accessible_leaf = self.is_leaf and rwx == RWX

    @property
    def is_guest_acceptable(self) -> bool:
        """Whether TDG.MEM.PAGE.ACCEPT may act on it; the same states bring the guest a #VE."""
        return self in ACCEPTABLE

    @property
    def is_migration(self) -> bool:
        """Whether only a migrating TD has it."""
        return self not in NON_MIGRATION


ACCEPTABLE = frozenset((SeptState.PENDING, SeptState.PENDING_EXPORTED_DIRTY))
NON_MIGRATION = frozenset(
    (
        SeptState.FREE,
        SeptState.NL_MAPPED,
        SeptState.NL_BLOCKED,
        SeptState.MAPPED,
        SeptState.BLOCKED,
        SeptState.PENDING,
        SeptState.PENDING_BLOCKED,
    )
)
UNBLOCKED = {
    SeptState.NL_BLOCKED: SeptState.NL_MAPPED,
    SeptState.BLOCKED: SeptState.MAPPED,
    SeptState.PENDING_BLOCKED: SeptState.PENDING,
}
"""What a blocked state was before, as far as is remembered: write-blocking is not."""
BY_BITS = {state.bits: state for state in SeptState}
BY_PUBLIC = {state.public: state for state in SeptState}


class Septe(int):
    """A view on an entry's word."""

    __slots__ = ()

    @property
    def state(self) -> SeptState:
        """The state. Raises KeyError for a word that the module never writes."""
        return BY_BITS[self & STATE_BITS]

    def pfn_at(self, level: int) -> Pfn:
        """The frame that an entry of this level maps, or the S-EPT page it points to."""
        pfn = (self & HPA) >> 12
        return Pfn(pfn & -(1 << 9 * (level - 1)) if level > 1 and self & PS else pfn)

    def accept_counter_at(self, level: int) -> int:
        """How many 4K pages of a PENDING 2M leaf are zeroed already; 0 for any other entry."""
        return (self & ACCEPT_COUNTER) >> 12 if level == 2 and self & PS and self & TDP else 0

    @property
    def is_leaf(self) -> bool:
        """Whether the leaf flag is set; FREE, REMOVED and tables are not leaves."""
        return self & PS != 0

    @property
    def rwx(self) -> int:
        """What the CPU may do."""
        return self & RWX

    @property
    def is_locked(self) -> bool:
        """Whether a call holds the entry (TDEL)."""
        return self & TDEL != 0

    @property
    def has_host_priority(self) -> bool:
        """Whether guests must keep off (TDHP)."""
        return self & TDHP != 0

    def become(self, state: SeptState, level: int) -> Septe:
        """The same page or table in another state, lock bit clear.

        Alias bits stay, and so does host priority that was seen in the word; an accept counter is dropped. Source:
        sept_manager.h:sept_update_state, sept_cleanup_if_pending.
        """
        drop = STATE_BITS | RWX | MT | TDEL | (ACCEPT_COUNTER if level == 2 and self & PS else 0)
        return Septe(self & ~drop | state.bits | state.rwx | SVE | (MT_WB if state.is_leaf else 0))

    def unblocked(self, level: int) -> Septe:
        """The same page or table open again; what was not blocked stays as it is. Source: sept_manager.h:sept_unblock."""
        state = self.state
        return self.become(UNBLOCKED.get(state, state), level)

    def with_pfn(self, pfn: int) -> Septe:
        """The same entry naming another frame; an accept counter is gone."""
        return Septe(self & ~HPA | pfn << 12)

    def without_accept_counter(self, level: int) -> Septe:
        """A PENDING 2M leaf as if ACCEPT had not begun; any other as it is. Source: sept_manager.h:sept_cleanup_if_pending."""
        return Septe(self & ~ACCEPT_COUNTER) if level == 2 and self.state in ACCEPTABLE else self

    def with_accept_counter(self, pages: int) -> Septe:
        """A PENDING 2M leaf that remembers how far ACCEPT came, lock bits clear."""
        return Septe(self & ~(ACCEPT_COUNTER | TDEL | TDHP) | pages << 12)

    def is_aliased(self, vm: int) -> bool:
        """Whether L2 VM `vm` (1 to 3) has an alias of the range."""
        return self >> TDAL_SHIFT + vm - 1 & 1 != 0

    def with_alias(self, vm: int, *, aliased: bool = True) -> Septe:
        """The entry with the alias bit of L2 VM `vm` set, or clear."""
        bit = 1 << TDAL_SHIFT + vm - 1
        return Septe(self | bit if aliased else self & ~bit)

    @property
    def mig_epoch(self) -> int | None:
        """Of a REMOVED entry: the migration epoch it remembers, if it does."""
        return (self & MIG_EPOCH) >> MIG_EPOCH_SHIFT if self & MIG_EPOCH_VALID else None

    @property
    def arch(self) -> int:
        """What the host is shown of it (reference 3.3)."""
        if self.is_leaf:
            return self & (RWX | 7 << 3 | IPAT | PS | HPA | SVE)
        if self.state is SeptState.FREE:
            return self & SVE
        return self & (RWX | PS)

    def __str__(self) -> str:
        lock = " TDEL" * self.is_locked + " TDHP" * self.has_host_priority
        return f"{self.state.name} pfn {self.pfn_at(1):#x}{lock}"

    __repr__ = __str__


def make(state: SeptState, pfn: int = 0) -> Septe:
    """An entry in that state with lock bits clear."""
    return Septe(state.bits | state.rwx | SVE | (MT_WB if state.is_leaf else 0) | pfn << 12)


def make_removed(mig_epoch: int) -> Septe:
    """What PAGE.REMOVE and a cancelled import leave behind while an import is in progress."""
    return Septe(make(SeptState.REMOVED) | MIG_EPOCH_VALID | mig_epoch << MIG_EPOCH_SHIFT & MIG_EPOCH)


FREE = make(SeptState.FREE)
"""What a fresh S-EPT page is filled with."""
