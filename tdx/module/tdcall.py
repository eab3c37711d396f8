"""TDCALL: what every guest call has in common, and the call by registers.

A TDCALL is a VM exit. The module first asks whether the TD is dead and whether the guest has moved on (zero-step defence); then
the leaf runs; and if the leaf lost to host priority the guest is told it was plain busy, until that has lasted too long
(reference 4.2). A leaf that leaves to the host never comes back to the dispatcher: it neither starts nor stops that clock.

`guest_call` makes a leaf of a generator; leaves register themselves when they are imported, as the host's do.
Source: TDX module 1.5.01, tdx_td_dispatcher.c:td_call, tdx_td_l1_l2_dispatcher_common_prologue; reference 0, 4.2, 12.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, cast

from sim import Steps
from tdx.module.dispatch import LEAF_BITS, Registers
from tdx.module.exits import ExitReason, TdcallResult, TdExit
from tdx.module.operands import OperandCheck, Td, decode
from tdx.module.status import Operand, SeamcallReturn, Status

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdvps

P = ParamSpec("P")


class GuestLeaf(NamedTuple):
    """What is known of a guest's leaf beside its steps."""

    name: str
    number: int
    inputs: dict[str, str]
    """Register to what it carries, in `operands.DECODE`'s words."""
    parameters: frozenset[str]
    """Operands by name."""
    call: Callable[..., Steps[TdcallResult]]


TDCALLS: dict[str, GuestLeaf] = {}
"""The guest's calls that are modelled, by name."""
BY_NUMBER: dict[int, GuestLeaf] = {}
"""And by leaf number."""


def guest_call(
    name: str, *, leaf: int, **inputs: str
) -> Callable[
    [Callable[Concatenate[TdxModule, P], Steps[TdcallResult]]],
    Callable[Concatenate[TdxModule, P], Steps[TdcallResult]],
]:
    """Make a TDCALL leaf of a generator with a parameter `vcpu` and, for the zero-step defence, `rip`.

    Args:
        inputs: which operand each register carries, as `rcx="page_info"`: see `operands.DECODE`.
    """
    counted = f"tdcall.{name}"

    def decorate(
        body: Callable[Concatenate[TdxModule, P], Steps[TdcallResult]],
    ) -> Callable[Concatenate[TdxModule, P], Steps[TdcallResult]]:
        check = OperandCheck(name, body, "module")

        def as_it_comes(module: TdxModule, /, *args: P.args, **operands: P.kwargs) -> Steps[TdcallResult]:
            vcpu = cast("Tdvps", operands["vcpu"])
            rip = cast("int | None", operands.get("rip"))
            kernel = module.kernel
            started_ns = kernel.now_ns
            kernel.count(counted)
            if begin_tdcall(vcpu, rip):
                module.in_flight += 1
                result = yield from body(module, *args, **operands)
                module.in_flight -= 1
                result = host_priority_clock(module, vcpu, result, rip)
            else:
                yield module.state.read_once()
                result = TdcallResult(exit=TdExit.td_is_dead(ExitReason.TDCALL, rip=rip))
            outcome = _outcome(result)
            if outcome:
                kernel.count(f"{counted}.{outcome}")
            kernel.record(counted, kernel.now_ns - started_ns)
            return result

        @wraps(body)
        def call(module: TdxModule, /, *args: P.args, **operands: P.kwargs) -> Steps[TdcallResult]:
            check(operands)
            return as_it_comes(module, *args, **operands)

        TDCALLS[name] = BY_NUMBER[leaf] = GuestLeaf(name, leaf, inputs, check.names, as_it_comes)
        return call

    return decorate


def begin_tdcall(vcpu: Tdvps, rip: int | None) -> bool:
    """The part before the leaf; returns whether the TD is alive."""
    if vcpu.tdr.fatal:
        return False
    vcpu.progressed(rip)
    vcpu.last_violation = None
    return True


def host_priority_clock(
    module: TdxModule, vcpu: Tdvps, result: TdcallResult, rip: int | None
) -> TdcallResult:
    """What the dispatcher makes of host priority: plain busy, and an exit once it lasts too long.

    The first loss sets the clock; any return that is no loss to host priority clears it.
    """
    if result.exit is not None:
        return result
    if result.status is not Status.TDX_OPERAND_BUSY_HOST_PRIORITY:
        vcpu.hp_busy_since_ns = None
        return result
    assert result.ret is not None
    busy = SeamcallReturn(Status.TDX_OPERAND_BUSY, result.ret.operand)
    now_ns = module.kernel.now_ns
    since_ns = vcpu.hp_busy_since_ns
    if since_ns is None:
        vcpu.hp_busy_since_ns = now_ns
    elif now_ns - since_ns >= vcpu.tdcs.hp_lock_timeout_ns:
        vcpu.hp_busy_since_ns = None
        vcpu.guest_rax = busy.rax
        return TdcallResult(busy, TdExit.host_priority_timeout(rip))
    return TdcallResult(busy)


def _outcome(result: TdcallResult) -> str:
    if result.exit is not None:
        return "TDEXIT"
    if result.interrupted:
        return "INTERRUPTED"
    return "" if result.ret is None or result.ret.ok else result.ret.status.name


def _never() -> bool:
    return False


def tdcall(
    module: TdxModule,
    vcpu: Tdvps,
    registers: Registers,
    *,
    interrupt_pending: Callable[[], bool] = _never,
    rip: int | None = None,
) -> Steps[TdcallResult]:
    """Any TDCALL of a vCPU that is inside. Yields: the leaf's steps, one for a call that no leaf takes.

    Args:
        interrupt_pending: what long calls test, see `LogicalProcessor`; a guest's RFLAGS.IF does not count.
        rip: where the TDCALL stands, in the embedding's numbers; None if that is certainly not where the guest was entered.
    """
    leaf = BY_NUMBER.get(registers.rax & LEAF_BITS)
    if leaf is None or registers.rax > LEAF_BITS:  # no modelled leaf has another version than 0
        return (yield from _no_such_call(module, vcpu=vcpu, rip=rip))
    operands: dict[str, Any] = {
        "interrupt_pending": interrupt_pending,
        "td": Td(vcpu.tdr.pfn),
        "registers": registers,
    }
    operands = {name: value for name, value in operands.items() if name in leaf.parameters}
    for register, carries in leaf.inputs.items():
        operands.update(decode(carries, getattr(registers, register)))
    return (yield from leaf.call(module, vcpu=vcpu, rip=rip, **operands))


def _no_such_call(module: TdxModule, *, vcpu: Tdvps, rip: int | None) -> Steps[TdcallResult]:
    module.kernel.charge("tdcall_null")
    yield module.state.read_once()
    if not begin_tdcall(vcpu, rip):
        return TdcallResult(exit=TdExit.td_is_dead(ExitReason.TDCALL, rip=rip))
    vcpu.hp_busy_since_ns = None
    return TdcallResult(SeamcallReturn(Status.TDX_OPERAND_INVALID, Operand.RAX))
