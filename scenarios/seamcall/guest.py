"""The guest, instruction by instruction: what TDH.VP.ENTER runs between entry and exit, here as somebody types it.

A vCPU that was entered stays inside, at rest, until it is given an instruction: a TDCALL, a memory access, or an interrupt that
takes it out. An instruction that did not happen (a fault, an interrupted TDCALL) is where the vCPU still stands: the same one
again is at the same RIP, any other is somewhere else; the zero-step defence looks at that. A memory access goes through the LP's
TLB, which only TDH.VP.ENTER and TDH.VP.FLUSH empty: that is why tracking exists.
Not modelled: shared memory, the single-step defence, what the guest does with a #VE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sim import Steps
from sim.access import Access as Step
from tdx.module import Access, Td, TdExit, VirtualizationException, hardware_walk, private_ept_violation
from tdx.module.dispatch import Registers
from tdx.module.septe import W, X
from tdx.module.tdcall import tdcall
from vcpu.addresses import Gpa, align_down, gfn_of
from vcpu.tlb import Translation

if TYPE_CHECKING:
    from scenarios.seamcall.world import World
    from sim import Thread
    from tdx.module import LogicalProcessor, SeamcallReturn, Tdvps
    from tdx.module.exits import TdcallResult

INSTRUCTION_BYTES = 64
"""How far apart two instructions are: far enough that nobody takes them for neighbours."""

ACCESSES = {"read": Access.READ, "write": Access.WRITE, "execute": Access.FETCH}


@dataclass
class Outcome:
    """How an instruction ended: in a word ("": as the returned status says), with what it returned, and in sentences."""

    status: str
    result: SeamcallReturn | None = None
    notes: list[str] = field(default_factory=list)


Instruction = Callable[["Guest"], Steps[TdExit | None]]
"""What an instruction does; it sets the guest's outcome, and returns the TD exit that it causes, if any."""


class NextInstruction(Step):
    """The guest asks what to do next; while nobody says, it is at rest."""

    __slots__ = ()
    verb = "next instruction"
    target: Guest

    def perform(self, thread: Thread) -> Instruction:
        instruction = self.target.next
        assert instruction is not None, "it is at rest"
        self.target.next = None
        return instruction


class Guest:
    """One vCPU between an entry and the exit that follows."""

    def __init__(self, world: World, vcpu: Tdvps, lp: LogicalProcessor) -> None:
        self.world = world
        self.vcpu = vcpu
        self.lp = lp
        self.td = Td(vcpu.tdr.pfn, world.td_name(vcpu.tdr.pfn))
        self.next: Instruction | None = None
        self.outcome: Outcome | None = None

    @property
    def rip(self) -> int:
        """Where it stands."""
        return self.world.rips.get(self.vcpu.pfn, ("", 0))[1]

    def stand_at(self, instruction: str) -> None:
        """Come to this instruction: it is the one that has not happened yet, or else another one, somewhere else."""
        standing, rip = self.world.rips.get(self.vcpu.pfn, ("", 0))
        if standing not in {"", instruction}:
            rip += INSTRUCTION_BYTES
        self.world.rips[self.vcpu.pfn] = instruction, rip

    def move_on(self) -> None:
        """The instruction has happened."""
        self.world.rips[self.vcpu.pfn] = "", self.rip + INSTRUCTION_BYTES

    def run(self) -> Steps[TdExit]:
        """What TDH.VP.ENTER runs. An interrupt that is pending after an instruction takes the vCPU out."""
        while True:
            instruction: Instruction = yield NextInstruction(self)
            left = yield from instruction(self)
            if left is not None:
                return left
            if self.lp.interrupt_pending():
                return TdExit.external_interrupt(self.rip)


def interrupted(guest: Guest) -> Steps[TdExit | None]:
    """An interrupt for the host: the vCPU leaves at once."""
    yield guest.world.module.state.read_once()
    guest.outcome = Outcome("TDEXIT_EXTERNAL_INTERRUPT")
    return TdExit.external_interrupt(guest.rip)


def td_call(registers: Registers, told: str) -> Instruction:
    """A TDCALL. Args: told: how it was written, which tells whether it is the one that has not happened yet."""

    def steps(guest: Guest) -> Steps[TdExit | None]:
        guest.stand_at(told)
        result: TdcallResult = yield from tdcall(
            guest.world.module,
            guest.vcpu,
            registers,
            interrupt_pending=guest.lp.interrupt_pending,
            rip=guest.rip,
        )
        if result.exit is not None:
            guest.outcome = Outcome(f"TDEXIT_{result.exit.reason.name}", result.ret)
            if result.exit.trap_like:
                guest.move_on()
            return result.exit
        if result.interrupted:
            guest.outcome = Outcome(
                "GUEST_RESUME_SAME_RIP", notes=["the TDCALL has not returned: the same again goes on"]
            )
            return None
        assert result.ret is not None
        guest.outcome = Outcome("", result.ret)
        guest.move_on()
        return None

    return steps


def touch(gpa: int, kind: str, told: str) -> Instruction:
    """A memory access of the guest to a private address. Args: kind: read, write or execute."""

    def steps(guest: Guest) -> Steps[TdExit | None]:
        guest.stand_at(told)
        gfn = gfn_of(gpa)
        tlb = guest.world.tlbs[guest.lp.lpid]
        known = tlb.lookup(guest.td.name, gfn)
        if known is not None and known.allows(kind):
            yield guest.world.module.state.read_once()
            at = f"{(known.frame(gfn) << 12) + (gpa & 0xFFF):#x}"
            guest.outcome = Outcome(
                "OK", notes=[f"served by the TLB of lp{guest.lp.lpid}: page {at}, S-EPT not looked at"]
            )
            guest.move_on()
            return None
        walked = yield from hardware_walk(guest.world.module, guest.td, gfn)
        if walked is not None:
            entry, level = walked
            found = Translation(
                align_down(gfn, level), entry.pfn_at(level), level, bool(entry & W), bool(entry & X)
            )
            if found.allows(kind):
                tlb.fill(guest.td.name, found)
                at = f"{(found.frame(gfn) << 12) + (gpa & 0xFFF):#x}"
                guest.outcome = Outcome(
                    "OK", notes=[f"walked: page {at}; lp{guest.lp.lpid} caches the {level.short} translation"]
                )
                guest.move_on()
                return None
        met = yield from private_ept_violation(
            guest.world.module, guest.td, guest.vcpu, Gpa(gpa), ACCESSES[kind], guest.rip
        )
        if isinstance(met, VirtualizationException):
            guest.outcome = Outcome("#DF" if met.double_fault else "#VE", notes=[_exception(met)])
            return None
        guest.outcome = Outcome(f"TDEXIT_{met.reason.name}")
        return met

    return steps


def _exception(met: VirtualizationException) -> str:
    if met.double_fault:
        return "a second #VE before TDG.VP.VEINFO.GET fetched the first is a #DF"
    return (
        "the page is pending: the guest's handler would fetch the address (TDG.VP.VEINFO.GET) and accept it"
    )
