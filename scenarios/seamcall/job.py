"""What a logical processor is in the middle of: a host's call, and inside it, once the vCPU was entered, the guest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scenarios.seamcall.guest import Guest, Instruction, NextInstruction, Outcome
from scenarios.seamcall.running import Performed, Running
from sim import Steps
from tdx.module.dispatch import dispatch
from tdx.module.operands import decode
from tdx.module.status import ModuleShutdown
from vcpu.addresses import PAGE_SHIFT

if TYPE_CHECKING:
    from scenarios.seamcall.request import Request
    from scenarios.seamcall.world import World
    from tdx.module import TdExit


class Job:
    """One LP's work. It is *begun* when it is made, *moved* by `step` and `run`, and over when `running` has returned.

    Args: entry_before: what the S-EPT entry that the call is about holds now, for the report at its end.
    """

    def __init__(self, world: World, lpid: int, request: Request, entry_before: str) -> None:
        self.world = world
        self.lpid = lpid
        self.request = request
        self.entry_before = entry_before
        self.guest: Guest | None = None
        self.instruction: Request | None = None
        """The guest's call in the middle."""
        self.broken = ""
        """Why the module shut down, if it did."""
        self._mark = 0
        lp = world.lps[lpid]
        context: dict[str, Any] = {
            "lp": lp,
            "package": lp.package,
            "interrupt_pending": lp.interrupt_pending,
            "guest": self._enter,
            **request.direct,
        }
        self.running = Running(
            world.kernel, f"lp{lpid}", dispatch(world.module, request.registers, **context)
        )

    def _enter(self) -> Steps[TdExit]:
        """What TDH.VP.ENTER runs, called when the checks are over."""
        operands: dict[str, Any] = {}
        assert self.request.leaf is not None
        for register, carries in self.request.leaf.inputs.items():
            operands |= decode(carries, getattr(self.request.registers, register))
        vcpu = self.world.module.vcpu(operands["tdvpr_pfn"])
        self.guest = Guest(self.world, vcpu, self.world.lps[self.lpid])
        return self.guest.run()

    # What it is.

    @property
    def current(self) -> Request:
        """What is being done: the guest's instruction, or the host's call."""
        return self.instruction if self.instruction is not None else self.request

    @property
    def name(self) -> str:
        """The call, or what else it is."""
        return _name(self.current)

    @property
    def request_name(self) -> str:
        """The host's call."""
        return _name(self.request)

    @property
    def registers(self) -> dict[str, int]:
        """The input registers that are not zero; none for a memory access."""
        if self.current.leaf is None:
            return {}
        return {
            name: word for name, word in self.current.registers._asdict().items() if word or name == "rax"
        }

    @property
    def guest_name(self) -> str:
        """The vCPU that is inside."""
        assert self.guest is not None
        return self.world.vcpu_name(self.guest.vcpu.pfn)

    @property
    def who(self) -> str:
        """Who acts: the guest during an instruction, else the LP."""
        return self.guest_name if self.instruction is not None else f"lp{self.lpid}"

    @property
    def what(self) -> str:
        """What it is in the middle of, as an excuse."""
        return f"inside {self.guest_name}" if self.guest is not None and self.at_rest else self.name

    @property
    def pages(self) -> set[int]:
        """Frames that its registers name: nobody else shall be given one of them meanwhile."""
        return {word >> PAGE_SHIFT for word in self.request.registers[1:]} | set(self.request.names.values())

    @property
    def own_accesses(self) -> Sequence[Performed]:
        """The accesses of this call or instruction so far."""
        return self.running.performed[self._mark :]

    # Where it stands.

    @property
    def at_rest(self) -> bool:
        """Whether it waits for a guest's next instruction."""
        asks = isinstance(self.running.pending, NextInstruction)
        return asks and self.guest is not None and self.guest.next is None

    @property
    def over(self) -> bool:
        """Whether there is nothing to move: it has returned, or is at rest."""
        return bool(self.broken) or self.running.returned or self.at_rest

    @property
    def entered(self) -> bool:
        """Whether the host's call has just led into the guest."""
        return self.at_rest and self.instruction is None

    def instruct(self, request: Request, instruction: Instruction, entry_before: str) -> None:
        """Give the guest, which is at rest, its next instruction."""
        assert self.guest is not None
        self.instruction = request
        self.guest.next = instruction
        self.guest.outcome = None
        self.entry_before = entry_before
        self.running.step()  # the guest takes it: no access of anybody
        self._mark = len(self.running.performed)

    def step(self) -> Performed | None:
        """Perform one access; None if the module shut down at it."""
        try:
            return self.running.step()
        except ModuleShutdown as exc:
            self.broken = f"the module shut down: {exc}"
            return None

    def run(self) -> None:
        """Move it until it is over."""
        while not self.over:
            self.step()

    def ended_instruction(self) -> Outcome | None:
        """How the guest's instruction ended, once; from then on the guest has none."""
        assert self.guest is not None
        outcome = self.guest.outcome
        if outcome is None or not self.over:
            return None
        self.instruction = None
        return outcome

    def first_instruction(self) -> list[str]:
        """What the module makes the guest begin with, if anything."""
        assert self.guest is not None
        injected = self.guest.vcpu.injected
        self.guest.vcpu.injected = None
        return [f"the guest begins with a #VE for {injected.gpa:#x}"] if injected is not None else []

    def first_shown(self, shown: int) -> int:
        """The number, from 1, of the first of the last `shown` accesses."""
        return len(self.own_accesses) - shown + 1


def _name(request: Request) -> str:
    return request.leaf.name if request.leaf is not None else request.verb
