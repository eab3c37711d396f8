"""Guest programs: what runs on a vCPU, one instruction at a time.

A program is a generator of instructions; each is sent the result of the one before. An instruction that faults is issued
again after the exit, at the same RIP, until it is done: that is what makes zero-step detection and ACCEPT loops real.
Interrupts are taken at instruction boundaries, in the step that looks up the TLB.
"""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from sim import Access, Kernel, Steps, dependence
from vcpu.addresses import Gpa, PgLevel, gfn_of
from vcpu.events import GuestTouched
from vcpu.exits import ExitReason, GuestExit
from vcpu.memory import Content, Memory
from vcpu.tlb import Translation
from vcpu.tlb_ledger import PROMISES

if TYPE_CHECKING:
    from sim import Thread
    from vcpu.vcpu import Vcpu


class Touch(NamedTuple):
    """Access one address; the result is the content's version."""

    gpa: Gpa
    access: str = "write"


class Accept(NamedTuple):
    """TDG.MEM.PAGE.ACCEPT of one page; the result is an AcceptStatus."""

    gpa: Gpa
    level: PgLevel


class MapGpa(NamedTuple):
    """TDG.VP.VMCALL<MapGPA> of [gpa, gpa+size) (no shared bit); the result is True, or False if the VMM refused."""

    gpa: Gpa
    size: int
    to_private: bool


class Compute(NamedTuple):
    """Run `ns` nanoseconds of instructions that touch no memory of interest."""

    ns: int


class Halt(NamedTuple):
    """HLT until somebody wakes the vCPU, at most `bound_ns`."""

    bound_ns: int


Instruction = Touch | Accept | MapGpa | Compute | Halt
Program = Generator[Instruction, Any, None]


class AcceptStatus(Enum):
    """How one TDG.MEM.PAGE.ACCEPT ended, for the guest."""

    ACCEPTED = "accepted"
    ALREADY = "already accepted"
    SIZE_MISMATCH = "mapped smaller"
    BUSY = "busy"
    INTERRUPTED = "interrupted"


class Interrupted:
    """The type of `INTERRUPTED`."""


INTERRUPTED = Interrupted()
"""What the boundary returns instead of a translation when the guest must exit first."""


class Boundary(Access):
    """An instruction boundary: take a pending interrupt, or else look the address up in the TLB."""

    __slots__ = ("gfn", "space")
    verb = "tlb look-up by"
    reads = True
    target: Vcpu

    def __init__(self, target: Vcpu, space: str, gfn: int) -> None:
        self.target = target
        self.space = space
        self.gfn = gfn

    def perform(self, thread: Thread) -> Any:
        vcpu = self.target
        if vcpu.interrupted:
            return INTERRUPTED
        return vcpu.pcpu.tlb.lookup(self.space, self.gfn)

    def touches(self) -> tuple[dependence.Touch, ...]:
        return ()  # a TLB is its pCPU's alone, and `interrupted` says what it looks at


EXTERNAL_INTERRUPT = GuestExit(ExitReason.EXTERNAL_INTERRUPT)
HLT = GuestExit(ExitReason.HLT)


BUSY_TRIES_AT_ONCE = 4


def busy_pause_ns(tries: int) -> int:
    """How long to wait before the next try, after so many that were answered busy."""
    return 0 if tries <= BUSY_TRIES_AT_ONCE else 1000 << min(tries - BUSY_TRIES_AT_ONCE, 20)


class Guest:
    """Runs programs; one for a VM, with the memory it runs on."""

    def __init__(self, kernel: Kernel, memory: Memory) -> None:
        self.kernel = kernel
        self.memory = memory

    def run(self, vcpu: Vcpu) -> Steps[GuestExit]:
        """Run the guest until it exits. The first instruction is the one that the last exit left undone."""
        kernel = self.kernel
        self._resumed(vcpu)
        while True:
            instruction = vcpu.instruction
            if instruction is None:
                return HLT
            result: Any
            if isinstance(instruction, Touch):
                result = yield from self.touch(vcpu, instruction.gpa, instruction.access)
            elif isinstance(instruction, Accept):
                result = yield from self._accept(vcpu, instruction)
            elif isinstance(instruction, Compute):
                result = yield from self._compute(vcpu, instruction.ns)
            elif isinstance(instruction, MapGpa):
                result = self._vmcall(vcpu, instruction)
            else:
                result = self._halt(vcpu)
            if isinstance(result, GuestExit):
                vcpu.exited_ns = kernel.now_ns
                return result
            if result is not AcceptStatus.BUSY:  # the module bounds that by time (host priority): no livelock
                kernel.progressed()
            self._advance(vcpu, result)

    def begin(self, vcpu: Vcpu) -> bool:
        """Fetch the first instruction; False if the program has none."""
        vcpu.instruction = next(vcpu.program, None)
        return vcpu.instruction is not None

    def skip(self, vcpu: Vcpu) -> None:
        """The host emulated the instruction: go on behind it."""
        self.kernel.progressed()
        self._advance(vcpu, None)

    def _advance(self, vcpu: Vcpu, result: Any) -> None:
        vcpu.rip += 1
        vcpu.vmcall_result = None
        self.kernel.count("guest.instructions")
        try:
            vcpu.instruction = vcpu.program.send(result)
        except StopIteration:
            vcpu.instruction = None
            vcpu.shut_down = True

    def _resumed(self, vcpu: Vcpu) -> None:
        """Close the latencies that the last exit opened."""
        if vcpu.exited_ns < 0:
            return
        lasted_ns = self.kernel.now_ns - vcpu.exited_ns
        self.kernel.record("vm_exit", lasted_ns)
        if vcpu.fault_name:
            self.kernel.record(vcpu.fault_name, lasted_ns)
            vcpu.fault_name = ""
        vcpu.exited_ns = -1

    def touch(self, vcpu: Vcpu, gpa: Gpa, access: str) -> Steps[int | GuestExit]:
        """Perform one guest access, or exit.

        Yields: the instruction boundary (TLB look-up); on a miss one read per paging level (at most 5); the content.
        Args:
            gpa: guest physical address in bytes; its shared bit selects EPT or S-EPT.
        Returns: the version read or written, or the exit that must be handled first.
        Cost: `tlb_miss_nested_4k` or `_2m` for a walk. Source: Intel SDM vol. 3C, "EPT translation mechanism".
        """
        kernel = self.kernel
        side = vcpu.guest
        gfn = gfn_of(gpa)
        space = side.space(vcpu, gpa)
        while True:
            found = yield Boundary(vcpu, space, gfn)
            if found is INTERRUPTED:
                return EXTERNAL_INTERRUPT
            if found is None or not found.allows(access):
                found = yield from side.walk(vcpu, gpa, access)
                if isinstance(found, GuestExit):
                    return found
                if found is None:
                    continue
                kernel.charge("tlb_miss_nested_4k" if found.level == 1 else "tlb_miss_nested_2m")
                dependence.note(PROMISES, dependence.READ)
                found = found._replace(filled=kernel.steps)
                vcpu.pcpu.tlb.fill(space, found)
            return (yield from self._content(vcpu, gpa, found, access))

    def _content(self, vcpu: Vcpu, gpa: Gpa, translation: Translation, access: str) -> Steps[int]:
        pfn = translation.frame(gfn_of(gpa))
        cell = self.memory.cell(pfn)
        if access == "write":
            version = self.memory.new_version()
            yield cell.write_once(Content(version, vcpu.guest.key(gpa)))
        else:
            content: Content = yield cell.read_once()
            version = content.version
        vcpu.guest.check_access(vcpu, gpa, translation, access, version)
        if self.kernel.events is not None:
            self.kernel.emit(GuestTouched(vcpu.index, gpa, access, pfn, translation.level.value, version))
        return version

    def _accept(self, vcpu: Vcpu, instruction: Accept) -> Steps[AcceptStatus | GuestExit]:
        """One ACCEPT and the guest's loop around it. Cost: `accept_loop_guest`.

        A guest that finds the entry busy tries again, and between two tries an interrupt may take it out. It tries at once for a
        while and then ever more rarely, where a real one would spin: a host that has asked for priority and does not come back
        keeps it off for a second (TDX module, host priority).
        """
        began_ns = self.kernel.now_ns
        self.kernel.charge("accept_loop_guest")
        status = yield from vcpu.guest.accept(vcpu, instruction.gpa, instruction.level)
        if status is AcceptStatus.INTERRUPTED:
            return EXTERNAL_INTERRUPT
        if status is AcceptStatus.BUSY:
            vcpu.busy_accepts += 1
            yield vcpu.pcpu.interrupt.wait(busy_pause_ns(vcpu.busy_accepts), take=False)
            if vcpu.interrupted:
                return EXTERNAL_INTERRUPT
        else:
            vcpu.busy_accepts = 0
        if not isinstance(status, GuestExit):
            self.kernel.record("accept", self.kernel.now_ns - began_ns)
        return status

    def _compute(self, vcpu: Vcpu, ns: int) -> Steps[GuestExit | None]:
        """Run until done, until an interrupt comes, or until the time slice is over and somebody waits for the pCPU."""
        kernel = self.kernel
        end_ns = kernel.now_ns + ns
        while True:
            left_ns = end_ns - kernel.now_ns
            if vcpu.interrupted and left_ns > 0:
                vcpu.instruction = Compute(left_ns)
                return EXTERNAL_INTERRUPT
            if left_ns <= 0:
                return None
            yield vcpu.pcpu.interrupt.wait(min(left_ns, vcpu.slice_left_ns()), take=False)

    def _vmcall(self, vcpu: Vcpu, instruction: MapGpa) -> GuestExit | bool:
        """MapGPA exits; its result arrives with the next entry. RETRY carries on where the VMM stopped."""
        result = vcpu.vmcall_result
        if result is None:
            end = instruction.gpa + instruction.size
            return GuestExit(
                ExitReason.TDCALL, arguments=("MapGPA", instruction.gpa, end, int(instruction.to_private))
            )
        vcpu.vmcall_result = None
        status, next_gpa = result
        if status == "retry":
            left = instruction.gpa + instruction.size - next_gpa
            vcpu.instruction = MapGpa(Gpa(next_gpa), left, instruction.to_private)
            return self._vmcall(vcpu, vcpu.instruction)
        return bool(status == "success")

    def _halt(self, vcpu: Vcpu) -> GuestExit | None:
        result = vcpu.vmcall_result
        if result is None:
            return HLT
        vcpu.vmcall_result = None
        return None
