"""TDG.MEM.PAGE.ACCEPT: the guest takes a pending page, which is zeroed on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim import Steps
from sim.access import Update
from tdx.module.exits import AcceptResult, Access, TdExit, accept_qualification
from tdx.module.interrupts import InterruptTest
from tdx.module.locks import unlocks
from tdx.module.sept_states import next_state
from tdx.module.septe import TDEL, TDHP, Septe, SeptState
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status
from tdx.module.walk import Walk, secure_ept_walk
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, Gpa, Pfn, PgLevel, gfn_of

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdvps
    from tdx.module.operands import Td

LEAF = "TDG.MEM.PAGE.ACCEPT"


def tdg_mem_page_accept(
    module: TdxModule,
    *,
    td: Td,
    vcpu: Tdvps,
    gpa: Gpa,
    level: PgLevel,
    interrupt_pending: Callable[[], bool],
    rip: int | None = None,
) -> Steps[AcceptResult]:
    """S-EPT PENDING -> MAPPED, 4K or 2M. Takes only the entry's lock, and yields to host priority.

    Yields: one read per level; the lock; for 2M one interrupt test per `module.accept_step_pages`; the commit; the unlock.
    Returns: see AcceptResult. PAGE_ALREADY_ACCEPTED and PAGE_SIZE_MISMATCH carry the level reached.
    Cost: `tdg_mem_page_accept_4k`, `_2m`, `_mismatch`, `tdg_accept_faulting_attempt`, else `tdcall_null`. Reference 12.1.
    """
    assert vcpu.tdr.pfn == td.tdr_pfn
    kernel = module.kernel
    started_ns = kernel.now_ns
    kernel.count(f"tdcall.{LEAF}")
    module.in_flight += 1
    result = yield from _accept(module, vcpu, gpa, level, interrupt_pending, rip)
    module.in_flight -= 1
    result = _host_priority_clock(module, vcpu, result, rip)
    if result.exit is not None:
        kernel.count(f"tdcall.{LEAF}.TDEXIT")
    elif result.interrupted:
        kernel.count(f"tdcall.{LEAF}.INTERRUPTED")
    elif result.ret is not None and not result.ret.ok:
        kernel.count(f"tdcall.{LEAF}.{result.ret.status.name}")
    kernel.record(f"tdcall.{LEAF}", kernel.now_ns - started_ns)
    return result


def _accept(
    module: TdxModule,
    vcpu: Tdvps,
    gpa: Gpa,
    level: PgLevel,
    interrupt_pending: Callable[[], bool],
    rip: int | None,
) -> Steps[AcceptResult]:
    kernel = module.kernel
    tdcs = vcpu.tdcs
    if not (
        PG_LEVEL_4K <= level <= PG_LEVEL_2M and not gpa & (level.size - 1) and 0 <= gpa < tdcs.private_end
    ):
        kernel.charge("tdcall_null")
        yield module.state.read_once()  # a call always is a step
        return _returned(Status.TDX_OPERAND_INVALID, Operand.RCX)
    walk = yield from secure_ept_walk(module, tdcs, gfn_of(gpa), level)
    if walk.level != level:
        if walk.entry.state.is_guest_accessible_leaf:
            kernel.charge("tdcall_null")
            return _returned(Status.TDX_PAGE_ALREADY_ACCEPTED, walk.level.tdx)
        kernel.charge("tdg_accept_faulting_attempt")
        return _violation(walk, gpa, level, rip)
    septe = walk.septe
    word: int = yield Update(septe, _guest_locks, "guest locks entry")
    if word & TDEL:
        kernel.charge("tdcall_null")
        kernel.reached("sept_entry_busy")
        return _returned(Status.TDX_OPERAND_BUSY, Operand.RCX)
    if word & TDHP:
        kernel.charge("tdcall_null")
        kernel.reached("host_priority_won")
        yield Update(septe, unlocks, "unlock entry")
        return _returned(Status.TDX_OPERAND_BUSY_HOST_PRIORITY, Operand.RCX)
    seen_as_leaf = walk.entry.is_leaf
    walk.entry = entry = Septe(word)
    if not module.profile.accept_samples_leaf_before_lock:
        seen_as_leaf = entry.is_leaf
    after = next_state(LEAF, entry.state)
    refusal = _refusal(walk, gpa, level, rip, seen_as_leaf=seen_as_leaf, acceptable=after is not None)
    if refusal is not None:
        kernel.charge(_cost_of(refusal))
        yield Update(septe, unlocks, "unlock entry")
        return refusal
    assert after is not None
    # All checks passed.
    pfn = entry.pfn_at(level)
    if level == PG_LEVEL_4K:
        module.on_page_zeroed(pfn, 1)
        kernel.charge("tdg_mem_page_accept_4k")
    else:
        done = yield from _zero_2m(module, pfn, entry.accept_counter_at(level), interrupt_pending)
        if done < level.pages:
            yield module.write_entry(septe, entry.with_accept_counter(done))
            yield Update(septe, unlocks, "unlock entry")
            return AcceptResult(interrupted=True)
    yield module.write_entry(septe, entry.become(after, level))
    yield Update(septe, unlocks, "unlock entry")
    return AcceptResult(SUCCESS)


def _guest_locks(word: int) -> int:
    """A guest's attempt. It takes the lock before it looks at host priority (reference 14, row 3)."""
    return word | TDEL


def _refusal(
    walk: Walk, gpa: Gpa, level: PgLevel, rip: int | None, *, seen_as_leaf: bool, acceptable: bool
) -> AcceptResult | None:
    """Steps 5 and 6: why the locked entry cannot be accepted, if so."""
    state = walk.entry.state
    if state is not SeptState.FREE and not seen_as_leaf:
        return _returned(Status.TDX_PAGE_SIZE_MISMATCH, walk.level.tdx)
    if state.is_guest_accessible_leaf:
        return _returned(Status.TDX_PAGE_ALREADY_ACCEPTED, walk.level.tdx)
    return None if acceptable else _violation(walk, gpa, level, rip)


def _zero_2m(module: TdxModule, pfn: Pfn, done: int, interrupt_pending: Callable[[], bool]) -> Steps[int]:
    """Zero a 2M page from 4K page `done` on; returns how far it came before an interrupt."""
    kernel = module.kernel
    if done:
        kernel.reached("accept_resumed")
    total_ns = kernel.costs.draw("tdg_mem_page_accept_2m") if kernel.costs is not None else 0
    pages = PG_LEVEL_2M.pages
    while True:
        step = min(module.accept_step_pages, pages - done)
        module.on_page_zeroed(Pfn(pfn + done), step)
        kernel.spend(total_ns * (done + step) // pages - total_ns * done // pages)
        done += step
        if done == pages or (yield InterruptTest(interrupt_pending)):
            return done


def _host_priority_clock(
    module: TdxModule, vcpu: Tdvps, result: AcceptResult, rip: int | None
) -> AcceptResult:
    """What the TDCALL dispatcher makes of host priority: plain busy, and an exit once it lasts too long (4.2)."""
    if result.ret is None or result.ret.status is not Status.TDX_OPERAND_BUSY_HOST_PRIORITY:
        vcpu.hp_busy_since_ns = None
        return result
    busy = SeamcallReturn(Status.TDX_OPERAND_BUSY, result.ret.operand)
    now_ns = module.kernel.now_ns
    since_ns = vcpu.hp_busy_since_ns
    if since_ns is None:
        vcpu.hp_busy_since_ns = now_ns
    elif now_ns - since_ns >= vcpu.tdcs.hp_lock_timeout_ns:
        return AcceptResult(busy, TdExit.host_priority_timeout(rip))
    return AcceptResult(busy)


def _returned(status: Status, operand: int) -> AcceptResult:
    return AcceptResult(SeamcallReturn(status, operand))


def _violation(walk: Walk, gpa: Gpa, level: PgLevel, rip: int | None) -> AcceptResult:
    access = Access.WRITE | walk.entry.rwx << 3
    return AcceptResult(
        exit=TdExit.ept_violation(gpa, access, extended=accept_qualification(walk, level), rip=rip)
    )


def _cost_of(refusal: AcceptResult) -> str:
    if refusal.exit is not None:
        return "tdg_accept_faulting_attempt"
    return (
        "tdg_mem_page_accept_mismatch" if refusal.status is Status.TDX_PAGE_SIZE_MISMATCH else "tdcall_null"
    )
