"""SEAMCALL as the CPU sees it: registers in, registers out.

For who wants the module's answer to any word that can stand in a register: reserved bits, unknown leaves, versions, misaligned
addresses. Everybody else calls the leaves with typed operands.
Source: TDX module 1.5.01, tdx_vmm_dispatcher.c; reference 0 and 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sim import Steps
from tdx.module.operands import decode
from tdx.module.seamcall import BY_NUMBER
from tdx.module.status import Operand, SeamcallReturn, Status

if TYPE_CHECKING:
    from tdx.module.module import TdxModule

LEAF_BITS = 0xFFFF
VERSION_SHIFT = 16
VERSION_BITS = 0xFF
LATEST_VERSION = 1


class Registers(NamedTuple):
    """Input registers. RAX: leaf number in 15:0, version in 23:16, the rest reserved."""

    rax: int
    rcx: int = 0
    rdx: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0


def dispatch(module: TdxModule, registers: Registers, **context: Any) -> Steps[SeamcallReturn]:
    """Any SEAMCALL. Yields: one read of the module's state, then the leaf's steps.

    Args:
        context: what no register carries, for the leaves that want it: `lp`, the logical processor that calls; `guest`, what
            runs inside TDH.VP.ENTER; others as their leaf names them.
    """
    state = yield module.state.read_once()
    if state != "READY":
        shut = state == "SHUTDOWN"
        return SeamcallReturn(Status.TDX_SYS_SHUTDOWN if shut else Status.TDX_SYS_NOT_READY)
    leaf = BY_NUMBER.get(registers.rax & LEAF_BITS)
    version = registers.rax >> VERSION_SHIFT
    if leaf is None or version > (LATEST_VERSION if "version" in leaf.parameters else 0):
        return SeamcallReturn(Status.TDX_OPERAND_INVALID, Operand.RAX)
    operands: dict[str, Any] = {}
    for register, carries in leaf.inputs.items():
        operands.update(decode(carries, getattr(registers, register)))
    if "version" in leaf.parameters:
        operands["version"] = version
    operands.update((name, value) for name, value in context.items() if name in leaf.parameters)
    return (yield from leaf.call(module, **operands))
