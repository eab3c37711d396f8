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
from sim.dependence import READ, WRITE, note
from tdx.module.exits import LastTdExit, VeInfo, VirtualizationException
from tdx.module.migration import MigrationContext
from tdx.module.operands import HKID_SHIFT
from tdx.module.sept import SeptPage
from tdx.module.sept_states import OpState
from tdx.module.sharex import Lock, Sharex, SharexHp
from vcpu.addresses import PAGE_SHIFT, Gpa, Pfn

TDCX_PAGES = 6
"""TDCX pages a TD without L2 VMs needs."""
TDCX_PAGES_MAX = 9
TDVPS_PAGES = 6
"""Pages of a vCPU without L2 VMs: TDVPR and five TDCX."""
TDVPS_PAGES_MAX = 15
TDVPS_PAGES_PER_L2_VM = 3
SEPT_ROOT_INDEX = 4
"""Which TDCX page is the S-EPT root."""
L2_SEPT_ROOT_INDEX = 6
"""Which TDCX page is the S-EPT root of the first L2 VM; those of the others follow, one each."""
L2_VMS_MAX = 3
EPT_VIOLATION_ON_L2_SEPT_WALK_FAILURE = 1 << 0
"""VM_CTLS bit: a guest call that finds no L2 table for a VM leaves to the host instead of failing."""
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
PKS = 1 << 30
PERFMON = 1 << 63
ATTRIBUTES = DEBUG | SEPT_VE_DISABLE | MIGRATABLE | PKS | PERFMON
"""All that a TD may ask for."""
GPAW = 1 << 0
"""CONFIG_FLAGS bit: the shared bit is 51 and the S-EPT has five levels; else 47 and four."""
FLEXIBLE_PENDING_VE = 1 << 1
"""CONFIG_FLAGS bit: the guest may change PENDING_VE_DISABLE."""
NO_RBP_MOD = 1 << 2
"""CONFIG_FLAGS bit: TDG.VP.VMCALL does not hand over RBP."""
CONFIG_FLAGS = GPAW | FLEXIBLE_PENDING_VE | NO_RBP_MOD
PENDING_VE_DISABLE = 1 << 0
"""TD_CTLS bit; MNG.INIT copies SEPT_VE_DISABLE there."""
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


def measured(call: bytes, gpa: int) -> bytes:
    """The block of 128 bytes by which a call goes into MRTD: its name, padded to 16 bytes, the address, zeros.

    Source: sha384.h:sha384_128B_block_t.
    """
    return (call.ljust(16, b"\0") + gpa.to_bytes(8, "little")).ljust(128, b"\0")


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
    """The root of a TD. Plain fields: guarded by the PAMT lock of the TDR page; but for `fatal`, which a dying vCPU sets."""

    def __init__(self, pfn: Pfn, hkid: int, packages: int, *, tree_host_priority: bool = False) -> None:
        self.pfn = pfn
        self.hkid = hkid
        self._fatal = False
        self.lifecycle = Lifecycle.HKID_ASSIGNED
        self.keys_missing = set(range(packages))
        self.tdcx: list[Pfn] = []
        self.tdcs = Tdcs(f"td[{pfn:#x}]", tree_host_priority=tree_host_priority)
        self.chldcnt: Cell[int] = Cell(f"td[{pfn:#x}].chldcnt", 0)
        self.vcpus: list[Tdvps] = []

    @property
    def fatal(self) -> bool:
        """Whether the TD can only be torn down. Set under the shared lock, in the access that ends its vCPU's run."""
        note(f"td[{self.pfn:#x}].fatal", READ)
        return self._fatal

    @fatal.setter
    def fatal(self, fatal: bool) -> None:
        note(f"td[{self.pfn:#x}].fatal", WRITE)
        self._fatal = fatal


class Tdcs:
    """The control structure of a TD. Plain fields: guarded by OP_STATE's lock, or by the TDR taken exclusive."""

    def __init__(self, name: str, *, tree_host_priority: bool = False) -> None:
        self._op_state = OpState.UNINITIALIZED
        self._op_state_key = f"{name}.op_state"
        self.op_state_lock = SharexHp(f"{name}.op_state_lock", 0)
        tree_lock: type[Lock] = SharexHp if tree_host_priority else Sharex
        self.sept_tree_lock = tree_lock(f"{name}.sept_tree_lock", 0)
        self.epoch_lock = Sharex(f"{name}.epoch_lock", 0)
        self.epoch: Cell[Epoch] = Cell(f"{name}.epoch", Epoch(0, 0, 0))
        self._root: SeptPage | None = None
        self.private_end = 0
        self.attributes = 0
        self.max_vcpus = 0
        self.num_vcpus: Cell[int] = Cell(f"{name}.num_vcpus", 0)
        self.num_assoc_vcpus: Cell[int] = Cell(f"{name}.num_assoc_vcpus", 0)
        self.hp_lock_timeout_ns = HP_LOCK_TIMEOUT_NS
        self.measurement = sha384()
        self.config_flags = 0
        self.td_ctls = 0
        self.notify_enables = 0
        self.num_l2_vms = 0
        self.migration = MigrationContext(name)
        self.l2_roots: list[SeptPage] = []
        """S-EPT root of L2 VM n at n - 1."""
        self.vm_ctls = [0, 0, 0]
        """VM_CTLS of L2 VM n at n - 1, see `EPT_VIOLATION_ON_L2_SEPT_WALK_FAILURE`."""

    @property
    def tdvps_pages(self) -> int:
        """How many pages a vCPU of this TD needs: TDVPR and TDCX."""
        return TDVPS_PAGES + TDVPS_PAGES_PER_L2_VM * self.num_l2_vms

    @property
    def op_state(self) -> OpState:
        """TDCS.OP_STATE. Imports that fail change it while they hold its lock only shared: search must know who looks."""
        note(self._op_state_key, READ)
        return self._op_state

    @op_state.setter
    def op_state(self, state: OpState) -> None:
        note(self._op_state_key, WRITE)
        self._op_state = state

    @property
    def pending_ve_disable(self) -> bool:
        """TD_CTLS bit 0: a guest's access to a pending page is an exit, not a #VE."""
        return self.td_ctls & PENDING_VE_DISABLE != 0

    @pending_ve_disable.setter
    def pending_ve_disable(self, disable: bool) -> None:
        self.td_ctls = self.td_ctls & ~PENDING_VE_DISABLE | (PENDING_VE_DISABLE if disable else 0)

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
        self.last_td_exit = LastTdExit.ASYNC_FAULT
        self.ve_info: VeInfo | None = None
        """VE_INFO, while it is valid: since a #VE, until the guest fetches it."""
        self.injected: VirtualizationException | None = None
        """What TDH.VP.ENTER makes the guest begin with; the embedding takes it away when it runs the guest."""
        self.guest_rax = 0
        """What a TDCALL that left by a trap-like exit returns; TDH.VP.ENTER puts the host's hint into it."""
        self.last_violation: VeInfo | None = None
        """The private EPT violation that the VMCS still shows, if the last VM exit was one."""
        self.export_count = 0
        """The export session in which it was last exported."""
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
        """A VM exit at `rip`: if that is not where the guest was entered, it does not step in place."""
        self.rip = rip
        if rip is None or rip != self.entry_rip:
            self.possibly_epf_stepping = 0
            self.last_epf_gpa_list.clear()

    def log_epf(self, gpa: Gpa) -> bool:
        """Remember a private EPT violation that leaves the guest; returns whether it arms the zero-step defence.

        The guest has been compared with where it was entered already, see `progressed`. `gpa` is the whole address: two
        of one page are two suspects. Source: td_exit_stepping.c:td_exit_epf_stepping_log.
        """
        self.rip_compared = True
        if self.possibly_epf_stepping < ZERO_STEP_THRESHOLD:
            self.possibly_epf_stepping += 1
            return False
        suspects = self.last_epf_gpa_list
        if gpa not in suspects and len(suspects) < ZERO_STEP_LIST_MAX:
            suspects.append(gpa)
            return len(suspects) == 1
        return False


@dataclass(slots=True)
class SingleStep:
    """The single-step defence's state on one LP (single_step_def_state of its local data)."""

    entered_ns: int | None = None
    """When the guest was entered last; None forbids that stepping begins."""
    stepping: bool = False
    """Every instruction of the guest ends in a VM exit (MTF), and interrupts are held back."""
    left: int = 0
    """How many more of them the guest may execute."""


def _no_flush(td_key: Pfn) -> None:  # noqa: ARG001 - an LP without a TLB
    return None


def _nothing_pending() -> bool:
    return False


@dataclass(slots=True)
class LogicalProcessor:
    """One logical processor as the module sees it.

    `interrupt_pending()` is what the module samples in long calls: INTR (unless the host has interrupts off), NMI, SMI and their
    like. `flush_tlb(td_key)` drops what the LP has cached for the TD with that TDR frame; the embedding that models a TLB gives
    it. Nothing else in the module touches a TLB. `single_step` is what the single-step defence keeps here (`stepping`), and
    `apic_enabled` whether it can re-post the interrupts that it holds back.
    """

    lpid: int
    package: int = 0
    flush_tlb: Callable[[Pfn], None] = _no_flush
    last_tdvpr: Pfn | None = None
    interrupt_pending: Callable[[], bool] = _nothing_pending
    tsc_mhz: int = 2_700
    apic_enabled: bool = True
    single_step: SingleStep = field(default_factory=SingleStep)


def package_of(lp: LogicalProcessor | None, package: int | None) -> int:
    """The package a call happens on: said by number, or the calling LP's, or 0."""
    if package is not None:
        return package
    return lp.package if lp is not None else 0


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

    def is_shared(self, pfn: int) -> bool:
        """Whether a frame, the key id in its upper bits included, is one of the host's own (helpers.c:shared_hpa_check)."""
        return 0 <= pfn < min(self.hkids) << HKID_SHIFT - PAGE_SHIFT
