"""TDG.MEM.PAGE.ACCEPT: the guest takes a pending page, which is zeroed on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.exits import ExtendedType, TdcallResult, sept_violation
from tdx.module.guest_lock import guest_commit_entry, guest_lock_entry, guest_unlock_entry
from tdx.module.interrupts import InterruptTest
from tdx.module.l2 import unblock_aliases
from tdx.module.sept_states import next_state
from tdx.module.septe import ACCEPT_COUNTER, TDEL, Septe, SeptState
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status
from tdx.module.tdcall import guest_call
from tdx.module.walk import Walk, secure_ept_walk
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, Gpa, Pfn, PgLevel, gfn_of

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdvps
    from tdx.module.operands import Td

LEAF = "TDG.MEM.PAGE.ACCEPT"


@guest_call(LEAF, leaf=6, rcx="page_info")
def tdg_mem_page_accept(
    module: TdxModule,
    *,
    td: Td,
    vcpu: Tdvps,
    gpa: Gpa,
    level: PgLevel,
    interrupt_pending: Callable[[], bool],
    rip: int | None = None,
) -> Steps[TdcallResult]:
    """S-EPT PENDING -> MAPPED, PENDING_EXPORTED_DIRTY -> EXPORTED_DIRTY, 4K or 2M. Takes only the entry's lock.

    A 2M page is zeroed in 512 parts; an interrupt between two of them ends the call, the counter of parts done goes into the
    entry, and whoever accepts next continues there.
    Yields: one read per level; the lock and the look at host priority; the word again; for 2M one interrupt test per
        `module.accept_step_pages`; the unblocking of the aliases in L2 trees; the write of the whole word; the release.
    Returns: see TdcallResult. PAGE_ALREADY_ACCEPTED and PAGE_SIZE_MISMATCH carry the level reached.
    Cost: `tdg_mem_page_accept_4k`, `_2m`, `_mismatch`, `tdg_accept_faulting_attempt`, else `tdcall_null`. Source:
        tdg_mem_page_accept.c; reference 12.1.
    """
    assert vcpu.tdr.pfn == td.tdr_pfn
    kernel = module.kernel
    if not (
        PG_LEVEL_4K <= level <= PG_LEVEL_2M
        and not gpa & (level.size - 1)
        and 0 <= gpa < vcpu.tdcs.private_end
    ):
        kernel.charge("tdcall_null")
        yield module.state.read_once()  # a call always is a step
        return _returned(Status.TDX_OPERAND_INVALID, Operand.RCX)
    walk = yield from secure_ept_walk(module, vcpu.tdcs, gfn_of(gpa), level)
    if walk.level != level:
        if walk.entry.state.is_guest_accessible_leaf:
            kernel.charge("tdcall_null")
            return _returned(Status.TDX_PAGE_ALREADY_ACCEPTED, walk.level.tdx)
        kernel.charge("tdg_accept_faulting_attempt")
        return TdcallResult(exit=sept_violation(ExtendedType.ACCEPT, walk, gpa, level, rip=rip))
    septe = walk.septe
    lost = yield from guest_lock_entry(module, septe)
    if lost is not None:
        kernel.charge("tdcall_null")
        return TdcallResult(lost)
    seen_as_leaf = walk.entry.is_leaf
    word: int = yield septe.read_once()
    walk.entry = entry = Septe(word & ~TDEL)
    if not module.profile.accept_samples_leaf_before_lock:
        seen_as_leaf = entry.is_leaf
    refusal = _refusal(module, walk, gpa, level, rip, seen_as_leaf=seen_as_leaf)
    if refusal is not None:
        kernel.charge(_cost_of(refusal))
        yield guest_unlock_entry(module, septe)
        return refusal
    # All checks passed.
    after = next_state(LEAF, entry.state)
    assert after is not None
    pfn = entry.pfn_at(level)
    done = level.pages
    if level == PG_LEVEL_4K:
        _zero(module, pfn, 1)
        kernel.charge("tdg_mem_page_accept_4k")
    else:
        done = yield from _zero_2m(module, pfn, entry.accept_counter_at(level), interrupt_pending)
    interrupted = done < level.pages
    if interrupted:
        entry = Septe(entry & ~ACCEPT_COUNTER | done << 12)
    else:
        yield from unblock_aliases(module, vcpu.tdcs, entry, gfn_of(gpa), level)
        entry = entry.become(after, level)
    yield from guest_commit_entry(module, septe, entry)
    return TdcallResult(interrupted=True) if interrupted else TdcallResult(SUCCESS)


def _refusal(
    module: TdxModule, walk: Walk, gpa: Gpa, level: PgLevel, rip: int | None, *, seen_as_leaf: bool
) -> TdcallResult | None:
    """Steps 5 and 6: why the locked entry cannot be accepted, if so."""
    state = walk.entry.state
    free = state is SeptState.FREE or (state is SeptState.REMOVED and module.profile.accept_removed_is_free)
    if not free and not seen_as_leaf:
        return _returned(Status.TDX_PAGE_SIZE_MISMATCH, walk.level.tdx)
    if state.is_guest_accessible_leaf:
        return _returned(Status.TDX_PAGE_ALREADY_ACCEPTED, walk.level.tdx)
    if next_state(LEAF, state) is None:
        return TdcallResult(exit=sept_violation(ExtendedType.ACCEPT, walk, gpa, level, rip=rip))
    return None


def _zero(module: TdxModule, pfn: Pfn, pages: int) -> None:
    module.memory.zero(pfn, pages)
    module.on_page_zeroed(pfn, pages)


def _zero_2m(module: TdxModule, pfn: Pfn, done: int, interrupt_pending: Callable[[], bool]) -> Steps[int]:
    """Zero a 2M page from 4K page `done` on; returns how far it came before an interrupt."""
    kernel = module.kernel
    if done:
        kernel.reached("accept_resumed")
    total_ns = kernel.costs.draw("tdg_mem_page_accept_2m") if kernel.costs is not None else 0
    pages = PG_LEVEL_2M.pages
    while True:
        step = min(module.accept_step_pages, pages - done)
        _zero(module, Pfn(pfn + done), step)
        kernel.spend(total_ns * (done + step) // pages - total_ns * done // pages)
        done += step
        if done == pages or (yield InterruptTest(interrupt_pending)):
            return done


def _returned(status: Status, operand: int) -> TdcallResult:
    return TdcallResult(SeamcallReturn(status, operand))


def _cost_of(refusal: TdcallResult) -> str:
    if refusal.exit is not None:
        return "tdg_accept_faulting_attempt"
    return (
        "tdg_mem_page_accept_mismatch" if refusal.status is Status.TDX_PAGE_SIZE_MISMATCH else "tdcall_null"
    )
