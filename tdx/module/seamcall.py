"""What every SEAMCALL has in common: dispatch, counting, logging, refusal, release, and the prologue of calls on a TD.

A leaf is a generator that takes what it needs through `held`, refuses by raising `Refused`, and changes things only after
its last check. The decorator makes that a SEAMCALL: it turns a refusal into registers, charges the leaf's time while its
locks are still held, and only then gives them back, with ordinary statements: a `yield` in a `finally` would run when a
world is torn down.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec

from sim import Steps
from tdx.module.events import SeamcallEntered, SeamcallReturned
from tdx.module.locks import Held
from tdx.module.objects import NOT_ASSOCIATED, TDCX_PAGES, Lifecycle, LogicalProcessor, Tdcs, Tdr, Tdvps
from tdx.module.operands import OperandCheck, encode
from tdx.module.pamt import PageType, PamtEntry
from tdx.module.sept_states import ALLOWED_OP_STATES
from tdx.module.status import Operand, Refused, SeamcallReturn, Status, require
from vcpu.addresses import PG_LEVEL_4K, Pfn

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

P = ParamSpec("P")

REFUSED_COST = "seamcall_null"


class Leaf(NamedTuple):
    """What is known of a leaf beside its steps: how a register-level call finds its operands (`dispatch`)."""

    name: str
    number: int
    inputs: dict[str, str]
    """Register to what it carries, in `dispatch.DECODE`'s words."""
    parameters: frozenset[str]
    """Operands by name, those included that no register carries (`lp`, `guest`)."""
    call: Callable[..., Steps[SeamcallReturn]]
    """The call with operands as they come: a level may be a number that is none, an address unaligned."""


LEAVES: dict[str, Leaf] = {}
"""The host's calls that are modelled, by name."""
BY_NUMBER: dict[int, Leaf] = {}
"""And by leaf number."""


def seamcall(
    name: str,
    *,
    leaf: int,
    cost: str = "seamcall_null",
    timed: bool = True,
    **inputs: str,
) -> Callable[
    [Callable[Concatenate[TdxModule, Held, P], Steps[SeamcallReturn]]],
    Callable[Concatenate[TdxModule, P], Steps[SeamcallReturn]],
]:
    """Make a leaf of a generator.

    The public call takes operands that make sense and raises TypeError or ValueError at once for an operand that the leaf does not
    have, a level that is none, an unaligned or negative address, or a page that is none; what the module answers to such operands is to be had from
    `LEAVES[name].call` and, register by register, from `dispatch`.

    Args:
        cost: what it takes when it is not refused; "" if the leaf charges for itself.
        timed: whether its latency is kept; not for the call that a guest runs in.
        inputs: which operand each register carries, as `rcx="page_info"`: see `dispatch.DECODE`.
    """
    counted = f"seamcall.{name}"

    def decorate(
        body: Callable[Concatenate[TdxModule, Held, P], Steps[SeamcallReturn]],
    ) -> Callable[Concatenate[TdxModule, P], Steps[SeamcallReturn]]:
        check = OperandCheck(name, body, "module", "held")

        def as_it_comes(module: TdxModule, /, *args: P.args, **operands: P.kwargs) -> Steps[SeamcallReturn]:
            kernel = module.kernel
            started_ns = kernel.now_ns
            kernel.count(counted)
            if kernel.events is not None:
                registers = (encode(inputs.get(register, ""), operands) for register in ("rcx", "rdx", "r8"))
                kernel.emit(SeamcallEntered(name, *registers))
            refusal = module.refusal(name)
            if refusal is not None:
                result = refusal
                yield module.state.read_once()  # so that a host which retries at once does not spin without a step
                kernel.charge(REFUSED_COST)
            else:
                held = Held(module, cost)
                module.in_flight += 1
                try:
                    result = yield from body(module, held, *args, **operands)
                except Refused as refused:
                    result = refused.returned()
                    held.cost = REFUSED_COST
                if held.cost:
                    kernel.charge(held.cost)
                yield from held.release()
                module.in_flight -= 1
            if result.status is not Status.TDX_SUCCESS:
                kernel.count(f"{counted}.{result.status.name}")
            if timed:
                kernel.record(counted, kernel.now_ns - started_ns)
            if kernel.events is not None:
                kernel.emit(SeamcallReturned(name, str(result), result.rcx, result.rdx))
            return result

        @wraps(body)
        def call(module: TdxModule, /, *args: P.args, **operands: P.kwargs) -> Steps[SeamcallReturn]:
            check(operands)
            return as_it_comes(module, *args, **operands)

        LEAVES[name] = BY_NUMBER[leaf] = Leaf(name, leaf, inputs, check.names, as_it_comes)
        return call

    return decorate


def lock_tdr(held: Held, td: Td, operand: Operand, *, exclusive: bool) -> Steps[Tdr]:
    """Steps 1 and 2 of the common prologue: the TDR page."""
    entry = yield from held.page(td.tdr_pfn, PG_LEVEL_4K, PageType.PT_TDR, operand, exclusive=exclusive)
    tdr: Tdr = entry.holds
    return tdr


def lock_td(
    held: Held,
    td: Td,
    leaf: str,
    operand: Operand,
    *,
    exclusive: bool = False,
    op_state_exclusive: bool = False,
) -> Steps[tuple[Tdr, Tdcs]]:
    """Steps 2 to 7 of the common prologue (reference section 5): TDR, its state, OP_STATE."""
    tdr = yield from lock_tdr(held, td, operand, exclusive=exclusive)
    tdcs = yield from check_td(held, tdr, leaf, exclusive=exclusive, op_state_exclusive=op_state_exclusive)
    return tdr, tdcs


def check_td(
    held: Held, tdr: Tdr, leaf: str, *, exclusive: bool = False, op_state_exclusive: bool = False
) -> Steps[Tdcs]:
    """Steps 3 to 7 of the common prologue, for a TDR that is locked: `exclusive` covers OP_STATE, which is then not locked."""
    require(not tdr.fatal, Status.TDX_TD_FATAL)
    require(tdr.lifecycle is Lifecycle.KEYS_CONFIGURED, Status.TDX_TD_KEYS_NOT_CONFIGURED)
    require(len(tdr.tdcx) >= TDCX_PAGES, Status.TDX_TDCS_NOT_ALLOCATED)
    tdcs = tdr.tdcs
    if op_state_exclusive:
        yield from held.exclusive(tdcs.op_state_lock, Operand.OP_STATE)
    elif not exclusive:
        yield from held.shared(tdcs.op_state_lock, Operand.OP_STATE)
    require(tdcs.op_state in ALLOWED_OP_STATES[leaf], Status.TDX_OP_STATE_INCORRECT)
    return tdcs


def lock_vcpu(held: Held, tdvpr_pfn: Pfn, operand: Operand, *, exclusive: bool) -> Steps[Tdvps]:
    """The prologue of vCPU calls: the TDVPR page, then the PAMT leaf of its TDR shared."""
    entry = yield from held.page(tdvpr_pfn, PG_LEVEL_4K, PageType.PT_TDVPR, operand, exclusive=exclusive)
    vcpu: Tdvps = entry.holds
    tdr_page = held.module.pamt.entry(vcpu.tdr.pfn, PG_LEVEL_4K)
    yield from held.implicit_page(tdr_page, Operand.TDR, exclusive=False)
    return vcpu


def associate(vcpu: Tdvps, lp: LogicalProcessor) -> Steps[bool]:
    """Bind the vCPU to this LP; it stays bound whatever happens next. Returns whether it was not bound before."""
    seen: int = yield vcpu.assoc_lpid.cmpxchg(NOT_ASSOCIATED, lp.lpid)
    if seen == NOT_ASSOCIATED:
        yield vcpu.tdcs.num_assoc_vcpus.fetch_add(1)
        return True
    require(seen == lp.lpid, Status.TDX_VCPU_ASSOCIATED)
    return False


def lock_new_page(held: Held, pfn: Pfn, operand: Operand) -> Steps[PamtEntry]:
    """A 4K page operand that must be nobody's."""
    return (yield from held.page(pfn, PG_LEVEL_4K, PageType.PT_NDA, operand, exclusive=True))
