"""The tables of functions through which this layer calls upwards. The composition root fills them in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sim import Steps
    from vcpu.addresses import Gpa, PgLevel
    from vcpu.exits import GuestExit
    from vcpu.guest import AcceptStatus
    from vcpu.pcpu import Pcpu
    from vcpu.tlb import Translation
    from vcpu.vcpu import Vcpu


class VcpuOps(Protocol):
    """What KVM does around a guest (kvm_x86_ops, the vCPU's part)."""

    def load(self, vcpu: Vcpu, previous: Pcpu | None) -> Steps[None]:
        """vcpu_load on `vcpu.pcpu`, having run on `previous` before (None: never)."""

    def service_requests(self, vcpu: Vcpu) -> Steps[int]:
        """V1: test, clear and serve pending requests. Returns 1 to go on, or a negative errno."""

    def reload_mmu(self, vcpu: Vcpu) -> Steps[int]:
        """V3: kvm_mmu_reload. Returns 1 to go on, or a negative errno."""

    def run(self, vcpu: Vcpu) -> Steps[GuestExit | None]:
        """V10, V11: enter the guest and come back; None is EXIT_FASTPATH_EXIT_HANDLED: nothing to handle."""

    def await_entry(self, vcpu: Vcpu) -> Steps[None]:
        """After an EXIT_HANDLED: wait for what kept the vCPU out, instead of spinning through the loop."""

    def handle_exit(self, vcpu: Vcpu, guest_exit: GuestExit) -> Steps[int]:
        """V15: 1 to go on, 0 for an exit to userspace, or a negative errno."""

    def user_exit(self, vcpu: Vcpu, code: int) -> Steps[bool]:
        """What the VMM does with an exit to userspace; True to run again."""


class HardwareWalk(Protocol):
    """The CPU's page walker: reads the entries of whatever table is loaded for this address."""

    def walk(self, vcpu: Vcpu, gpa: Gpa, access: str) -> Steps[Translation | GuestExit | None]:
        """Translate, one read a level. A GuestExit is the violation; None is a #VE that the guest's handler resolved."""


class GuestSide(HardwareWalk, Protocol):
    """What a guest can do beyond touching memory."""

    def space(self, vcpu: Vcpu, gpa: Gpa) -> str:
        """The TLB tag of this address."""

    def key(self, gpa: Gpa) -> int:
        """The key that content at this address is written under; 0 is the host's."""

    def check_access(self, vcpu: Vcpu, gpa: Gpa, translation: Translation, access: str, version: int) -> None:
        """An observer's question in the step of an access to content: was this translation good? Makes findings."""

    def accept(self, vcpu: Vcpu, gpa: Gpa, level: PgLevel) -> Steps[AcceptStatus | GuestExit]:
        """TDG.MEM.PAGE.ACCEPT, or nothing at all for a guest that need not accept."""
