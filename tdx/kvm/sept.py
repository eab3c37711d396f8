"""The mirror's hooks: every change of a mirror SPTE, repeated in the S-EPT.

Installing runs under mmu_lock for read, beside other faults: a BUSY module is an -EBUSY that makes the fault retry.
Removing runs under mmu_lock for write and must not fail. Source: tdx.c, tdx_sept_*(); reference 3.8, 4.4, 4.5.
"""

from __future__ import annotations

from mmu.errno import Errno
from mmu.external import Awaited
from mmu.page_table import KvmMmuPage
from mmu.spte import spte_to_pfn
from sim import Steps
from tdx.kvm.no_vcpus import tdh_do_no_vcpus, tdx_track
from tdx.kvm.state import KvmTdx, TdState, operand_busy
from tdx.module import (
    SeamcallReturn,
    tdh_mem_page_add,
    tdh_mem_page_aug,
    tdh_mem_page_remove,
    tdh_mem_range_block,
    tdh_mem_sept_add,
    tdh_phymem_page_reclaim,
    tdh_phymem_page_wbinvd,
)
from vcpu.addresses import PG_LEVEL_4K, Gfn, PgLevel, gpa_of


class TdxSept:
    """ExternalSpt for a TD."""

    def __init__(self, tdx: KvmTdx) -> None:
        self.tdx = tdx
        self.kernel = tdx.kvm.kernel

    def link_external_spt(self, gfn: Gfn, level: PgLevel, sp: KvmMmuPage) -> Steps[int]:
        """tdx_sept_link_private_spt: TDH.MEM.SEPT.ADD of the table's external page."""
        tdx = self.tdx
        result = yield from tdh_mem_sept_add(
            tdx.module, td=tdx.td, gpa=gpa_of(gfn), level=level, pfn=sp.external_spt
        )
        return self._installed(result, "TDH.MEM.SEPT.ADD")

    def set_external_spte(self, gfn: Gfn, level: PgLevel, new_spte: int) -> Steps[int]:
        """tdx_sept_set_private_spte: PAGE.AUG once the TD is runnable, PAGE.ADD while it is built."""
        tdx = self.tdx
        if level != PG_LEVEL_4K:
            tdx.kvm.bug("a private mapping larger than 4K", gfn=hex(gfn))
            return -Errno.EIO
        state = yield tdx.state.read()
        if state is TdState.RUNNABLE:
            result = yield from tdh_mem_page_aug(
                tdx.module, td=tdx.td, gpa=gpa_of(gfn), level=level, pfn=spte_to_pfn(new_spte)
            )
            return self._installed(result, "TDH.MEM.PAGE.AUG")
        if tdx.page_add_src is None:
            tdx.kvm.bug("a private page is mapped before finalize, outside of INIT_MEM_REGION", gfn=hex(gfn))
            return -Errno.EIO
        result = yield from tdh_mem_page_add(
            tdx.module, td=tdx.td, gpa=gpa_of(gfn), pfn=spte_to_pfn(new_spte), source_pfn=tdx.page_add_src
        )
        return self._installed(result, "TDH.MEM.PAGE.ADD")

    def _installed(self, result: SeamcallReturn, leaf: str) -> int:
        if operand_busy(result):
            self.kernel.reached("seamcall_busy_retried")
            self.tdx.note_busy(result)
            return -Errno.EBUSY
        return -Errno.EIO if self.tdx.bug_on(result, leaf) else 0

    def awaited(self) -> Awaited | None:
        """The lock that made the running thread's last call busy."""
        return self.tdx.awaited()

    def remove_external_spte(self, gfn: Gfn, level: PgLevel, old_spte: int) -> Steps[int]:
        """tdx_sept_remove_private_spte, Z1 to Z6. On a failure the page is lost to KVM, and so is the VM.

        Cost: `removal_request_base` and `removal_per_vcpu`, beside what the SEAMCALLs and the kick cost.
        """
        tdx = self.tdx
        module, td, gpa, pfn = tdx.module, tdx.td, gpa_of(gfn), spte_to_pfn(old_spte)
        began_ns = self.kernel.now_ns
        self.kernel.charge("removal_request_base")
        for _ in tdx.kvm.vcpus:
            self.kernel.charge("removal_per_vcpu")
        if not tdx.hkid_assigned:  # Z1
            tdx.kvm.bug("a leaf is removed after the HKID was freed", gfn=hex(gfn))
            return -Errno.EIO
        if level != PG_LEVEL_4K:
            tdx.kvm.bug("a private mapping larger than 4K", gfn=hex(gfn))
            return -Errno.EIO
        result = yield from tdh_do_no_vcpus(  # Z2
            tdx, lambda: tdh_mem_range_block(module, td=td, gpa=gpa, level=level)
        )
        if tdx.bug_on(result, "TDH.MEM.RANGE.BLOCK"):
            return -Errno.EIO
        if not (yield from tdx_track(tdx)):  # Z3
            return -Errno.EIO
        result = yield from tdh_do_no_vcpus(  # Z4
            tdx, lambda: tdh_mem_page_remove(module, td=td, gpa=gpa, level=level)
        )
        if tdx.bug_on(result, "TDH.MEM.PAGE.REMOVE"):
            return -Errno.EIO
        result = yield from tdh_phymem_page_wbinvd(module, pfn=pfn, hkid=tdx.hkid)  # Z5
        if tdx.bug_on(result, "TDH.PHYMEM.PAGE.WBINVD"):
            return -Errno.EIO
        tdx.kvm.memory.zero(pfn, level.pages)  # Z6
        self.kernel.charge("movdir64b_clear_4k")
        self.kernel.record("sept.remove_leaf", self.kernel.now_ns - began_ns)
        return 0

    def free_external_spt(self, gfn: Gfn, level: PgLevel, sp: KvmMmuPage) -> Steps[int]:
        """tdx_sept_free_private_spt: only when the TD's key is gone; KVM never removes a table of a living TD."""
        tdx = self.tdx
        if tdx.hkid_assigned:
            tdx.kvm.bug("an S-EPT table is freed while the HKID is assigned", gfn=hex(gfn))
            return -Errno.EIO
        if sp.external_spt is None:
            return 0
        result = yield from tdh_phymem_page_reclaim(tdx.module, pfn=sp.external_spt)
        return -Errno.EIO if tdx.bug_on(result, "TDH.PHYMEM.PAGE.RECLAIM") else 0
