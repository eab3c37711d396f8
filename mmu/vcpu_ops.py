"""What every kind of VM does around a guest: requests, roots, EPT violations, and what its VMM answers.

This is `VcpuOps` and `GuestSide` for a plain VM, and for an SNP-like one: private memory without a mirror, one nested
table for both, no private hook anywhere. TDX overrides what differs (tdx/kvm).
Source: x86.c (vcpu_enter_guest), vmx.c, mmu.c (kvm_mmu_page_fault); reference 3.9, 9.
"""

from __future__ import annotations

from typing import NamedTuple

from mmu.conversion import kvm_vm_set_mem_attributes
from mmu.ept_walk import ept_walk
from mmu.errno import Errno, errno_name
from mmu.events import KvmPageFault
from mmu.fault import Outcome, RetPf, await_retry, kvm_mmu_do_page_fault
from mmu.gmem_paths import kvm_gmem_punch_hole
from mmu.ledgers import DIRECT
from mmu.notifier import invalidate_hva_range
from mmu.roots import kvm_mmu_free_obsolete_roots, kvm_mmu_load
from mmu.vm import Kvm
from sim import Steps
from vcpu.addresses import Gfn, GfnRange, Gpa, PgLevel, gfn_of
from vcpu.exits import ExitReason, GuestExit
from vcpu.guest import AcceptStatus, Guest
from vcpu.pcpu import Pcpu
from vcpu.tlb import Translation
from vcpu.vcpu import FREE_OBSOLETE_ROOTS, LOAD_MMU_PGD, TLB_FLUSH, VM_DEAD, Request, Vcpu

MAP_GPA_CHUNK = 2 << 20
"""TDX_MAP_GPA_MAX_LEN: one exit to the VMM converts at most this many bytes."""
GIVE_UP = -1
"""What `handle_exit` returns when the vCPU cannot go on; any other non-positive value is an exit to the VMM."""


class MemoryFault(NamedTuple):
    """KVM_EXIT_MEMORY_FAULT: the guest accessed a frame as private or shared that is not."""

    gfn: Gfn
    private: bool


class MapGpaRange(NamedTuple):
    """KVM_HC_MAP_GPA_RANGE: convert one chunk; `end` is where the guest's request ends."""

    start: Gpa
    stop: Gpa
    end: Gpa
    to_private: bool


class VmOps:
    """VcpuOps and GuestSide of a VM without a TDX module."""

    def __init__(self, kvm: Kvm, guest: Guest) -> None:
        self.kvm = kvm
        self.kernel = kvm.kernel
        self.guest = guest
        self.user_exits: dict[int, MemoryFault | MapGpaRange] = {}
        self.space_name = "ept"

    # VcpuOps

    def load(self, vcpu: Vcpu, previous: Pcpu | None) -> Steps[None]:
        """vcpu_load: a vCPU on another pCPU than before flushes what that one may have cached for it long ago."""
        if previous is not None and previous is not vcpu.pcpu:
            self.kernel.count("vcpu.migrated")
            yield vcpu.requests.fetch_or(TLB_FLUSH.mask)

    def service_requests(self, vcpu: Vcpu) -> Steps[int]:
        """V1: in the kernel's order: VM_DEAD, FREE_OBSOLETE_ROOTS, LOAD_MMU_PGD, TLB_FLUSH."""
        if (yield from self._check_request(vcpu, VM_DEAD)):
            self.kernel.count("vcpu.saw_vm_dead")
            vcpu.shut_down = True
            return -Errno.EIO
        if (yield from self._check_request(vcpu, FREE_OBSOLETE_ROOTS)):
            yield from kvm_mmu_free_obsolete_roots(self.kvm, vcpu)
        if (yield from self._check_request(vcpu, LOAD_MMU_PGD)) or (
            yield from self._check_request(vcpu, TLB_FLUSH)
        ):
            self.flush_tlb(vcpu)
        return 1

    def _check_request(self, vcpu: Vcpu, request: Request) -> Steps[bool]:
        """kvm_check_request: test, and clear if it was set."""
        if not (yield vcpu.requests.read_once()) & request.mask:
            return False
        yield vcpu.requests.fetch_and(~request.mask)
        return True

    def flush_tlb(self, vcpu: Vcpu) -> None:
        """Flush this pCPU's translations of the direct root. Cost: `invept_single`."""
        self.kernel.charge("invept_single")
        vcpu.pcpu.tlb.flush(self.space_name)
        self.kernel.count("tlb_flush")

    def reload_mmu(self, vcpu: Vcpu) -> Steps[int]:
        """V3: kvm_mmu_reload."""
        if (yield from self._check_request(vcpu, FREE_OBSOLETE_ROOTS)):
            yield from kvm_mmu_free_obsolete_roots(self.kvm, vcpu)
        if vcpu.arch.root is not None:
            return 1
        code = yield from kvm_mmu_load(self.kvm, vcpu)
        self.flush_tlb(vcpu)
        return code

    def run(self, vcpu: Vcpu) -> Steps[GuestExit | None]:
        """V10, V11: VMX entry and exit. Cost: `vmx_roundtrip`, half on each side."""
        roundtrip_ns = self.kernel.draw("vmx_roundtrip")
        self.kernel.spend(roundtrip_ns // 2)
        left = yield from self.guest.run(vcpu)
        self.kernel.spend(roundtrip_ns - roundtrip_ns // 2)
        return left

    def await_entry(self, vcpu: Vcpu) -> Steps[None]:
        """Nothing keeps a plain VM's vCPU out."""
        yield from ()

    def handle_exit(self, vcpu: Vcpu, guest_exit: GuestExit) -> Steps[int]:
        """V15."""
        if guest_exit.reason is ExitReason.EPT_VIOLATION:
            return (yield from self.handle_ept_violation(vcpu, guest_exit))
        if guest_exit.reason is ExitReason.HLT:
            return (yield from self.handle_hlt(vcpu))
        if guest_exit.reason is ExitReason.TDCALL:
            return self.map_gpa(vcpu, guest_exit)
        self.kvm.bug(f"unexpected exit {guest_exit.reason.name}")
        return GIVE_UP

    def handle_hlt(self, vcpu: Vcpu) -> Steps[int]:
        """kvm_vcpu_block: sleep until woken or until the program's bound. A shut-down guest just leaves."""
        if vcpu.instruction is None:
            return GIVE_UP
        yield self.kvm.srcu.read_unlock()
        yield vcpu.halted.wait(vcpu.instruction.bound_ns)
        yield self.kvm.srcu.read_lock()
        vcpu.vmcall_result = "woken"
        return 1

    def handle_ept_violation(self, vcpu: Vcpu, guest_exit: GuestExit) -> Steps[int]:
        """handle_ept_violation; RET_PF_RETRY simply resumes the guest, which faults again."""
        private = self.is_private_fault(guest_exit.gpa)
        self.trace_fault(vcpu, guest_exit)
        self.kernel.count("ept_violation")
        access = access_of(guest_exit.qualification)
        outcome, _ = yield from kvm_mmu_do_page_fault(
            self.kvm, vcpu, guest_exit.gpa, access, is_private=private
        )
        if outcome is RetPf.RETRY:
            yield from await_retry(self.kvm, vcpu)
        return self.resolve(vcpu, guest_exit, outcome, private=private)

    def is_private_fault(self, gpa: Gpa) -> bool:
        """SNP decides by the page state: here, the attribute of the frame. A plain VM has no private faults."""
        return self.kvm.has_private_mem and self.kvm.attributes.peek_private(gfn_of(gpa))

    def trace_fault(self, vcpu: Vcpu, guest_exit: GuestExit) -> None:
        """F06."""
        if self.kernel.events is not None:
            self.kernel.emit(KvmPageFault(vcpu.index, vcpu.rip, guest_exit.gpa, guest_exit.qualification))

    def resolve(self, vcpu: Vcpu, guest_exit: GuestExit, outcome: Outcome, *, private: bool) -> int:
        """What a fault's outcome means for the loop (reference 3.9)."""
        retried = outcome is RetPf.RETRY
        self.kernel.retried("guest access")
        vcpu.fault_name = "fault.retry" if retried else "fault.private" if private else "fault.shared"
        if isinstance(outcome, RetPf):
            if outcome is RetPf.EMULATE:
                return self._emulate(vcpu, private=private)
            return 1
        vcpu.fault_name = ""
        if outcome is Errno.EFAULT and self.kvm.has_private_mem:
            gfn = Gfn(gfn_of(guest_exit.gpa) & ~self.kvm.direct_bits)
            self.user_exits[vcpu.index] = MemoryFault(gfn, private)
            return 0
        self.kernel.count(f"vcpu.gave_up.{outcome.name}")
        return GIVE_UP

    def _emulate(self, vcpu: Vcpu, *, private: bool) -> int:
        """MMIO, or a write to a read-only slot: the instruction is emulated, the guest goes on behind it."""
        if private:
            self.kernel.find("kvm-bug", "WARN: a private fault wants emulation")
            return GIVE_UP
        self.kernel.count("mmio")
        self.guest.skip(vcpu)
        return 1

    # What the VMM does.

    def user_exit(self, vcpu: Vcpu, code: int) -> Steps[bool]:
        """Answer an exit to userspace. Cost: `kvm_user_exit` for the way there and back."""
        asked = self.user_exits.pop(vcpu.index, None)
        if code < GIVE_UP:
            self.kernel.count(f"vcpu.gave_up.{errno_name(code)}")
        if code < 0 or asked is None:
            return False
        self.kernel.charge("kvm_user_exit")
        if isinstance(asked, MemoryFault):
            if self.kvm.slot_of(asked.gfn) is None:
                self.kernel.count("vcpu.gave_up.no_slot")
                return False
            self.kernel.count("memory_fault_exit")
            gfns = GfnRange(asked.gfn, Gfn(asked.gfn + 1))
            return (yield from self.convert(gfns, private=asked.private)) == 0
        error = yield from self.convert(
            GfnRange(gfn_of(asked.start), gfn_of(asked.stop)), private=asked.to_private
        )
        if error:
            vcpu.vmcall_result = ("invalid", asked.start)
        elif asked.stop < asked.end:
            vcpu.vmcall_result = ("retry", asked.stop)
        else:
            vcpu.vmcall_result = ("success", asked.end)
        return True

    def convert(self, gfns: GfnRange, *, private: bool) -> Steps[int]:
        """What the VMM does when the guest asks for a conversion."""
        content = None if self.kvm.ledger is None else self.kvm.ledger.content
        if content is not None:
            content.conversion_begins(gfns.frames())
        error = yield from self._convert(gfns, private=private)
        if content is not None:
            content.conversion_ends(gfns.frames())
        return error

    def _convert(self, gfns: GfnRange, *, private: bool) -> Steps[int]:
        """What QEMU does: change the attributes, then discard the backing that is no longer used."""
        error = yield from kvm_vm_set_mem_attributes(self.kvm, gfns, private=private)
        if error:
            return error
        for slot in self.kvm.slots().overlapping(gfns.start, gfns.end):
            low, high = max(gfns.start, slot.base_gfn), min(gfns.end, slot.end_gfn)
            if private:
                yield from invalidate_hva_range(self.kvm, slot.hva_of(low), slot.hva_of(high))
            elif slot.gmem is not None:
                file = slot.gmem.file.peek()
                if file is not None:
                    yield from kvm_gmem_punch_hole(
                        self.kvm, file, slot.gmem_index(low), slot.gmem_index(high - 1) + 1
                    )
        return 0

    def map_gpa(self, vcpu: Vcpu, guest_exit: GuestExit) -> int:
        """KVM_HC_MAP_GPA_RANGE, one chunk an exit (__tdx_map_gpa). Cost: `mapgpa_fixed`."""
        self.kernel.charge("mapgpa_fixed")
        _, start, end, to_private = guest_exit.arguments
        assert isinstance(start, int)
        assert isinstance(end, int)
        stop = min(end, (start // MAP_GPA_CHUNK + 1) * MAP_GPA_CHUNK)
        self.user_exits[vcpu.index] = MapGpaRange(Gpa(start), Gpa(stop), Gpa(end), bool(to_private))
        self.kernel.count("map_gpa.chunks")
        return 0

    # GuestSide

    def walk(self, vcpu: Vcpu, gpa: Gpa, access: str) -> Steps[Translation | GuestExit | None]:
        """The EPT."""
        return (yield from ept_walk(self.kvm.page_tables, vcpu.arch.root, gfn_of(gpa), access))

    def space(self, vcpu: Vcpu, gpa: Gpa) -> str:
        """One address space."""
        return self.space_name

    def key(self, gpa: Gpa) -> int:
        """Content is the host's."""
        return 0

    def accept(self, vcpu: Vcpu, gpa: Gpa, level: PgLevel) -> Steps[AcceptStatus | GuestExit]:
        """Such a guest need not accept; the instruction boundary remains."""
        yield vcpu.mode.read()
        return AcceptStatus.INTERRUPTED if vcpu.interrupted else AcceptStatus.ALREADY

    def check_access(self, vcpu: Vcpu, gpa: Gpa, translation: Translation, access: str, version: int) -> None:
        """The translation was not promised away, and the frame behind it is still in use."""
        gfn = gfn_of(gpa)
        pfn = translation.frame(gfn)
        if self.kvm.ledger is not None:
            self.kvm.ledger.tlb.judge(vcpu, DIRECT, gfn & ~self.kvm.direct_bits, translation)
        if self.kvm.host_memory.owner(pfn) is None:
            self.kernel.find("stale-tlb", f"{vcpu} reaches a freed frame", gpa=hex(gpa), pfn=hex(pfn))


def access_of(qualification: int) -> str:
    """What an EPT violation wanted."""
    return "write" if qualification & 2 else "execute" if qualification & 4 else "read"
