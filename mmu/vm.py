"""struct kvm, as far as the MMU touches it, and what the whole VM does at once.

Source: include/linux/kvm_host.h, virt/kvm/kvm_main.c; reference 1.1 and 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmu.attributes import MemoryAttributes
from mmu.host_memory import HostMemory, PrimaryMmu
from mmu.memslots import Memslot, Memslots, MemslotsPointer
from mmu.page_table import KvmMmuPage, PageTables
from sim import Cell, Kernel, Steps
from sim.dependence import WRITE, note
from vcpu.addresses import Gfn, GfnRange
from vcpu.tlb_ledger import place_of_caller
from vcpu.vcpu import TLB_FLUSH, VM_DEAD, Request, Vcpu, kvm_make_all_cpus_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmu.external import ExternalSpt
    from mmu.ledgers import MmuLedger
    from vcpu.memory import Memory
    from vcpu.pcpu import Pcpu

INVALID_GPA = (1 << 64) - 1
EVERYTHING = GfnRange(Gfn(0), Gfn(1 << 52))
"""All guest frames."""


class Kvm:
    """One VM.

    `external` is the mirror's hook, or None: the VM has no mirror (a plain VM, or an SNP-like one whose private memory
    one nested page table maps). The four notions that must not be derived from one another (Kai Huang, May 2024):
    `attributes` says what userspace made of a gfn; a fault's `is_private` what an access was; a table's `is_mirror` which
    table it is; `has_mirror` whether hooks exist at all.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        pcpus: Sequence[Pcpu],
        memory: Memory,
        host_memory: HostMemory,
        root_level: int = 4,
        direct_bits: int = 0,
        has_private_mem: bool = False,
    ) -> None:
        self.kernel = kernel
        self.pcpus = list(pcpus)
        self.vcpus: list[Vcpu] = []
        self.memory = memory
        self.host_memory = host_memory
        self.primary = PrimaryMmu(kernel, host_memory)
        self.root_level = root_level
        self.direct_bits = direct_bits
        self.has_private_mem = has_private_mem
        self.external: ExternalSpt | None = None
        self.arch: Any = None
        self.ledger: MmuLedger | None = None
        self.lock = kernel.mutex("kvm.lock")
        self.slots_lock = kernel.mutex("slots_lock")
        self.mmu_lock = kernel.rwlock("mmu_lock")
        self.tdp_mmu_pages_lock = kernel.spinlock("tdp_mmu_pages_lock")
        self.mn_invalidate_lock = kernel.spinlock("mn_invalidate_lock")
        self.rcu = kernel.rcu()
        self.memslots = MemslotsPointer(kernel)
        self.srcu = self.memslots.srcu
        self.attributes = MemoryAttributes(kernel)
        self.page_tables = PageTables(kernel)
        self.tdp_mmu_roots: list[KvmMmuPage] = []
        self.mmu_invalidate_seq: Cell[int] = kernel.cell("mmu_invalidate_seq", 0)
        self.mmu_invalidate_in_progress: Cell[int] = kernel.cell("mmu_invalidate_in_progress", 0)
        self.mmu_invalidate_range_start: Cell[int] = kernel.cell("mmu_invalidate_range_start", INVALID_GPA)
        self.mmu_invalidate_range_end: Cell[int] = kernel.cell("mmu_invalidate_range_end", INVALID_GPA)
        self.mn_active_invalidate_count: Cell[int] = kernel.cell("mn_active_invalidate_count", 0)
        self.mmu_valid_gen: Cell[int] = kernel.cell("mmu_valid_gen", 0)
        self.pre_fault_allowed: Cell[bool] = kernel.cell("pre_fault_allowed", True)
        self.vm_bugged = False
        self.vm_dead: Cell[bool] = kernel.cell("vm_dead", False)
        self.destroyed = False

    @property
    def has_mirror(self) -> bool:
        """kvm_has_mirrored_tdp."""
        return self.external is not None

    def is_direct_gpa(self, gpa: int) -> bool:
        """kvm_is_addr_direct: whether the address belongs to the direct root; true for every VM without a shared bit."""
        return not self.direct_bits or bool(gpa >> 12 & self.direct_bits)

    def bug(self, condition: str, **details: Any) -> None:
        """KVM_BUG_ON fired: a finding, and the VM is dead (kvm_vm_bugged). Never yields."""
        self.vm_bugged = True
        note(self.vm_dead.name, WRITE)
        self.vm_dead.v = True
        for vcpu in self.vcpus:
            note(vcpu.requests.name, WRITE)
            vcpu.requests.v |= VM_DEAD.mask
        self.kernel.find("kvm-bug", f"KVM_BUG_ON: {condition}", **details)

    def make_all_cpus_request(self, request: Request, here: Pcpu | None = None) -> Steps[int]:
        """kvm_make_all_cpus_request."""
        kicked = yield from kvm_make_all_cpus_request(self.kernel, self.vcpus, self.pcpus, request, here=here)
        if self.ledger is not None:
            self.ledger.flushes.told_all(request)
        return kicked

    def flush_remote_tlbs(self) -> Steps[None]:
        """kvm_flush_remote_tlbs: every vCPU is out of the guest on return, and flushes before it enters again."""
        self.kernel.count("remote_tlb_flush")
        yield from self.make_all_cpus_request(TLB_FLUSH)

    def promise_unmapped(self, what: str, gfns: GfnRange, *, direct: bool, mirror: bool) -> None:
        """A point from which the caller relies on nothing mapping `gfns`, in tables or TLBs: for observers, never yields.

        `direct` and `mirror` say in which tables; a VM without a mirror has everything in the direct one.
        """
        if self.ledger is not None:
            direct = direct or not self.has_mirror
            self.ledger.unmapped(what, gfns, place_of_caller(), direct=direct, mirror=mirror)

    def promise_flushed(self, what: str, gfns: GfnRange = EVERYTHING) -> None:
        """A point from which no older translation of the direct tables is used, whatever they map by now. Never yields."""
        if self.ledger is not None:
            self.ledger.flushed(what, gfns, place_of_caller(), direct=True, mirror=False)

    def slots(self) -> Memslots:
        """The published memslots, for observers and for holders of slots_lock."""
        return self.memslots.peek()

    def slot_of(self, gfn: int) -> Memslot | None:
        """The slot of a frame now, for observers."""
        return self.slots().find(Gfn(gfn))
