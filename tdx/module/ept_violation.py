"""What the module does when the CPU finds no translation for a private access inside the guest.

Not modelled: an access above the shared bit of a narrow guest (a #PF inside), and NMI blocking by an IRET that faulted. A shared
address is the host's own EPT: its #VE or exit never comes here.
Source: TDX module 1.5.01, td_ept_violation.c, td_other_exits.c:tdx_inject_ve; reference 11.1, 11.2, 11.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.exits import ExitReason, ExtendedType, TdExit, VeInfo, VirtualizationException
from tdx.module.walk import secure_ept_walk
from vcpu.addresses import Gpa, gfn_of

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdvps
    from tdx.module.operands import Td


def private_ept_violation(
    module: TdxModule, td: Td, vcpu: Tdvps, gpa: Gpa, access: int, rip: int | None
) -> Steps[TdExit | VirtualizationException]:
    """Decide between a #VE in the guest and an exit to the host; the exit counts for the zero-step defence.

    The walk is unlocked: the entry may have changed since the CPU looked, and then the outcome is a plain exit.
    Args:
        access: the exit qualification: bits 2:0 see `exits.Access`. The guest's #VE sees all of it, the host not bits 12:7.
        rip: where the guest stands, in the embedding's numbers; None if that is certainly not where it was entered.
    Yields: one read per level.
    """
    assert vcpu.tdr.pfn == td.tdr_pfn
    tdcs = vcpu.tdcs
    if vcpu.tdr.fatal:
        yield module.state.read_once()
        return TdExit.td_is_dead(ExitReason.EPT_VIOLATION, int(access), rip)
    violation = VeInfo(ExitReason.EPT_VIOLATION, int(access), 0, gpa)
    walk = yield from secure_ept_walk(module, tdcs, gfn_of(gpa), 1)
    pending = walk.entry.state.is_guest_acceptable
    convertible = pending and not tdcs.pending_ve_disable
    by_cpu = module.profile.pending_ve_by_cpu
    if convertible and by_cpu and vcpu.ve_info is None:
        return inject_ve(vcpu, violation)  # no VM exit: the module does not learn of it
    vcpu.progressed(rip)
    vcpu.last_violation = violation
    if convertible and not by_cpu:
        return inject_ve(vcpu, violation)
    extended = ExtendedType.PENDING_EPT_VIOLATION if pending and not by_cpu else ExtendedType.NONE
    if module.zero_step and vcpu.log_epf(gpa):
        module.kernel.reached("zero_step_armed")
    return TdExit.ept_violation(gpa, access, extended=extended, rip=rip)


def inject_ve(vcpu: Tdvps, violation: VeInfo) -> VirtualizationException:
    """What the guest gets: #VE, or #DF while it has not fetched what the #VE before was about (reference 14, row 9)."""
    taken = vcpu.ve_info is not None
    if not taken:
        vcpu.ve_info = violation
    return VirtualizationException(violation.gpa, violation.qualification, double_fault=taken)
