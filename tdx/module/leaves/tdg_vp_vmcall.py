"""TDG.VP.VMCALL and TDG.VP.VEINFO.GET: guest calls that touch nothing shared, hence plain functions.

By registers they are TDCALLs like any other, of one step each.
Source: TDX module 1.5.01, tdg_vp_vmcall.c, tdg_vp_veinfo_get.c; reference 12.3, 11.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.dispatch import Registers
from tdx.module.exits import ExitReason, TdcallResult, TdExit
from tdx.module.objects import NO_RBP_MOD
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status
from tdx.module.tdcall import begin_tdcall, guest_call

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdvps

RESERVED_GPRS = 0b10011
"""RAX, RCX and RSP are never handed over."""
RBP = 1 << 5
DEFAULT_MASK = 0xFC00
"""R10 to R15, as the GHCI uses them."""
GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
"""By their number, which is their bit in the mask."""
WRONG_MASK = SeamcallReturn(Status.TDX_OPERAND_INVALID, Operand.RCX)


def tdg_vp_vmcall(
    module: TdxModule, *, vcpu: Tdvps, args: tuple[int, ...], mask: int = DEFAULT_MASK, rip: int | None = None
) -> TdExit | SeamcallReturn:
    """Leave to the host with some registers; trap-like. A wrong mask comes back as OPERAND_INVALID|RCX.

    Args:
        args: the registers that the mask selects, in the order of the GHCI: r10, r11, r12 ...
        rip: where the guest goes on; None, the default, tells the zero-step defence that it moved.
    """
    module.kernel.count("tdcall.TDG.VP.VMCALL")
    if not begin_tdcall(vcpu, rip):
        return TdExit.td_is_dead(ExitReason.TDCALL, rip=rip)
    if not _is_mask(vcpu, mask):
        module.kernel.charge("tdcall_null")
        vcpu.hp_busy_since_ns = None
        return WRONG_MASK
    return TdExit.vmcall(*args, mask=mask, rip=rip)


def tdg_vp_veinfo_get(module: TdxModule, *, vcpu: Tdvps) -> SeamcallReturn:
    """Fetch the information of the last #VE, so that another one may be delivered; RCX, RDX and R8 to R10 are `VeInfo`."""
    vcpu.hp_busy_since_ns = None
    module.kernel.charge("tdcall_null")
    info = vcpu.ve_info
    if info is None:
        return SeamcallReturn(Status.TDX_NO_VALID_VE_INFO)
    vcpu.ve_info = None
    reason, qualification, gla, gpa, instruction = info
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=reason, rdx=qualification, r8=gla, r9=gpa, r10=instruction)


@guest_call("TDG.VP.VMCALL", leaf=0, rcx="mask")
def vmcall_by_registers(
    module: TdxModule, *, vcpu: Tdvps, mask: int, registers: Registers, rip: int | None = None
) -> Steps[TdcallResult]:
    """TDG.VP.VMCALL as the CPU sees it; `args` of the exit are the selected registers by number, those that there are.

    The host sees the mask in RCX. When it enters the vCPU again, the guest finds TDX_SUCCESS in RAX.
    """
    yield module.state.read_once()
    if not _is_mask(vcpu, mask):
        module.kernel.charge("tdcall_null")
        return TdcallResult(WRONG_MASK)
    args = (
        getattr(registers, name)
        for bit, name in enumerate(GPRS)
        if mask >> bit & 1 and name in Registers._fields
    )
    return TdcallResult(SUCCESS, TdExit.vmcall(*args, mask=mask, rip=rip))


@guest_call("TDG.VP.VEINFO.GET", leaf=3)
def veinfo_get_by_registers(
    module: TdxModule,
    *,
    vcpu: Tdvps,
    rip: int | None = None,  # noqa: ARG001 - the prologue's
) -> Steps[TdcallResult]:
    """TDG.VP.VEINFO.GET as the CPU sees it."""
    yield module.state.read_once()
    return TdcallResult(tdg_vp_veinfo_get(module, vcpu=vcpu))


def _is_mask(vcpu: Tdvps, mask: int) -> bool:
    reserved = RESERVED_GPRS | (RBP if vcpu.tdcs.config_flags & NO_RBP_MOD else 0)
    return not mask & reserved and not mask >> 32
