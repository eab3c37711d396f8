"""The defences against a host that single-steps or zero-steps the guest.

Zero-step: a host that never resolves a private EPT violation lets the guest begin one instruction again and again. Six
violations at one instruction are free; from the seventh on their addresses are listed, and TDH.VP.ENTER does not run the
guest while one of them would fault again. The list is the vCPU's (`Tdvps.log_epf`).

Single-step: an interrupt that takes the guest out right after it was entered is held back while the guest executes 1 to 32
instructions more. Whoever models a guest by instructions asks `interrupt_exit` before it lets an interrupt-type exit out,
and again after every instruction while `lp.single_step.stepping`. Not modelled: TPR and the self-IPI (the interrupt simply
stays pending), MOV-SS blocking, code breakpoints, and NMI or INIT being pushed back to the APIC when another exit ends
the mode.
Source: TDX module 1.5.01, td_exit_stepping.c; reference 11.3, 11.4.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.exits import ExitReason, TdExit
from tdx.module.septe import RWX
from tdx.module.status import Status
from tdx.module.walk import secure_ept_walk
from vcpu.addresses import Gpa, gfn_of

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import LogicalProcessor, SingleStep, Tdcs, Tdvps

STEPPING_BYTES = 32
"""Two instructions of greatest length: whoever came further was not stepped."""
STEPPING_TSC_THRESHOLD = 4096
STEPS_MAX = 32

INTERRUPT_TYPE = frozenset(
    (
        ExitReason.EXTERNAL_INTERRUPT,
        ExitReason.EXCEPTION_NMI,
        ExitReason.OTHER_SMI,
        ExitReason.INIT,
        ExitReason.MTF,
    )
)
"""Exits that a host can cause at any instruction, and MTF, by which the module steps itself."""


def would_still_fault(module: TdxModule, tdcs: Tdcs, gpa: Gpa) -> Steps[bool]:
    """Whether a private access of every kind to `gpa` would still be an EPT violation that leaves the guest.

    A PENDING page counts (reference 14, row 16), but not if it brings a #VE and the release knows that.
    Yields: one read per level. Source: td_exit_stepping.c:is_epf_expected, of 1.5.01 and 1.5.20.
    """
    walk = yield from secure_ept_walk(module, tdcs, gfn_of(gpa), 1)
    if walk.entry.is_leaf and walk.entry.rwx == RWX:
        return False
    brings_ve = walk.entry.state.is_guest_acceptable and not tdcs.pending_ve_disable
    return module.profile.zero_step_pending_faults or not brings_ve


def first_fault_to_come(module: TdxModule, vcpu: Tdvps) -> Steps[Gpa | None]:
    """The first suspect of the zero-step list that would still fault, or None. The caller holds the tree exclusive."""
    for gpa in tuple(vcpu.last_epf_gpa_list):
        if (yield from would_still_fault(module, vcpu.tdcs, gpa)):
            return gpa
    return None


def interrupt_exit(module: TdxModule, vcpu: Tdvps, lp: LogicalProcessor, left: TdExit) -> TdExit | None:
    """An exit that an interrupt causes, before it reaches the host.

    Args:
        left: what the host would see; `rip` in bytes.
    Returns: the exit that leaves, or None: the module resumes the guest. While `lp.single_step.stepping` it executes one
        instruction, and an MTF exit follows; otherwise the mode is over, and the interrupt, which is pending still, leaves
        before another instruction.
    Raises: ValueError: the exit is of another type.
    Source: td_exit_stepping.c:vmexit_stepping_filter.
    """
    if left.reason not in INTERRUPT_TYPE:
        raise ValueError(f"{left.reason.name} is no exit by an interrupt")
    guard = lp.single_step
    if not guard.stepping:
        if not _too_soon(module, vcpu, lp, left.rip):
            return left
        if not lp.apic_enabled:
            return replace(left, status=Status.TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE)
        guard.stepping = True
        guard.left = 1 + module.kernel.stream(f"lp{lp.lpid}.single_step").below(STEPS_MAX)
        module.kernel.reached("single_step_suspected")
    if guard.left:
        guard.left -= 1
        return None
    end_stepping(guard)
    if left.reason is ExitReason.MTF:
        guard.entered_ns = None
        return None
    return left


def end_stepping(guard: SingleStep) -> None:
    """Any exit that reaches the host ends the mode."""
    guard.stepping = False
    guard.left = 0


def _too_soon(module: TdxModule, vcpu: Tdvps, lp: LogicalProcessor, rip: int | None) -> bool:
    """Whether the guest has hardly run since it was entered: in bytes of code, and in cycles."""
    entered_ns = lp.single_step.entered_ns
    if entered_ns is None or rip is None or vcpu.entry_rip is None:
        return False
    if abs(rip - vcpu.entry_rip) > STEPPING_BYTES:
        return False
    return (module.kernel.now_ns - entered_ns) * lp.tsc_mhz <= STEPPING_TSC_THRESHOLD * 1000
