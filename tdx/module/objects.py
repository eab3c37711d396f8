"""The control structures: TDR and TDCS of a TD, TDVPS of a vCPU, the key ownership table, and logical processors.

Fields that several calls may change at once are cells. A plain field is guarded by a lock that its writers hold exclusive
and its readers hold at least shared; it says which. Reference section 2; TLB tracking: section 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from hashlib import sha384
from typing import NamedTuple

from sim import Cell
from tdx.module.exits import ExitReason
from tdx.module.sept import SeptPage
from tdx.module.sept_states import OpState
from tdx.module.sharex import Sharex, SharexHp
from vcpu.addresses import Gpa, Pfn

TDCX_PAGES = 6
"""TDCX pages a TD without L2 VMs needs."""
TDCX_PAGES_MAX = 9
TDVPS_PAGES = 6
"""Pages of a vCPU without L2 VMs: TDVPR and five TDCX."""
TDVPS_PAGES_MAX = 15
SEPT_ROOT_INDEX = 4
"""Which TDCX page is the S-EPT root."""
HP_LOCK_TIMEOUT_NS = 1_000_000_000
ZERO_STEP_THRESHOLD = 6
"""So many EPT violations at one instruction are free; the next one starts the list."""
ZERO_STEP_LIST_MAX = 32
DEBUG = 1 << 0
"""TD attribute: the host may read and write private memory and secrets."""
MIGRATABLE = 1 << 29
"""TD attribute: the TD may be exported."""
SEPT_VE_DISABLE = 1 << 28
"""TD attribute: a pending page is an exit, not a #VE. Linux guests want it set."""
NOT_ASSOCIATED = -1


class Lifecycle(Enum):
    """Where a TDR stands between MNG.CREATE and its last reclaim."""

    HKID_ASSIGNED = "HKID_ASSIGNED"
    KEYS_CONFIGURED = "KEYS_CONFIGURED"
    BLOCKED = "BLOCKED"
    TEARDOWN = "TEARDOWN"


class VcpuState(IntEnum):
    """TDVPS.STATE."""

    UNINITIALIZED = 0
    READY = 2
    ACTIVE = 4
    DISABLED = 8
    IMPORT = 16


class HkidState(Enum):
    """KOT entry states."""

    FREE = "FREE"
    ASSIGNED = "ASSIGNED"
    FLUSHED = "FLUSHED"


class Epoch(NamedTuple):
    """TD_EPOCH and its two REFCOUNTs: 16 bytes that are read in one go."""

    epoch: int
    refcount0: int
    refcount1: int

    def refcount(self, parity: int) -> int:
        """How many vCPUs are inside that entered in an epoch of that parity."""
        return self.refcount1 if parity & 1 else self.refcount0

    def counted(self, parity: int, by: int) -> Epoch:
        """One REFCOUNT changed."""
        if parity & 1:
            return Epoch(self.epoch, self.refcount0, self.refcount1 + by)
        return Epoch(self.epoch, self.refcount0 + by, self.refcount1)

    def is_tlb_tracked(self, bepoch: int) -> bool:
        """Whether no translation from epoch `bepoch` or before can be cached any more."""
        if bepoch >> 63:
            return False
        if bepoch == self.epoch - 1:
            return self.refcount(bepoch) == 0
        return bepoch < self.epoch - 1


def enter_epoch(unit: Epoch) -> Epoch:
    """A vCPU enters in the current epoch."""
    return unit.counted(unit.epoch, 1)


def leave_even(unit: Epoch) -> Epoch:
    """A vCPU leaves that entered in an even epoch."""
    return unit.counted(0, -1)


def leave_odd(unit: Epoch) -> Epoch:
    """A vCPU leaves that entered in an odd epoch."""
    return unit.counted(1, -1)


def next_epoch(unit: Epoch) -> Epoch:
    """TDH.MEM.TRACK."""
    return unit._replace(epoch=unit.epoch + 1)


class Tdr:
    """The root of a TD. Plain fields: guarded by the PAMT lock of the TDR page."""

    def __init__(self, pfn: Pfn, hkid: int, packages: int) -> None:
        self.pfn = pfn
        self.hkid = hkid
        self.fatal = False
        self.lifecycle = Lifecycle.HKID_ASSIGNED
        self.keys_missing = set(range(packages))
        self.tdcx: list[Pfn] = []
        self.tdcs = Tdcs(f"td[{pfn:#x}]")
        self.chldcnt: Cell[int] = Cell(f"td[{pfn:#x}].chldcnt", 0)
        self.vcpus: list[Tdvps] = []


class Tdcs:
    """The control structure of a TD. Plain fields: guarded by OP_STATE's lock, or by the TDR taken exclusive."""

    def __init__(self, name: str) -> None:
        self.op_state = OpState.UNINITIALIZED
        self.op_state_lock = SharexHp(f"{name}.op_state_lock", 0)
        self.sept_tree_lock = Sharex(f"{name}.sept_tree_lock", 0)
        self.epoch_lock = Sharex(f"{name}.epoch_lock", 0)
        self.epoch: Cell[Epoch] = Cell(f"{name}.epoch", Epoch(0, 0, 0))
        self._root: SeptPage | None = None
        self.private_end = 0
        self.attributes = 0
        self.pending_ve_disable = False
        self.max_vcpus = 0
        self.num_vcpus: Cell[int] = Cell(f"{name}.num_vcpus", 0)
        self.num_assoc_vcpus: Cell[int] = Cell(f"{name}.num_assoc_vcpus", 0)
        self.hp_lock_timeout_ns = HP_LOCK_TIMEOUT_NS
        self.measurement = sha384()
        self.config_flags = 0
        self.td_ctls = 0
        self.notify_enables = 0
        self.num_l2_vms = 0

    @property
    def is_debug(self) -> bool:
        """Whether the host may look inside (ATTRIBUTES.DEBUG)."""
        return self.attributes & DEBUG != 0

    @property
    def root(self) -> SeptPage:
        """The S-EPT root, from MNG.INIT on."""
        assert self._root is not None
        return self._root

    @root.setter
    def root(self, page: SeptPage) -> None:
        self._root = page

    @property
    def has_root(self) -> bool:
        """Whether MNG.INIT has happened."""
        return self._root is not None


class Tdvps:
    """A vCPU. Plain fields belong to the LP that runs it; between entries, to whoever holds the TDVPR exclusive."""

    def __init__(self, pfn: Pfn, tdr: Tdr) -> None:
        name = f"vcpu[{pfn:#x}]"
        self.pfn = pfn
        self.tdr = tdr
        self.tdcs = tdr.tdcs
        self.tdcx: list[Pfn] = []
        self.state: Cell[VcpuState] = Cell(f"{name}.state", VcpuState.UNINITIALIZED)
        self.assoc_lpid: Cell[int] = Cell(f"{name}.assoc_lpid", NOT_ASSOCIATED)
        self.vcpu_epoch = 0
        self.last_td_exit: ExitReason | None = None
        self.last_exit_was_trap = False
        self.ve_info_valid = False
        self.hp_busy_since_ns: int | None = None
        self.rip: int | None = None
        self.entry_rip: int | None = None
        self.rip_compared = False
        self.possibly_epf_stepping = 0
        self.last_epf_gpa_list: list[Gpa] = []
        self.inside = False
        """Observers: counted in a REFCOUNT. True a little longer than the count itself."""
        self.moving = False
        """Observers: on the way in or out, so that `inside` and REFCOUNT may differ."""

    def progressed(self, rip: int | None) -> None:
        """The guest stands at `rip`: if that is not where it was entered, it does not step in place."""
        self.rip = rip
        if rip is None or rip != self.entry_rip:
            self.possibly_epf_stepping = 0
            self.last_epf_gpa_list.clear()

    def log_epf(self, gpa: Gpa, rip: int | None) -> bool:
        """Remember a private EPT violation for the zero-step defence; returns whether it is armed by this one."""
        self.progressed(rip)
        self.rip_compared = True
        if self.possibly_epf_stepping < ZERO_STEP_THRESHOLD:
            self.possibly_epf_stepping += 1
            return False
        suspects = self.last_epf_gpa_list
        if gpa not in suspects and len(suspects) < ZERO_STEP_LIST_MAX:
            suspects.append(gpa)
            return len(suspects) == 1
        return False


def _no_flush(td_key: Pfn) -> None:  # noqa: ARG001 - an LP without a TLB
    return None


def _nothing_pending() -> bool:
    return False


@dataclass(slots=True)
class LogicalProcessor:
    """One logical processor as the module sees it.

    `interrupt_pending()` is what the module samples in long calls: INTR (unless the host has interrupts off), NMI, SMI and their
    like. `flush_tlb(td_key)` drops what the LP has cached for the TD with that TDR frame; the embedding that models a TLB gives
    it. Nothing else in the module touches a TLB.
    """

    lpid: int
    package: int = 0
    flush_tlb: Callable[[Pfn], None] = _no_flush
    last_tdvpr: Pfn | None = None
    interrupt_pending: Callable[[], bool] = _nothing_pending


class Hkid:
    """One key id. Guarded by the KOT lock. `to_write_back` are packages whose caches may hold lines of it."""

    __slots__ = ("state", "to_write_back")

    def __init__(self) -> None:
        self.state = HkidState.FREE
        self.to_write_back: set[int] = set()


@dataclass(slots=True)
class Kot:
    """The key ownership table."""

    hkids: dict[int, Hkid]
    lock: Sharex = field(default_factory=lambda: Sharex("kot.lock", 0))
