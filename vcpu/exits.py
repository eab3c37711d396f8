"""Why a guest left: what hardware or the TDX module tells KVM, and what userspace is asked for."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple

from vcpu.addresses import Gpa


class Access(Enum):
    """What a guest access does."""

    READ = "read"
    WRITE = "write"
    EXECUTE = "execute"


class ExitReason(IntEnum):
    """Basic exit reasons, with the SDM's numbers (vmx.h EXIT_REASON_*)."""

    EXCEPTION_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    HLT = 12
    EPT_VIOLATION = 48
    EPT_MISCONFIG = 49
    TDCALL = 77


class ExtendedQualification(IntEnum):
    """Bits 3:0 of TDX's extended exit qualification (reference tdx-module 11.2)."""

    NONE = 0
    ACCEPT = 1
    PENDING_VIOLATION = 6


class GuestExit(NamedTuple):
    """One exit, as the handler sees it.

    `gpa` carries the shared bit if the access did. `qualification` bits: 0 read, 1 write, 2 fetch, 5:3 what the entry
    allowed. `arguments` are a TDVMCALL's: (name, value, ...).
    """

    reason: ExitReason
    gpa: Gpa = Gpa(0)
    qualification: int = 0
    extended: int = 0
    arguments: tuple[str | int, ...] = ()


QUALIFICATION = {"read": 1 << 0, "write": 1 << 1, "execute": 1 << 2}
PROT_MASK = 0b111 << 3
"""Qualification bits that say what the EPT entry allowed: any of them means that a present entry was met."""


class UserExit(IntEnum):
    """KVM_EXIT_* reasons that the VMM of this model answers."""

    MEMORY_FAULT = 39
    HYPERCALL = 3
    SYSTEM_EVENT = 24
    INTERNAL_ERROR = 17
