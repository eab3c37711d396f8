"""What leaves the guest: TD exits with their reasons and qualifications; and what a TDCALL or an access comes to inside.

Not modelled: exits that no memory access, call or interrupt causes (CPUID, MSRs, CR and DR accesses: they are a #VE or emulated
inside the module), notification and bus-lock exits, L2 exits (bits 33:32 of RCX stay 0).
Source: TDX module 1.5.01, td_exit.c:async_tdexit_internal, td_other_exits.c, vmcs_defs.h:vmx_ext_exit_qual_t; reference 10,
11.1, 11.2; Intel SDM vol. 3C, "Exit qualification for EPT violations".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from typing import TYPE_CHECKING, NamedTuple

from tdx.module.status import SeamcallReturn, Status
from vcpu.addresses import Gpa

if TYPE_CHECKING:
    from tdx.module.walk import Walk

HIDDEN_QUALIFICATION = 0x3F << 7
"""Bits 12:7 of an EPT violation's qualification speak of linear addresses: the host does not see them."""
PAGE_OFFSET = 0xFFF


class ExitReason(IntEnum):
    """VM-exit reasons that reach the host, with the numbers of the SDM."""

    EXCEPTION_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    INIT = 3
    OTHER_SMI = 6
    MTF = 37
    EPT_VIOLATION = 48
    EPT_MISCONFIG = 49
    TDCALL = 77


class LastTdExit(IntEnum):
    """TDVPS.LAST_TD_EXIT: what the next TDH.VP.ENTER has to finish."""

    ASYNC_FAULT = 0
    ASYNC_TRAP = 1
    TDVMCALL = 2


class Access(IntFlag):
    """What the guest wanted: bits 2:0 of the exit qualification."""

    READ = 1
    WRITE = 2
    FETCH = 4


class ExtendedType(IntEnum):
    """Bits 3:0 of the extended exit qualification in RDX."""

    NONE = 0
    ACCEPT = 1
    GPA_DETAILS = 2
    MSR_LOAD_FAILURE = 3
    XSTATE_LOAD_FAILURE = 4
    ATTR_WR = 5
    PENDING_EPT_VIOLATION = 6


class Damage(Enum):
    """What an exit with an error status leaves behind (td_exit.c:async_tdexit_internal)."""

    NONE = "the vCPU may be entered again"
    VCPU = "the vCPU is DISABLED"
    TD = "the TD is fatal; its vCPU stays ACTIVE"
    TD_NOT_ACCESSIBLE = "as TD; nothing is saved, and the REFCOUNT is never given back"


DAMAGE = {
    Status.TDX_NON_RECOVERABLE_VCPU: Damage.VCPU,
    Status.TDX_NON_RECOVERABLE_TD: Damage.TD,
    Status.TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE: Damage.TD,
    Status.TDX_NON_RECOVERABLE_TD_CORRUPTED_MD: Damage.TD,
    Status.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE: Damage.TD_NOT_ACCESSIBLE,
}


@dataclass(frozen=True, slots=True)
class TdExit:
    """A TD exit as TDH.VP.ENTER reports it.

    `args` are what a TDG.VP.VMCALL hands over in its registers, in the order of the GHCI (r10, r11, r12 ...). `rip` is where
    the guest stands, in whatever numbers the embedding uses, or None if it is certainly elsewhere than at the last entry:
    the zero-step defence compares it.
    """

    reason: ExitReason
    qualification: int = 0
    extended: int = 0
    gpa: Gpa = Gpa(0)  # noqa: RUF009 - a NewType
    rip: int | None = None
    args: tuple[int, ...] = ()
    status: Status = Status.TDX_SUCCESS
    trap_like: bool = False

    @property
    def extended_type(self) -> int:
        """Bits 3:0 of the extended qualification, comparable with `ExtendedType`."""
        return self.extended & 15

    @property
    def details(self) -> int | None:
        """Bits 31:0 of the host's RAX: the exit reason, or None for the exit that has none (host-priority timeout)."""
        return None if self.status is Status.TDX_HOST_PRIORITY_BUSY_TIMEOUT else self.reason

    @property
    def damage(self) -> Damage:
        """What cannot go on after it."""
        return DAMAGE.get(self.status, Damage.NONE)

    @property
    def last(self) -> LastTdExit:
        """What the next TDH.VP.ENTER must know of it, if there is a next one."""
        if not self.trap_like:
            return LastTdExit.ASYNC_FAULT
        return LastTdExit.TDVMCALL if self.status is Status.TDX_SUCCESS else LastTdExit.ASYNC_TRAP

    @classmethod
    def ept_violation(
        cls, gpa: Gpa, qualification: int, *, extended: int = 0, rip: int | None = None
    ) -> TdExit:
        """An EPT violation: fault-like, the instruction has not happened. The page offset and bits 12:7 are not shown."""
        shown = int(qualification) & ~HIDDEN_QUALIFICATION
        return cls(ExitReason.EPT_VIOLATION, shown, extended, Gpa(gpa & ~PAGE_OFFSET), rip)

    @classmethod
    def external_interrupt(cls, rip: int | None = None) -> TdExit:
        """An interrupt for the host."""
        return cls(ExitReason.EXTERNAL_INTERRUPT, rip=rip)

    @classmethod
    def triple_fault(cls, rip: int | None = None) -> TdExit:
        """The end of this vCPU: it is DISABLED, its TD goes on."""
        return cls(ExitReason.TRIPLE_FAULT, rip=rip, status=Status.TDX_NON_RECOVERABLE_VCPU)

    @classmethod
    def td_is_dead(cls, reason: ExitReason, qualification: int = 0, rip: int | None = None) -> TdExit:
        """What every exit becomes once the TD is fatal (tdx_td_dispatcher.c: the common prologue)."""
        status = Status.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE
        return cls(reason, qualification, rip=rip, status=status)

    @classmethod
    def vmcall(cls, *args: int, mask: int = 0, rip: int | None = None) -> TdExit:
        """A TDG.VP.VMCALL: trap-like, the guest goes on behind it."""
        return cls(ExitReason.TDCALL, mask, rip=rip, args=args, trap_like=True)

    @classmethod
    def host_priority_timeout(cls, rip: int | None = None) -> TdExit:
        """A guest call lost to host priority for too long: trap-like, the guest sees OPERAND_BUSY."""
        return cls(ExitReason.TDCALL, rip=rip, status=Status.TDX_HOST_PRIORITY_BUSY_TIMEOUT, trap_like=True)


class VeInfo(NamedTuple):
    """VE_INFO: what TDG.VP.VEINFO.GET returns in RCX, RDX, R8, R9 and R10."""

    exit_reason: int
    qualification: int
    gla: int
    gpa: Gpa
    instruction: int = 0
    """Length and information of the instruction; not modelled, 0."""


@dataclass(frozen=True, slots=True)
class VirtualizationException:
    """#VE inside the guest for a pending page; or #DF if the previous #VE's information was not fetched yet."""

    gpa: Gpa
    qualification: int
    double_fault: bool = False


@dataclass(frozen=True, slots=True)
class TdcallResult:
    """How one TDCALL ended: one of three ways.

    - `ret`: it returned; the guest looks at the status.
    - `exit`: the vCPU leaves; the guest has seen nothing and will issue the same TDCALL again, unless the exit is trap-like
      (then `ret` is set too: what the guest sees when it comes back).
    - `interrupted`: an interrupt waits; take it, then issue the same TDCALL again, which goes on where it was.
    """

    ret: SeamcallReturn | None = None
    exit: TdExit | None = None
    interrupted: bool = False

    @property
    def ok(self) -> bool:
        """Whether it returned TDX_SUCCESS without leaving."""
        return self.ret is not None and self.ret.ok and self.exit is None

    @property
    def status(self) -> Status | None:
        """What the guest sees in RAX, if it sees anything."""
        return self.ret.status if self.ret is not None else None


def sept_qualification(kind: ExtendedType, walk: Walk, level: int, *, vm: int = 0) -> int:
    """The extended qualification of an EPT violation by ACCEPT or ATTR.WR (td_other_exits.c:async_tdexit_ept_violation).

    Args:
        walk: where it ended; its entry is the copy that was judged, which may be younger than the walk.
        level: that was asked for.
        vm: the L2 VM whose table is at fault; 0 is the TD itself.
    """
    entry = walk.entry
    return (
        kind
        | (level - 1) << 32
        | walk.level.tdx << 35
        | entry.state.public << 38
        | entry.is_leaf << 46
        | vm << 52
    )


def sept_violation(
    kind: ExtendedType, walk: Walk, gpa: Gpa, level: int, *, rip: int | None = None, vm: int = 0
) -> TdExit:
    """The exit of ACCEPT or ATTR.WR: both are writes, and the entry's R, W, X stand in bits 5:3."""
    qualification = Access.WRITE | walk.entry.rwx << 3
    extended = sept_qualification(kind, walk, level, vm=vm)
    return TdExit.ept_violation(gpa, qualification, extended=extended, rip=rip)
