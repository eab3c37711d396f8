"""Events of KVM's MMU, under the kernel's tracepoint names and fields (mmu/mmutrace.h, trace.h; reference section 10)."""

from __future__ import annotations

from sim import Event


class KvmPageFault(Event):
    """An EPT violation is about to be handled (F06)."""

    name = "kvm_page_fault"
    vcpu_id: int
    guest_rip: int
    fault_address: int
    error_code: int


class SpteRequested(Event):
    """The locked part of a fault knows its frame and level (F34)."""

    name = "kvm_mmu_spte_requested"
    gfn: int
    pfn: int
    pg_level: int


class SpteSet(Event):
    """A fault installed a leaf (L7)."""

    name = "kvm_mmu_set_spte"
    gfn: int
    spte: int
    pg_level: int


class SpteChanged(Event):
    """An SPTE got a new value (handle_changed_spte, reference 4.2)."""

    name = "kvm_tdp_mmu_spte_changed"
    as_id: int
    gfn: int
    pg_level: int
    old_spte: int
    new_spte: int
    mirror: bool


class GetPage(Event):
    """A page table was made or found (F3A)."""

    name = "kvm_mmu_get_page"
    gfn: int
    pg_level: int
    mirror: bool
    created: bool


class PrepareZapPage(Event):
    """A page table was unlinked (reference 4.3)."""

    name = "kvm_mmu_prepare_zap_page"
    gfn: int
    pg_level: int
    mirror: bool


class ZapAllFast(Event):
    """All direct roots were made obsolete at once (reference 4.10)."""

    name = "kvm_mmu_zap_all_fast"
    mmu_valid_gen: int
    roots: int


class SetMemAttributes(Event):
    """A conversion began (C1)."""

    name = "kvm_vm_set_mem_attributes"
    start: int
    end: int
    attr: int


class UnmapHvaRange(Event):
    """An MMU notifier closed a range of host addresses."""

    name = "kvm_unmap_hva_range"
    start: int
    end: int


class PageFaultDone(Event):
    """What became of one pass through the fault handler (not a kernel tracepoint)."""

    name = "mmu.fault_done"
    vcpu_id: int
    gfn: int
    private: bool
    result: str
