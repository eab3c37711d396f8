"""TDG.VP.VMCALL and TDG.VP.VEINFO.GET: guest calls that touch nothing shared, hence plain functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdx.module.exits import TdExit
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdvps

RESERVED_GPRS = 0b10011
DEFAULT_MASK = 0xFC00
"""R10 to R15, as the GHCI uses them."""


def tdg_vp_vmcall(
    module: TdxModule, *, vcpu: Tdvps, args: tuple[int, ...], mask: int = DEFAULT_MASK, rip: int | None = None
) -> TdExit | SeamcallReturn:
    """Leave to the host with some registers; trap-like. A wrong mask comes back as OPERAND_INVALID|RCX.

    Args:
        args: the registers that the mask selects, in the order of the GHCI: r10, r11, r12 ...
        rip: where the guest goes on; None, the default, tells the zero-step defence that it moved.
    Reference 12.3.
    """
    vcpu.hp_busy_since_ns = None
    module.kernel.count("tdcall.TDG.VP.VMCALL")
    if mask & RESERVED_GPRS or mask >> 32:
        module.kernel.charge("tdcall_null")
        return SeamcallReturn(Status.TDX_OPERAND_INVALID, Operand.RCX)
    return TdExit.vmcall(*args, mask=mask, rip=rip)


def tdg_vp_veinfo_get(module: TdxModule, *, vcpu: Tdvps) -> SeamcallReturn:
    """Fetch the information of the last #VE, so that another one may be delivered. Reference 11.1."""
    vcpu.hp_busy_since_ns = None
    module.kernel.charge("tdcall_null")
    if not vcpu.ve_info_valid:
        return SeamcallReturn(Status.TDX_NO_VALID_VE_INFO)
    vcpu.ve_info_valid = False
    return SUCCESS
