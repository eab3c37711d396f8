"""What leaves the guest: TD exits with their reasons and qualifications, and the #VE that does not leave it.

Source: reference 10, 11.1, 11.2; Intel SDM vol. 3C, "Exit qualification for EPT violations".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING

from tdx.module.status import SeamcallReturn, Status
from vcpu.addresses import Gpa

if TYPE_CHECKING:
    from tdx.module.walk import Walk


class ExitReason(IntEnum):
    """VM-exit reasons that reach the host, with the numbers of the SDM."""

    EXCEPTION_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    EPT_VIOLATION = 48
    EPT_MISCONFIG = 49
    TDCALL = 77


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
    ATTR_WR = 5
    PENDING_EPT_VIOLATION = 6


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

    @classmethod
    def ept_violation(cls, gpa: Gpa, access: int, *, extended: int = 0, rip: int | None = None) -> TdExit:
        """An EPT violation: fault-like, the instruction has not happened."""
        return cls(ExitReason.EPT_VIOLATION, int(access), extended, Gpa(gpa & ~0xFFF), rip)

    @classmethod
    def external_interrupt(cls, rip: int | None = None) -> TdExit:
        """An interrupt for the host."""
        return cls(ExitReason.EXTERNAL_INTERRUPT, rip=rip)

    @classmethod
    def vmcall(cls, *args: int, mask: int = 0, rip: int | None = None) -> TdExit:
        """A TDG.VP.VMCALL: trap-like, the guest goes on behind it."""
        return cls(ExitReason.TDCALL, mask, rip=rip, args=args, trap_like=True)

    @classmethod
    def host_priority_timeout(cls, rip: int | None = None) -> TdExit:
        """A guest call lost to host priority for too long: trap-like, the guest sees OPERAND_BUSY."""
        return cls(ExitReason.TDCALL, rip=rip, status=Status.TDX_HOST_PRIORITY_BUSY_TIMEOUT, trap_like=True)


@dataclass(frozen=True, slots=True)
class VirtualizationException:
    """#VE inside the guest for a pending page; or #DF if the previous #VE's information was not fetched yet."""

    gpa: Gpa
    qualification: int
    double_fault: bool = False


@dataclass(frozen=True, slots=True)
class AcceptResult:
    """How one TDG.MEM.PAGE.ACCEPT ended: one of three ways.

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
        """Whether the page is accepted by this call."""
        return self.ret is not None and self.ret.ok and self.exit is None

    @property
    def status(self) -> Status | None:
        """What the guest sees in RAX, if it sees anything."""
        return self.ret.status if self.ret is not None else None


def accept_qualification(walk: Walk, level: int) -> int:
    """The extended qualification of an EPT violation by ACCEPT: levels asked for and reached, state, leaf flag."""
    entry = walk.entry
    return (
        ExtendedType.ACCEPT
        | (level - 1) << 32
        | walk.level.tdx << 35
        | entry.state.public << 38
        | entry.is_leaf << 46
    )
