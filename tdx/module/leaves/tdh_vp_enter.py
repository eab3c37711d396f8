"""TDH.VP.ENTER: run a vCPU until it leaves; and everything the module does on the way in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.exits import Access, TdExit
from tdx.module.objects import (
    NOT_ASSOCIATED,
    TDVPS_PAGES,
    LogicalProcessor,
    Tdcs,
    Tdvps,
    VcpuState,
    enter_epoch,
    leave_even,
    leave_odd,
)
from tdx.module.seamcall import check_td, lock_vcpu, seamcall
from tdx.module.septe import RWX
from tdx.module.sharex import EXCLUSIVE, shareable
from tdx.module.status import Operand, Refused, SeamcallReturn, Status, require
from tdx.module.walk import secure_ept_walk
from vcpu.addresses import Gpa, Pfn, gfn_of

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule

Guest = Callable[[], Steps[TdExit]]


@seamcall("TDH.VP.ENTER", leaf=0, cost="", rcx="tdvpr_pfn", timed=False)
def tdh_vp_enter(
    module: TdxModule, held: Held, *, tdvpr_pfn: Pfn, lp: LogicalProcessor, guest: Guest
) -> Steps[SeamcallReturn]:
    """Enter the guest and return with its exit.

    TDVPR and TDR stay locked shared until the exit, so that nobody can take either away; OP_STATE is dropped just before the
    guest runs. The REFCOUNT of the epoch is up from before the zero-step filter until all guest state is saved.
    Returns: RAX the exit reason on success, RCX the qualification, RDX the extended one, R8 the address, `exit` the whole.
    Cost: `tdh_vp_enter` on the way in, `td_exit` on the way out. Reference 10, 7, 11.3.
    """
    vcpu = yield from lock_vcpu(held, tdvpr_pfn, Operand.RCX, exclusive=False)
    tdcs = yield from check_td(held, vcpu.tdr, "TDH.VP.ENTER")
    require(1 + len(vcpu.tdcx) >= TDVPS_PAGES, Status.TDX_TDCX_NUM_INCORRECT)
    state = yield vcpu.state.read_once()
    require(state is VcpuState.READY, Status.TDX_VCPU_STATE_INCORRECT)
    fresh = yield from _associate(vcpu, lp)
    vcpu.moving = True
    yield from _enter_epoch(held, vcpu, tdcs, lp, fresh=fresh)
    if lp.last_tdvpr != tdvpr_pfn:
        lp.flush_tlb(vcpu.tdr.pfn)
        lp.last_tdvpr = tdvpr_pfn
    filtered = module.zero_step and bool(vcpu.last_epf_gpa_list)
    if filtered:
        faulting = yield from _zero_step(module, held, vcpu, tdcs)
        if faulting is not None:
            module.kernel.reached("zero_step_blocked_entry")
            module.kernel.charge("seamcall_null")
            return _report(TdExit.ept_violation(faulting, Access.WRITE, rip=vcpu.rip))
    # All checks passed.
    vcpu.entry_rip = vcpu.rip
    yield vcpu.state.write_once(VcpuState.ACTIVE)
    yield from held.give_back(tdcs.op_state_lock.release_shared)
    if filtered:
        yield from held.give_back(tdcs.sept_tree_lock.release_exclusive)
    vcpu.moving = False
    module.in_flight -= 1
    module.kernel.charge("tdh_vp_enter")
    left = yield from guest()
    module.kernel.charge("td_exit")
    module.in_flight += 1
    if not vcpu.rip_compared:  # a violation that was logged has compared before it counted
        vcpu.progressed(left.rip)
    vcpu.rip_compared = False
    vcpu.last_td_exit = left.reason
    vcpu.last_exit_was_trap = left.trap_like
    yield vcpu.state.write_once(VcpuState.READY)
    yield from _leave_epoch(vcpu, tdcs)
    return _report(left)


def _report(left: TdExit) -> SeamcallReturn:
    operand = left.reason if left.status is Status.TDX_SUCCESS else None
    return SeamcallReturn(left.status, operand, left.qualification, left.extended, left.gpa, left)


def _associate(vcpu: Tdvps, lp: LogicalProcessor) -> Steps[bool]:
    """Bind the vCPU to this LP; it stays bound whatever happens next. Returns whether it was not bound before."""
    seen: int = yield vcpu.assoc_lpid.cmpxchg(NOT_ASSOCIATED, lp.lpid)
    if seen == NOT_ASSOCIATED:
        yield vcpu.tdcs.num_assoc_vcpus.fetch_add(1)
        return True
    require(seen == lp.lpid, Status.TDX_VCPU_ASSOCIATED)
    return False


def _enter_epoch(held: Held, vcpu: Tdvps, tdcs: Tdcs, lp: LogicalProcessor, *, fresh: bool) -> Steps[None]:
    """Be counted in the current epoch; drop what this LP cached in an earlier one.

    Sampling the epoch and counting is one access: the epoch's lock keeps TRACK out in between.
    """
    lock = tdcs.epoch_lock
    if (yield lock.try_shared()) & EXCLUSIVE:
        vcpu.moving = False
        held.module.kernel.reached("td_epoch_busy")
        raise Refused(Status.TDX_OPERAND_BUSY, Operand.TD_EPOCH, awaited=(lock, shareable))
    unit = yield tdcs.epoch.update(enter_epoch, "enter epoch")
    vcpu.inside = True
    yield lock.release_shared()
    if unit.epoch != vcpu.vcpu_epoch:
        if not fresh:
            lp.flush_tlb(vcpu.tdr.pfn)
        vcpu.vcpu_epoch = unit.epoch


def _leave_epoch(vcpu: Tdvps, tdcs: Tdcs) -> Steps[None]:
    vcpu.moving = True
    yield tdcs.epoch.update(leave_odd if vcpu.vcpu_epoch & 1 else leave_even, "leave epoch")
    vcpu.inside = False
    vcpu.moving = False


def _zero_step(module: TdxModule, held: Held, vcpu: Tdvps, tdcs: Tdcs) -> Steps[Gpa | None]:
    """Look whether every suspect GPA would translate now; the first that would not is returned, and the count taken back.

    Takes the tree exclusive, until just before the guest runs: a vCPU under suspicion disturbs every host call on the tree
    (reference 14, row 5).
    """
    lock = tdcs.sept_tree_lock
    try:
        yield from held.exclusive(lock, Operand.SEPT_TREE, met="sept_tree_busy")
    except Refused:
        yield from _leave_epoch(vcpu, tdcs)
        raise
    for gpa in tuple(vcpu.last_epf_gpa_list):
        walk = yield from secure_ept_walk(module, tdcs, gfn_of(gpa), 1)
        if not (walk.entry.is_leaf and walk.entry.rwx == RWX):
            yield from held.give_back(lock.release_exclusive)
            yield from _leave_epoch(vcpu, tdcs)
            return gpa
    return None
