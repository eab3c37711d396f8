"""vCPUs as KVM sees them: mode, requests, the pCPU they are loaded on, and how all of them are told something.

Source: virt/kvm/kvm_main.c (kvm_make_all_cpus_request, kvm_request_needs_ipi), include/linux/kvm_host.h; reference 7.1, 7.2.
The barrier pairing that makes it safe: a requester changes memory, then reads `mode`; a vCPU sets `mode`, then reads
requests. Under sequential consistency the order of the steps is the barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from sim import Cell, Kernel, Steps
from vcpu.events import RemoteRequest
from vcpu.pcpu import Pcpu, smp_call_function_many

if TYPE_CHECKING:
    from vcpu.guest import Program
    from vcpu.ops import GuestSide, VcpuOps


class Mode(IntEnum):
    """vcpu->mode."""

    OUTSIDE_GUEST_MODE = 0
    IN_GUEST_MODE = 1
    EXITING_GUEST_MODE = 2
    READING_SHADOW_PAGE_TABLES = 3


class Request(NamedTuple):
    """One request: its bit in `vcpu.requests`, and its flags (KVM_REQUEST_WAIT, _NO_WAKEUP, _NO_ACTION)."""

    name: str
    bit: int
    wait: bool = True
    no_wakeup: bool = True
    no_action: bool = False

    @property
    def mask(self) -> int:
        """The bit as a mask."""
        return 1 << self.bit


TLB_FLUSH = Request("TLB_FLUSH", 0)
VM_DEAD = Request("VM_DEAD", 1)
UNBLOCK = Request("UNBLOCK", 2, wait=False, no_wakeup=False)
LOAD_MMU_PGD = Request("LOAD_MMU_PGD", 8 + 5, wait=False)
FREE_OBSOLETE_ROOTS = Request("FREE_OBSOLETE_ROOTS", 8 + 31)
OUTSIDE_GUEST_MODE = Request("OUTSIDE_GUEST_MODE", 0, no_action=True)
"""Sets no bit: its only purpose is that every vCPU has been outside the guest at some point after the call began."""


class Vcpu:
    """One vCPU. `arch` is whatever the layers above hang on it (root pointers, the TD's TDVPR)."""

    def __init__(self, kernel: Kernel, index: int, program: Program) -> None:
        self.kernel = kernel
        self.index = index
        self.mode: Cell[int] = Cell(f"vcpu{index}.mode", Mode.OUTSIDE_GUEST_MODE)
        self.requests: Cell[int] = Cell(f"vcpu{index}.requests", 0)
        self.cpu: Cell[int] = Cell(f"vcpu{index}.cpu", -1)
        self.halted = kernel.signal(f"vcpu{index}.wake")
        self.pcpu: Pcpu = None  # type: ignore[assignment]
        self.last_pcpu: Pcpu | None = None
        self.slice_began_ns = 0
        self.program = program
        self.ops: VcpuOps = None  # type: ignore[assignment]
        self.guest: GuestSide = None  # type: ignore[assignment]
        self.arch: Any = None
        self.instruction: Any = None
        self.vmcall_result: Any = None
        self.rip = 0
        self.exited_ns = -1
        self.fault_name = ""
        self.shut_down = False
        self.busy_accepts = 0

    def __str__(self) -> str:
        return f"vcpu{self.index}"

    @property
    def interrupted(self) -> bool:
        """Whether the guest must exit at this instruction boundary: an IPI waits, or the time slice is over."""
        pcpu = self.pcpu
        return pcpu.interrupt_pending or (
            pcpu.wanted and self.kernel.now_ns - self.slice_began_ns >= TIME_SLICE_NS
        )

    def slice_left_ns(self) -> int:
        """What is left of the time slice; a slice that nobody else wanted begins anew."""
        ran_ns = self.kernel.now_ns - self.slice_began_ns
        if ran_ns >= TIME_SLICE_NS:
            self.slice_began_ns = self.kernel.now_ns
            return TIME_SLICE_NS
        return TIME_SLICE_NS - ran_ns


TIME_SLICE_NS = 3_000_000
"""What the host's scheduler lets a thread run when others wait (EEVDF's base slice on a small machine)."""


def kvm_request_needs_ipi(request: Request, mode_old: int) -> bool:
    """Whether a vCPU seen in this mode must be interrupted."""
    if request.wait:
        return mode_old != Mode.OUTSIDE_GUEST_MODE
    return mode_old == Mode.IN_GUEST_MODE


def kvm_make_all_cpus_request(
    kernel: Kernel,
    vcpus: Sequence[Vcpu],
    pcpus: Sequence[Pcpu],
    request: Request,
    *,
    acknowledge: Callable[[], None] | None = None,
    here: Pcpu | None = None,
) -> Steps[int]:
    """Ask all vCPUs for something; with a WAIT request, return when each of them has left the guest.

    Step ids of reference 7.2: (1) the request bit, (2) the wake-up, (3) the mode, (5) the pCPU, then the IPIs.
    Returns: how many pCPUs were sent an IPI. `here` is the caller's own pCPU, which needs none.
    """
    targets: dict[int, None] = {}
    began_ns = kernel.now_ns
    for vcpu in vcpus:
        if not request.no_action:
            yield vcpu.requests.fetch_or(request.mask)
        if not request.no_wakeup:
            yield vcpu.halted.raise_()
        mode_old = yield vcpu.mode.cmpxchg(Mode.IN_GUEST_MODE, Mode.EXITING_GUEST_MODE)
        if kvm_request_needs_ipi(request, mode_old):
            cpu = yield vcpu.cpu.read_once()
            if cpu != -1 and (here is None or cpu != here.index):
                targets[cpu] = None
    yield from smp_call_function_many(
        kernel, [pcpus[cpu] for cpu in targets], acknowledge or _ack_flush, wait=request.wait
    )
    if request.wait and targets:
        kernel.record("shootdown", kernel.now_ns - began_ns)
    if kernel.events is not None:
        kernel.emit(RemoteRequest(request.name, len(targets)))
    return len(targets)


def _ack_flush() -> None:
    """The empty handler (kvm_main.c, ack_kick): being run is all it does."""


def running(vcpus: Sequence[Vcpu]) -> Iterator[Vcpu]:
    """VCPUs that are in guest mode now, for observers."""
    return (vcpu for vcpu in vcpus if vcpu.mode.peek() != Mode.OUTSIDE_GUEST_MODE)
