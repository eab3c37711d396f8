"""TDH.VP.ENTER: run a vCPU until it leaves; and everything the module does on the way in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.ept_violation import inject_ve
from tdx.module.exits import Access, Damage, LastTdExit, TdExit
from tdx.module.objects import (
    LogicalProcessor,
    Tdcs,
    Tdvps,
    VcpuState,
    enter_epoch,
    leave_even,
    leave_odd,
)
from tdx.module.seamcall import associate, check_td, lock_vcpu, seamcall
from tdx.module.sharex import EXCLUSIVE
from tdx.module.status import HOST_RECOVERABILITY_HINT, Operand, Refused, SeamcallReturn, Status, require
from tdx.module.stepping import end_stepping, first_fault_to_come
from vcpu.addresses import Gpa, Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule

Guest = Callable[[], Steps[TdExit]]

NOTIFY_EPT_FAULTS = 1 << 0
"""NOTIFY_ENABLES bit: tell the guest when a zero-step attack was suspected."""


@seamcall("TDH.VP.ENTER", leaf=0, cost="", rcx="vcpu_and_flags", timed=False)
def tdh_vp_enter(
    module: TdxModule,
    held: Held,
    *,
    tdvpr_pfn: Pfn,
    lp: LogicalProcessor,
    guest: Guest,
    host_recoverability_hint: bool = False,
    resume_l1: bool = False,
) -> Steps[SeamcallReturn]:
    """Enter the guest and return with its exit.

    TDVPR and TDR stay locked shared until the exit, so that nobody can take either away; OP_STATE is dropped just before the
    guest runs. The REFCOUNT of the epoch is up from before the zero-step filter until all guest state is saved. Whatever
    fails after the vCPU was associated with the LP leaves it associated (reference 14, row 17).
    Args:
        guest: what runs inside; what it shall begin with is in `Tdvps.injected`.
        host_recoverability_hint: after a trap-like exit the guest's status gets bit 60 (`Tdvps.guest_rax`).
        resume_l1: is refused: no L2 guest has left.
    Returns: RAX the exit reason on success, RCX the qualification, RDX the extended one, R8 the address, `exit` the whole.
    Not modelled: the checks of TSC and MSRs and the loading of guest state, which fail by injection only and then before
    anything happened; L2 guests.
    Cost: `tdh_vp_enter` on the way in, `td_exit` on the way out. Source: tdh_vp_enter.c, td_exit.c:td_vmexit_to_vmm;
    reference 10, 7, 11.3.
    """
    vcpu = yield from lock_vcpu(held, tdvpr_pfn, Operand.RCX, exclusive=False)
    tdcs = yield from check_td(held, vcpu.tdr, "TDH.VP.ENTER")
    require(1 + len(vcpu.tdcx) >= vcpu.tdcs.tdvps_pages, Status.TDX_TDCX_NUM_INCORRECT)
    state = yield vcpu.state.read_once()
    require(state is VcpuState.READY, Status.TDX_VCPU_STATE_INCORRECT)
    fresh = yield from associate(vcpu, lp)
    after_trap = vcpu.last_td_exit is LastTdExit.ASYNC_TRAP
    require(after_trap or not host_recoverability_hint, Status.TDX_OPERAND_INVALID, Operand.RCX)
    require(not resume_l1, Status.TDX_OPERAND_INVALID, Operand.RCX)
    vcpu.moving = True
    yield from _enter_epoch(held, vcpu, tdcs, lp, fresh=fresh)
    vcpu.entry_rip = vcpu.rip
    filtered = module.zero_step and bool(vcpu.last_epf_gpa_list)
    if filtered:
        faulting = yield from _zero_step(module, held, vcpu, tdcs)
        if faulting is not None:
            vcpu.last_td_exit = LastTdExit.ASYNC_FAULT
            module.kernel.reached("zero_step_blocked_entry")
            module.kernel.charge("seamcall_null")
            return _report(TdExit.ept_violation(faulting, Access.WRITE, rip=vcpu.rip))
        if tdcs.notify_enables & NOTIFY_EPT_FAULTS:
            _notify(vcpu)
    # All checks passed.
    yield from held.give_back(tdcs.op_state_lock.release_shared)
    if lp.last_tdvpr != tdvpr_pfn:
        lp.flush_tlb(vcpu.tdr.pfn)
        lp.last_tdvpr = tdvpr_pfn
    if after_trap:
        hint = HOST_RECOVERABILITY_HINT if host_recoverability_hint else 0
        vcpu.guest_rax = vcpu.guest_rax & ~HOST_RECOVERABILITY_HINT | hint
    yield vcpu.state.write_once(VcpuState.ACTIVE)
    if filtered:
        yield from _release_tree(module, held, tdcs)
    vcpu.moving = False
    module.in_flight -= 1
    module.kernel.charge("tdh_vp_enter")
    lp.single_step.entered_ns = module.kernel.now_ns
    left = yield from guest()
    module.kernel.charge("td_exit")
    module.in_flight += 1
    left = yield from _exit(vcpu, tdcs, lp, left)
    return _report(left)


def _enter_epoch(held: Held, vcpu: Tdvps, tdcs: Tdcs, lp: LogicalProcessor, *, fresh: bool) -> Steps[None]:
    """Be counted in the current epoch; drop what this LP cached in an earlier one.

    Sampling the epoch and counting is one access: the epoch's lock keeps TRACK out in between.
    """
    lock = tdcs.epoch_lock
    if (yield lock.try_shared()) & EXCLUSIVE:
        vcpu.moving = False
        held.module.kernel.reached("td_epoch_busy")
        raise Refused(Status.TDX_OPERAND_BUSY, Operand.TD_EPOCH, awaited=(lock, lock.is_shareable))
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

    Keeps the tree until just before the guest runs. In releases that take it exclusive, a vCPU under suspicion disturbs every
    host call on the tree (reference 14, row 5).
    """
    try:
        yield from held.tree(tdcs, exclusive=not module.profile.zero_step_tree_shared)
    except Refused:
        yield from _leave_epoch(vcpu, tdcs)
        raise
    faulting = yield from first_fault_to_come(module, vcpu)
    if faulting is not None:
        yield from _release_tree(module, held, tdcs)
        yield from _leave_epoch(vcpu, tdcs)
    return faulting


def _release_tree(module: TdxModule, held: Held, tdcs: Tdcs) -> Steps[None]:
    lock = tdcs.sept_tree_lock
    shared = module.profile.zero_step_tree_shared
    yield from held.give_back(lock.release_shared if shared else lock.release_exclusive)


def _notify(vcpu: Tdvps) -> None:
    """Tell the guest by a #VE, if its last VM exit was a private EPT violation and no #VE waits to be fetched.

    Not modelled: NMI blocking and interrupted event delivery, which also forbid it. Source: tdh_vp_enter.c,
    handle_stepping_filter; td_exit_stepping.c:can_inject_epf_ve.
    """
    if vcpu.last_violation is not None and vcpu.ve_info is None:
        vcpu.injected = inject_ve(vcpu, vcpu.last_violation)


def _exit(vcpu: Tdvps, tdcs: Tdcs, lp: LogicalProcessor, left: TdExit) -> Steps[TdExit]:
    """Save what the next entry needs, then stop being counted; returns the exit that the host sees.

    A TD that another vCPU has made fatal turns every exit into one that saves nothing and never gives its REFCOUNT back.
    """
    end_stepping(lp.single_step)
    if vcpu.tdr.fatal and left.damage is not Damage.TD_NOT_ACCESSIBLE:
        left = TdExit.td_is_dead(left.reason, left.qualification, left.rip)
    if not vcpu.rip_compared:  # a violation that was logged has compared before it counted
        vcpu.progressed(left.rip)
        vcpu.last_violation = None
    vcpu.rip_compared = False
    damage = left.damage
    if damage in (Damage.TD, Damage.TD_NOT_ACCESSIBLE):
        vcpu.tdr.fatal = True
    state = yield vcpu.state.read_once()
    if damage is Damage.NONE:
        state = VcpuState.READY
        vcpu.last_td_exit = left.last
    elif damage is Damage.VCPU:
        state = VcpuState.DISABLED
    if damage is not Damage.TD_NOT_ACCESSIBLE:
        yield vcpu.state.write_once(state)
        yield from _leave_epoch(vcpu, tdcs)
    return left


def _report(left: TdExit) -> SeamcallReturn:
    return SeamcallReturn(left.status, left.details, left.qualification, left.extended, left.gpa, left)
