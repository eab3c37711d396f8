"""What the module does when the CPU finds no translation for a private access inside the guest.

Source: TDX module 1.5.01, td_exit's EPT-violation handler; reference 11.1, 11.2, 11.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.exits import ExtendedType, TdExit, VirtualizationException
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
        access: bits 2:0 of the exit qualification, see `exits.Access`.
        rip: where the guest stands, in the embedding's numbers; None if that is certainly not where it was entered.
    Yields: one read per level.
    """
    assert vcpu.tdr.pfn == td.tdr_pfn
    tdcs = vcpu.tdcs
    walk = yield from secure_ept_walk(module, tdcs, gfn_of(gpa), 1)
    pending = walk.entry.state.is_guest_acceptable
    if pending and not tdcs.pending_ve_disable:
        if vcpu.ve_info_valid:
            return VirtualizationException(gpa, int(access), double_fault=True)
        vcpu.ve_info_valid = True
        return VirtualizationException(gpa, int(access))
    extended = ExtendedType.PENDING_EPT_VIOLATION if pending else ExtendedType.NONE
    exit_to_host = TdExit.ept_violation(gpa, access, extended=extended, rip=rip)
    if module.zero_step and vcpu.log_epf(exit_to_host.gpa, rip):
        module.kernel.reached("zero_step_armed")
    return exit_to_host
