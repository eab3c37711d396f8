"""A TD's vCPUs: VP.ENTER, the exit handlers, and the guest's own way to the module.

Source: tdx.c (tdx_vcpu_load, tdx_vcpu_run, tdx_handle_exit, tdx_handle_ept_violation), vmx/common.h
(__vmx_handle_ept_violation); reference 3.1, 9. Steps F01 to F08 and V10, V11.
"""

from __future__ import annotations

from mmu.errno import Errno
from mmu.fault import RetPf, await_retry, kvm_mmu_do_page_fault
from mmu.ledgers import MIRROR
from mmu.vcpu_ops import GIVE_UP, VmOps, access_of
from sim import Steps
from sim.dependence import WRITE, note
from tdx.kvm.state import KvmTdx, TdState, operand_busy
from tdx.module import ExitReason as TdxExitReason
from tdx.module import (
    Septe,
    Status,
    TdcallResult,
    TdExit,
    hardware_walk,
    private_ept_violation,
    tdg_mem_page_accept,
    tdg_vp_veinfo_get,
    tdg_vp_vmcall,
    tdh_vp_enter,
    tdh_vp_flush,
)
from vcpu.addresses import PG_LEVEL_4K, Gfn, Gpa, PgLevel, gfn_of
from vcpu.exits import PROT_MASK, QUALIFICATION, ExitReason, ExtendedQualification, GuestExit
from vcpu.guest import AcceptStatus, Guest
from vcpu.pcpu import Pcpu, smp_call_function_many
from vcpu.tlb import Translation
from vcpu.vcpu import FREE_OBSOLETE_ROOTS, VM_DEAD, Vcpu

MAP_GPA_LEAF = 0x10001
HLT_LEAF = 12
EXEC_FOR_RING3 = 1 << 6


class TdxOps(VmOps):
    """VcpuOps and GuestSide of a TD."""

    def __init__(self, tdx: KvmTdx, guest: Guest) -> None:
        super().__init__(tdx.kvm, guest)
        self.tdx = tdx
        self._runnable: set[int] = set()
        self.private_space = f"sept[{tdx.td.tdr_pfn:#x}]"

    # KVM's side

    def load(self, vcpu: Vcpu, previous: Pcpu | None) -> Steps[None]:
        """tdx_vcpu_load: on another pCPU than before, TDH.VP.FLUSH on the old one first, by IPI."""
        tdx = self.tdx
        associated = tdx.module.vcpu(tdx.tdvpr[vcpu.index]).assoc_lpid.peek()
        if associated not in (-1, vcpu.pcpu.index):
            old = self.kvm.pcpus[associated]
            yield from smp_call_function_many(self.kernel, [old], lambda: None, wait=True)
            result = yield from tdh_vp_flush(
                tdx.module, tdvpr_pfn=tdx.tdvpr[vcpu.index], lp=tdx.lps[associated]
            )
            tdx.bug_on(result, "TDH.VP.FLUSH")
        yield from super().load(vcpu, previous)

    def flush_tlb(self, vcpu: Vcpu) -> None:
        """tdx_flush_tlb_all: a global INVEPT on this pCPU, for KVM does not know the private EPTP."""
        self.kernel.charge("invept_single")
        vcpu.pcpu.tlb.flush_all()
        self.kernel.count("tlb_flush")

    def reload_mmu(self, vcpu: Vcpu) -> Steps[int]:
        """V3, behind tdx_vcpu_pre_run: a vCPU of a TD that is not finalized does not run."""
        if vcpu.index not in self._runnable:
            if (yield self.tdx.state.read()) is not TdState.RUNNABLE:
                self.kernel.reached("vcpu_run_before_finalize")
                return -Errno.EINVAL
            self._runnable.add(vcpu.index)
        return (yield from super().reload_mmu(vcpu))

    def run(self, vcpu: Vcpu) -> Steps[GuestExit | None]:
        """V10, V11: tdx_vcpu_run. A busy VP.ENTER, or a zap that keeps vCPUs out, is EXIT_FASTPATH_EXIT_HANDLED."""
        tdx = self.tdx
        if (yield tdx.wait_for_sept_zap.read_once()):
            self.kernel.reached("entry_kept_out_by_zap")
            return None
        left: GuestExit | None = None

        def guest() -> Steps[TdExit]:
            nonlocal left
            left = yield from self.guest.run(vcpu)
            return self._td_exit(vcpu, left)

        result = yield from tdh_vp_enter(
            tdx.module, tdvpr_pfn=tdx.tdvpr[vcpu.index], lp=tdx.lps[vcpu.pcpu.index], guest=guest
        )
        if operand_busy(result) and result.exit is None:
            self.kernel.reached("vp_enter_busy")
            tdx.note_busy(result)
            return None
        if result.exit is None:
            self.kvm.bug("TDH.VP.ENTER failed", status=str(result))
            return GuestExit(ExitReason.HLT)
        if left is None:  # F01: the module answered for the guest (zero-step)
            if vcpu.exited_ns < 0:
                vcpu.exited_ns = self.kernel.now_ns
            return GuestExit(ExitReason.EPT_VIOLATION, result.exit.gpa, result.rcx, result.rdx)
        return left

    def _td_exit(self, vcpu: Vcpu, left: GuestExit) -> TdExit:
        """The same exit as the module sees it: HLT and MapGPA are TDVMCALLs, which move on; a violation stays in place."""
        if left.reason in (ExitReason.HLT, ExitReason.TDCALL):
            leaf = HLT_LEAF if left.reason is ExitReason.HLT else MAP_GPA_LEAF
            numbers = tuple(argument for argument in left.arguments if isinstance(argument, int))
            exit_ = tdg_vp_vmcall(
                self.tdx.module,
                vcpu=self.tdx.module.vcpu(self.tdx.tdvpr[vcpu.index]),
                args=(0, leaf, *numbers),
            )
            assert isinstance(exit_, TdExit)
            return exit_
        return TdExit(TdxExitReason(int(left.reason)), left.qualification, left.extended, left.gpa, vcpu.rip)

    def await_entry(self, vcpu: Vcpu) -> Steps[None]:
        """Wait outside, interrupts on, until no zap wants vCPUs out and the lock that made VP.ENTER busy is free.

        The kernel spins through its loop for that time.
        """
        awaited = self.tdx.awaited()
        if awaited is not None:
            lock, free = awaited
            yield lock.wait_until(free)
        yield self.tdx.wait_for_sept_zap.wait_until(lambda flag: not flag)

    def is_private_fault(self, gpa: Gpa) -> bool:
        """vt_is_tdx_private_gpa: the shared bit is clear."""
        return not self.kvm.is_direct_gpa(gpa)

    def handle_ept_violation(self, vcpu: Vcpu, guest_exit: GuestExit) -> Steps[int]:
        """F03 to F08: tdx_handle_ept_violation. Private faults are retried here, not by the guest.

        A guest that faults again at the same RIP counts as stepped: beyond the module's threshold every VP.ENTER takes
        the S-EPT tree lock, and other vCPUs' SEAMCALLs fail busy.
        """
        kvm = self.kvm
        gpa = guest_exit.gpa
        private = self.is_private_fault(gpa)  # F03
        self.kernel.count("ept_violation")
        if private:
            qualification = guest_exit.qualification
            pending = guest_exit.extended & 15 == ExtendedQualification.PENDING_VIOLATION
            if pending and not qualification & (PROT_MASK | EXEC_FOR_RING3):  # F04
                return self._pending_page_touched(vcpu, gpa)
            access = "write"  # F05
        else:
            access = access_of(guest_exit.qualification)  # F05
            if access == "execute":
                kvm.bug("a TD fetches instructions from shared memory", gpa=hex(gpa))
                return GIVE_UP
        self.trace_fault(vcpu, guest_exit)  # F06
        while True:
            outcome, _ = yield from kvm_mmu_do_page_fault(kvm, vcpu, gpa, access, is_private=private)  # F07
            if outcome is not RetPf.RETRY:  # F08
                break
            if not private:
                yield from await_retry(kvm, vcpu)
                break
            self.kernel.reached("fault_local_retry")
            pending_requests = yield vcpu.requests.read_once()
            if pending_requests & VM_DEAD.mask:
                outcome = Errno.EIO
                break
            if pending_requests & FREE_OBSOLETE_ROOTS.mask:
                # Until it is served every fault is stale (F31). The kernel spins here until the guest has an event or the
                # thread a signal, neither of which is modelled; so leave at once instead.
                self.kernel.reached("fault_retry_left_for_root")
                break
            slots = yield kvm.memslots.load()
            slot = slots.find(gfn_of(gpa))
            yield from await_retry(kvm, vcpu)
            if slot is not None and slot.invalid:
                break
        if outcome is Errno.EIO:
            vcpu.shut_down = True
        return self.resolve(vcpu, guest_exit, outcome, private=private)

    def _pending_page_touched(self, vcpu: Vcpu, gpa: Gpa) -> int:
        """F04: the guest touched a page it has not accepted, with #VE disabled: kvm_vm_dead.

        A finding, unless a host thread had taken the page from the guest unasked.
        """
        self.kernel.count("td.dead")
        if gfn_of(gpa) not in self.tdx.taken_by_host:
            self.kernel.find("td-dead", "the guest touched a page that was pending", vcpu=vcpu, gpa=hex(gpa))
        note(self.kvm.vm_dead.name, WRITE)
        self.kvm.vm_dead.v = True
        for other in self.kvm.vcpus:
            note(other.requests.name, WRITE)
            other.requests.v |= VM_DEAD.mask
        vcpu.shut_down = True
        return GIVE_UP

    # The guest's side

    def walk(self, vcpu: Vcpu, gpa: Gpa, access: str) -> Steps[Translation | GuestExit | None]:
        """The S-EPT for private addresses; what it does not translate is the module's to judge."""
        gfn = gfn_of(gpa)
        if self.kvm.is_direct_gpa(gpa):
            return (yield from super().walk(vcpu, gpa, access))
        tdx = self.tdx
        found = yield from hardware_walk(tdx.module, tdx.td, gfn)
        if found is not None:
            entry, level = found
            return translation(entry, level, gfn)
        tdvps = tdx.module.vcpu(tdx.tdvpr[vcpu.index])
        verdict = yield from private_ept_violation(
            tdx.module, tdx.td, tdvps, gpa, QUALIFICATION[access], vcpu.rip
        )
        if isinstance(verdict, TdExit):
            return GuestExit(ExitReason.EPT_VIOLATION, gpa, verdict.qualification, verdict.extended)
        self.kernel.charge("tdx_exit_in_module")
        self.kernel.reached("guest_ve")
        tdg_vp_veinfo_get(tdx.module, vcpu=tdvps)
        status = yield from self.accept(vcpu, Gpa(gpa & ~0xFFF), PG_LEVEL_4K)
        return status if isinstance(status, GuestExit) else None

    def space(self, vcpu: Vcpu, gpa: Gpa) -> str:
        """The private half of a TD is an address space of its own."""
        return self.space_name if self.kvm.is_direct_gpa(gpa) else self.private_space

    def key(self, gpa: Gpa) -> int:
        """Private content is written under the TD's key."""
        return 0 if self.kvm.is_direct_gpa(gpa) else self.tdx.hkid

    def accept(self, vcpu: Vcpu, gpa: Gpa, level: PgLevel) -> Steps[AcceptStatus | GuestExit]:
        """TDG.MEM.PAGE.ACCEPT."""
        tdx = self.tdx
        tdvps = tdx.module.vcpu(tdx.tdvpr[vcpu.index])
        content = None if self.kvm.ledger is None else self.kvm.ledger.content
        before = content.before_accept(gfn_of(gpa)) if content is not None else None
        result = yield from tdg_mem_page_accept(
            tdx.module,
            td=tdx.td,
            vcpu=tdvps,
            gpa=gpa,
            level=level,
            interrupt_pending=lambda: vcpu.interrupted,
            rip=vcpu.rip,
        )
        if result.interrupted or (vcpu.interrupted and result.exit is None and result.ret is None):
            return AcceptStatus.INTERRUPTED
        if result.exit is not None:
            return GuestExit(ExitReason.EPT_VIOLATION, gpa, result.exit.qualification, result.exit.extended)
        status = accept_status(result)
        if content is not None and status is AcceptStatus.ACCEPTED:
            content.accepted(vcpu, gfn_of(gpa), before)
        return status

    def check_access(self, vcpu: Vcpu, gpa: Gpa, translation: Translation, access: str, version: int) -> None:
        """A private translation must lead to a page that the TD still owns, with the content that the TD left there."""
        if self.kvm.is_direct_gpa(gpa):
            super().check_access(vcpu, gpa, translation, access, version)
            return
        module, ledger = self.tdx.module, self.kvm.ledger
        gfn = gfn_of(gpa)
        pfn = translation.frame(gfn)
        if ledger is not None:
            ledger.tlb.judge(vcpu, MIRROR, gfn, translation)
        if not module.may_reach(self.tdx.td, pfn, translation.level):
            self.kernel.find(
                "stale-tlb", f"{vcpu} reaches a page that left the TD", gpa=hex(gpa), pfn=hex(pfn)
            )
        if ledger is not None and access == "write":
            ledger.content.wrote(gfn, version)
        elif ledger is not None:
            ledger.content.saw(vcpu, gfn, version)


def translation(entry: Septe, level: PgLevel, gfn: Gfn) -> Translation:
    """An S-EPT leaf as the TLB caches it."""
    return Translation(
        Gfn(gfn & -level.pages),
        entry.pfn_at(level),
        level,
        writable=bool(entry & 2),
        executable=bool(entry & 4),
    )


def accept_status(result: TdcallResult) -> AcceptStatus:
    """What the guest makes of RAX."""
    status = result.status
    if status is Status.TDX_SUCCESS:
        return AcceptStatus.ACCEPTED
    if status is Status.TDX_PAGE_ALREADY_ACCEPTED:
        return AcceptStatus.ALREADY
    if status is Status.TDX_PAGE_SIZE_MISMATCH:
        return AcceptStatus.SIZE_MISMATCH
    return AcceptStatus.BUSY
