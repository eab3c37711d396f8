"""The page fault: steps F10 to F60 and L1 to L8 of the reference (section 3), for private and shared faults alike.

A fault takes a snapshot of the invalidation sequence (F21), finds out which frame it wants (F27, without mmu_lock, may
sleep), then takes mmu_lock for read and asks whether anything was invalidated since (F31). Only then may it install.
Others may run at every `yield`: zaps and conversions hold mmu_lock for write, other faults hold it for read beside us.
Source: arch/x86/kvm/mmu/mmu.c (kvm_mmu_faultin_pfn, kvm_tdp_mmu_page_fault), mmu/tdp_mmu.c (kvm_tdp_mmu_map).
"""

from __future__ import annotations

from enum import IntEnum

from mmu import gmem, invalidate
from mmu.caches import VcpuCaches
from mmu.errno import Errno
from mmu.events import PageFaultDone, SpteRequested, SpteSet
from mmu.external import Awaited
from mmu.host_memory import level_for_order
from mmu.memslots import Memslot, largest_allowed_level
from mmu.page_table import KvmMmuPage
from mmu.spte import (
    is_frozen_spte,
    is_last_spte,
    is_shadow_present_pte,
    is_writable_pte,
    make_mirror_leaf,
    make_spte,
    spte_to_pfn,
)
from mmu.tdp_iter import TdpIter
from mmu.tdp_mmu import free_sp, init_child_sp, tdp_mmu_link_sp, tdp_mmu_set_spte_atomic
from mmu.vm import Kvm
from sim import Steps
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_4K, Gfn, Gpa, Pfn, PgLevel, gfn_of
from vcpu.vcpu import FREE_OBSOLETE_ROOTS, Vcpu


class RetPf(IntEnum):
    """RET_PF_*: what a pass through the handler came to (reference 3.9)."""

    CONTINUE = 0
    RETRY = 1
    EMULATE = 2
    WRITE_PROTECTED = 3
    INVALID = 4
    FIXED = 5
    SPURIOUS = 6


class VcpuMmu:
    """A vCPU's roots and caches (vcpu->arch.mmu). Touched by the vCPU's own thread alone.

    `retry_on` is why the last pass came to RET_PF_RETRY: a word, and when it is worth another try. `invalid_slot` is the
    slot in whose deletion the last pass came: only when it has gone another try is worth it.
    """

    def __init__(self, caches: VcpuCaches) -> None:
        self.retry_on: Awaited | None = None
        self.invalid_slot: Memslot | None = None
        self.root: KvmMmuPage | None = None
        self.mirror_root: KvmMmuPage | None = None
        self.caches = caches


class PageFault:
    """struct kvm_page_fault. Levels are KVM's; `gfn` has no shared bit; `mmu_seq` is the snapshot of F21."""

    __slots__ = (
        "addr",
        "error",
        "exec",
        "gfn",
        "goal_level",
        "is_private",
        "map_writable",
        "max_level",
        "mmu_seq",
        "pfn",
        "prefetch",
        "refcounted_page",
        "req_level",
        "slot",
        "write",
    )

    def __init__(self, kvm: Kvm, addr: Gpa, access: str, *, is_private: bool, prefetch: bool = False) -> None:
        self.addr = addr
        self.write = access == "write"
        self.exec = access == "execute"
        self.is_private = is_private
        self.prefetch = prefetch
        self.max_level: PgLevel = PG_LEVEL_1G
        self.req_level: PgLevel = PG_LEVEL_4K
        self.goal_level: PgLevel = PG_LEVEL_4K
        self.gfn = Gfn(gfn_of(addr) & ~kvm.direct_bits)
        self.slot: Memslot | None = None
        self.mmu_seq = 0
        self.pfn = Pfn(0)
        self.map_writable = False
        self.refcounted_page = False
        self.error = 0


def no_window(in_progress: int) -> bool:
    """No invalidation is open any more; the hull of ranges does not shrink before."""
    return in_progress == 0


def thawed(spte: int) -> bool:
    """The thread that froze a mirror SPTE has written its outcome."""
    return not is_frozen_spte(spte)


def await_retry(kvm: Kvm, vcpu: Vcpu) -> Steps[None]:
    """Wait until another pass can come to something else. The kernel spins (cond_resched); nothing else differs.

    Holds what the spinning vCPU would hold: SRCU. So a retry that cannot end is a deadlock in the report. A fault that met
    an INVALID slot goes round through the guest, where SRCU is dropped (V7): so it is here.
    """
    mmu: VcpuMmu = vcpu.arch
    slot, mmu.invalid_slot = mmu.invalid_slot, None
    if slot is not None:
        yield kvm.srcu.read_unlock()
        yield kvm.memslots.cell.wait_until(lambda slots: slot not in slots)
        yield kvm.srcu.read_lock()
    awaited, mmu.retry_on = mmu.retry_on, None
    kvm.kernel.retried("page fault")
    if awaited is None and kvm.external is not None:
        awaited = kvm.external.awaited()
    if awaited is not None:
        kvm.kernel.reached("fault_awaited_retry")
        word, changed = awaited
        yield word.wait_until(changed)


Outcome = RetPf | Errno
"""A RET_PF_* value, or an errno that goes to userspace (negative in the kernel)."""


def kvm_mmu_do_page_fault(
    kvm: Kvm, vcpu: Vcpu, addr: Gpa, access: str, *, is_private: bool, prefetch: bool = False
) -> Steps[tuple[Outcome, PgLevel]]:
    """One pass: F10 to F60. Returns the outcome and the level that was mapped or asked for.

    Cost: `kvm_tdx_fault_sw` for a private fault, `kvm_fault_sw_vmx` otherwise, before the locked part.
    """
    kernel = kvm.kernel
    mmu: VcpuMmu = vcpu.arch
    if mmu.root is None:  # F10
        return RetPf.RETRY, PG_LEVEL_4K
    kernel.count("pf_taken")
    fault = PageFault(kvm, addr, access, is_private=is_private, prefetch=prefetch)  # F11
    slots = yield kvm.memslots.load()  # F11
    fault.slot = slots.find(fault.gfn)
    # F12, F13: write tracking and the fast page fault need P=1, which neither a private fault nor a first touch has;
    # they come with dirty logging.
    if mmu.caches.topup():  # F14
        return Errno.ENOMEM, PG_LEVEL_4K
    kernel.charge("kvm_tdx_fault_sw" if kvm.has_mirror else "kvm_fault_sw_vmx")
    outcome: Outcome = yield from kvm_mmu_faultin_pfn(kvm, mmu, fault)
    if outcome is RetPf.CONTINUE:
        outcome = yield from kvm_tdp_mmu_page_fault(kvm, vcpu, fault)
    if isinstance(outcome, RetPf):
        kernel.count(f"fault.{outcome.name.lower()}")
    else:
        kernel.count(f"fault.errno.{outcome.name}")
    if kernel.events is not None:
        kernel.emit(PageFaultDone(vcpu.index, fault.gfn, fault.is_private, outcome.name))
    return outcome, fault.goal_level


def kvm_mmu_faultin_pfn(kvm: Kvm, mmu: VcpuMmu, fault: PageFault) -> Steps[Outcome]:
    """F20 to F2A: find the frame. CONTINUE means `fault.pfn` is set and a page reference is held."""
    kernel = kvm.kernel
    if kvm.direct_bits and fault.gfn & kvm.direct_bits:  # F20
        kvm.bug("the gfn of a fault still has its shared bit", gfn=hex(fault.gfn))
        return Errno.EFAULT
    fault.mmu_seq = yield kvm.mmu_invalidate_seq.read()  # F21; F22, the read barrier, is the order of these steps
    if kvm.has_private_mem:
        attributes = yield kvm.attributes.load(fault.gfn)  # F23
        if fault.is_private != bool(attributes & kvm.attributes.PRIVATE):
            kernel.reached("fault_memory_fault_exit")
            return Errno.EFAULT
    slot = fault.slot
    if slot is None:  # F24
        return Errno.EFAULT if fault.is_private else RetPf.EMULATE
    if slot.invalid:  # F25
        kernel.reached("fault_met_invalid_slot")
        if fault.prefetch:
            return Errno.EAGAIN
        mmu.invalid_slot = slot
        return RetPf.RETRY
    if (yield from invalidate.mmu_invalidate_retry_gfn_unsafe(kvm, fault.mmu_seq, fault.gfn)):  # F26
        kernel.reached("fault_met_invalidation")
        mmu.retry_on = kvm.mmu_invalidate_in_progress, no_window
        return RetPf.RETRY
    outcome = yield from __kvm_mmu_faultin_pfn(kvm, fault, slot)  # F27
    if outcome is not RetPf.CONTINUE:
        return outcome  # F29
    if (yield from invalidate.mmu_invalidate_retry_gfn_unsafe(kvm, fault.mmu_seq, fault.gfn)):  # F2A
        kernel.reached("fault_met_invalidation")
        mmu.retry_on = kvm.mmu_invalidate_in_progress, no_window
        release_page(kvm, fault)
        return RetPf.RETRY
    return RetPf.CONTINUE


def __kvm_mmu_faultin_pfn(kvm: Kvm, fault: PageFault, slot: Memslot) -> Steps[Outcome]:
    """F27, F28: the frame from guest_memfd for private faults, from the host's page tables for shared ones."""
    if fault.is_private:
        if slot.gmem is None:
            return Errno.EFAULT
        got = yield from gmem.kvm_gmem_get_pfn(slot.gmem.file, slot, fault.gfn)  # F27a to F27e
        if isinstance(got, Errno):
            return got
        fault.pfn, order = got
    else:
        fault.pfn, order = yield from kvm.primary.fault_in(slot.hva_of(fault.gfn))
    fault.refcounted_page = True
    fault.map_writable = not slot.readonly  # F28
    fault.max_level = level_for_order(order)
    if not fault.map_writable and fault.write:
        release_page(kvm, fault)
        return RetPf.EMULATE  # F29: a write to a read-only slot
    return RetPf.CONTINUE


def kvm_tdp_mmu_page_fault(kvm: Kvm, vcpu: Vcpu, fault: PageFault) -> Steps[RetPf]:
    """F30 to F60: the locked part."""
    mmu: VcpuMmu = vcpu.arch
    yield kvm.mmu_lock.read_lock()  # F30
    outcome = RetPf.RETRY
    if (yield from is_page_fault_stale(kvm, vcpu, fault)):  # F31
        kvm.kernel.reached("fault_found_stale")
        mmu.retry_on = kvm.mmu_invalidate_in_progress, no_window
    else:
        root = mmu.root if kvm.is_direct_gpa(fault.addr) or not kvm.has_mirror else mmu.mirror_root  # F32
        assert root is not None
        outcome = yield from kvm_tdp_mmu_map(kvm, vcpu, fault, root)
    release_page(kvm, fault)  # F60
    yield kvm.mmu_lock.read_unlock()  # F60
    return outcome


def is_page_fault_stale(kvm: Kvm, vcpu: Vcpu, fault: PageFault) -> Steps[bool]:
    """F31: whether the root is obsolete or the frame was invalidated since F21. mmu_lock held.

    The root asked is always the direct one, also for private faults. The locked recheck is what makes the lockless
    F21 to F2A safe: remove it, and a fault installs what a conversion has already zapped.
    """
    mmu: VcpuMmu = vcpu.arch
    if mmu.root is not None:
        if (yield mmu.root.invalid.read()):
            return True
    elif (yield vcpu.requests.read_once()) & FREE_OBSOLETE_ROOTS.mask:
        return True
    if fault.slot is None:
        return False
    return (yield from invalidate.mmu_invalidate_retry_gfn(kvm, fault.mmu_seq, fault.gfn))


def release_page(kvm: Kvm, fault: PageFault) -> None:
    """kvm_mmu_finish_page_fault: drop the reference that F27 took."""
    if fault.refcounted_page:
        fault.refcounted_page = False
        kvm.host_memory.put_page(fault.pfn)


def kvm_mmu_hugepage_adjust(kvm: Kvm, fault: PageFault) -> Steps[None]:
    """F33: how large the mapping may be: what folio, slot, attributes and vendor allow (reference 3.5)."""
    slot = fault.slot
    if fault.max_level == PG_LEVEL_4K or slot is None:
        return
    level = fault.max_level
    if fault.is_private and kvm.has_mirror:
        level = PG_LEVEL_4K  # the vendor's gmem_max_mapping_level, up to v7
    level = yield from largest_allowed_level(slot, fault.gfn, level)
    if level > PG_LEVEL_4K and not fault.is_private:
        host_level = yield from kvm.primary.host_mapping_level(slot.hva_of(fault.gfn))
        level = min(level, host_level)
    fault.req_level = fault.goal_level = level
    if (fault.gfn ^ fault.pfn) & (level.pages - 1):
        kvm.bug("gfn and pfn of a huge page are not aligned alike", gfn=hex(fault.gfn), pfn=hex(fault.pfn))
    fault.pfn = Pfn(fault.pfn & -level.pages)


def kvm_tdp_mmu_map(kvm: Kvm, vcpu: Vcpu, fault: PageFault, root: KvmMmuPage) -> Steps[RetPf]:
    """F33 to F50: walk from the root, make the tables that are missing, install the leaf. mmu_lock read-held."""
    kvm.mmu_lock.assert_held_for_read()
    kernel = kvm.kernel
    yield from kvm_mmu_hugepage_adjust(kvm, fault)  # F33
    if kernel.events is not None:
        kernel.emit(SpteRequested(fault.gfn, fault.pfn, fault.goal_level.value))  # F34
    yield kvm.rcu.read_lock()  # F34
    it = TdpIter(kvm.page_tables, root, fault.gfn, fault.gfn + 1, gfn_bits=kvm.direct_bits)
    outcome = RetPf.RETRY
    yield from it.start()  # F35
    while it.valid:
        kernel.charge("kvm_mirror_read_entry")
        # F36, lowering the goal for tables that exist because of NX, needs the mitigation: not modelled for TDX CPUs.
        if is_frozen_spte(it.old_spte):  # F37
            kernel.reached("fault_met_frozen_spte")
            if it.is_mirror:  # frozen entries of a direct table belong to a removed table, and stay
                vcpu.arch.retry_on = it.sptep, thawed
            break
        if it.level == fault.goal_level:  # F38
            outcome = yield from tdp_mmu_map_handle_target_level(kvm, fault, it)  # F50
            break
        is_table = is_shadow_present_pte(it.old_spte) and not is_last_spte(it.old_spte, it.level)
        if not is_table and not (yield from _make_table(kvm, vcpu, it)):
            break
        yield from it.next()  # F39, F3E
    yield kvm.rcu.read_unlock()  # F60
    return outcome


def _make_table(kvm: Kvm, vcpu: Vcpu, it: TdpIter) -> Steps[bool]:
    """F3A to F3D: a table is missing on the way down. False if somebody else was faster or the hook refused."""
    if is_shadow_present_pte(it.old_spte):  # F3B
        if it.is_mirror:
            kvm.bug("a mirror huge page would be split under mmu_lock for read", gfn=hex(it.gfn))
        return False  # splitting normal huge pages in the fault path comes with dirty logging
    mmu: VcpuMmu = vcpu.arch
    sp = mmu.caches.alloc_sp(mirror=it.is_mirror)  # F3A
    init_child_sp(kvm, sp, it)
    if not (yield from tdp_mmu_link_sp(kvm, it, sp)):  # F3B
        free_sp(kvm, sp)  # F3C: never linked, so no grace period
        return False
    kvm.kernel.count("mmu.tables_linked")  # F3D
    return True


def tdp_mmu_map_handle_target_level(kvm: Kvm, fault: PageFault, it: TdpIter) -> Steps[RetPf]:
    """L1 to L8: the SPTE at the goal level."""
    kernel = kvm.kernel
    old_spte = it.old_spte
    if it.sp.level != fault.goal_level:  # L1
        return RetPf.RETRY
    if is_shadow_present_pte(old_spte) and is_last_spte(old_spte, it.level):  # L2
        allowed = fault.prefetch or not fault.write or is_writable_pte(old_spte)
        if allowed:
            if spte_to_pfn(old_spte) != fault.pfn:
                kernel.find(
                    "stale-spte", "WARN: a spurious fault finds another pfn mapped", gfn=hex(fault.gfn)
                )
            return RetPf.SPURIOUS
    new_spte = _make_leaf(fault, it)  # L3
    if new_spte == old_spte:  # L4
        return RetPf.SPURIOUS
    if not (yield from tdp_mmu_set_spte_atomic(kvm, it, new_spte)):  # L5
        return RetPf.RETRY
    if is_shadow_present_pte(old_spte) and not is_last_spte(old_spte, it.level):  # L6
        yield from kvm.flush_remote_tlbs()
    if kernel.events is not None:
        kernel.emit(SpteSet(fault.gfn, new_spte, it.level.value))  # L7
    return RetPf.FIXED  # L8


def _make_leaf(fault: PageFault, it: TdpIter) -> int:
    if it.is_mirror:
        return make_mirror_leaf(fault.pfn, it.level)
    return make_spte(
        pfn=fault.pfn,
        level=it.level,
        writable=fault.map_writable,
        host_writable=fault.map_writable,
        executable=True,
        dirty=fault.write,
    )
