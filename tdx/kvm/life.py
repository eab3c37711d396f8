"""A TD's life: created, given vCPUs, filled and measured, finalized; flushed, unkeyed, reclaimed.

Source: tdx.c (__tdx_td_init, tdx_td_vcpu_init, tdx_vcpu_init_mem_region, tdx_td_finalize, tdx_mmu_release_hkid,
tdx_vm_destroy); reference 3.11, 4.5; module reference 6.1.
"""

from __future__ import annotations

from mmu.errno import Errno
from mmu.fault import PageFault as Fault
from mmu.fault import RetPf, await_retry, kvm_tdp_mmu_map
from mmu.gmem import kvm_gmem_get_pfn
from mmu.gmem_paths import kvm_gmem_invalidate_begin, kvm_gmem_invalidate_end
from mmu.roots import kvm_mmu_free_roots, kvm_mmu_load, kvm_tdp_mmu_invalidate_roots
from mmu.vm import Kvm
from mmu.zap import zap_scheduled_roots
from sim import Steps
from tdx.kvm.state import KvmTdx, TdState
from tdx.module import (
    SEPT_VE_DISABLE,
    TDCX_PAGES,
    TDVPS_PAGES,
    SeamcallReturn,
    tdh_mng_addcx,
    tdh_mng_create,
    tdh_mng_init,
    tdh_mng_key_config,
    tdh_mng_key_freeid,
    tdh_mng_vpflushdone,
    tdh_mr_extend,
    tdh_mr_finalize,
    tdh_phymem_cache_wb,
    tdh_phymem_page_reclaim,
    tdh_phymem_page_wbinvd,
    tdh_vp_addcx,
    tdh_vp_create,
    tdh_vp_flush,
    tdh_vp_init,
)
from vcpu.addresses import GfnRange, Gpa, Pfn, gpa_of
from vcpu.vcpu import Vcpu

EXTEND_BYTES = 256


def must(tdx: KvmTdx, leaf: str, result: SeamcallReturn) -> None:
    """A call of the life cycle that must not fail."""
    tdx.bug_on(result, leaf)


def td_init(tdx: KvmTdx, *, pending_ve_disable: bool, gpaw: bool, max_vcpus: int) -> Steps[None]:
    """KVM_TDX_INIT_VM: create, configure the key on every package, add control pages, initialise."""
    module, td, memory = tdx.module, tdx.td, tdx.kvm.host_memory
    must(tdx, "TDH.MNG.CREATE", (yield from tdh_mng_create(module, td=td, hkid=tdx.hkid)))
    for package in range(module.packages):
        must(tdx, "TDH.MNG.KEY.CONFIG", (yield from tdh_mng_key_config(module, td=td, package=package)))
    for _ in range(TDCX_PAGES):
        page = memory.alloc(0, "tdcx")
        tdx.tdcs_pages.append(page)
        must(tdx, "TDH.MNG.ADDCX", (yield from tdh_mng_addcx(module, td=td, pfn=page)))
    attributes = SEPT_VE_DISABLE if pending_ve_disable else 0
    result = yield from tdh_mng_init(module, td=td, attributes=attributes, max_vcpus=max_vcpus, gpaw=gpaw)
    must(tdx, "TDH.MNG.INIT", result)
    yield tdx.state.write(TdState.INITIALIZED)


def td_vcpu_init(tdx: KvmTdx, vcpu: Vcpu) -> Steps[None]:
    """KVM_TDX_INIT_VCPU, under mmu_lock for write (the module takes the TDR exclusive); associates it with its home LP."""
    module, td, memory = tdx.module, tdx.td, tdx.kvm.host_memory
    tdvpr = memory.alloc(0, "tdvpr")
    tdx.tdvpr[vcpu.index] = tdvpr
    pages = tdx.vcpu_pages[vcpu.index] = [tdvpr]
    yield tdx.kvm.mmu_lock.write_lock()
    must(tdx, "TDH.VP.CREATE", (yield from tdh_vp_create(module, td=td, tdvpr_pfn=tdvpr)))
    for _ in range(TDVPS_PAGES - 1):
        page = memory.alloc(0, "tdcx")
        pages.append(page)
        must(tdx, "TDH.VP.ADDCX", (yield from tdh_vp_addcx(module, tdvpr_pfn=tdvpr, pfn=page)))
    lp = tdx.lps[vcpu.index % len(tdx.lps)]
    must(tdx, "TDH.VP.INIT", (yield from tdh_vp_init(module, tdvpr_pfn=tdvpr, lp=lp)))
    yield tdx.kvm.mmu_lock.write_unlock()


def init_mem_region(tdx: KvmTdx, vcpu: Vcpu, gfns: GfnRange, *, measure: bool = True) -> Steps[int]:
    """KVM_TDX_INIT_MEM_REGION: copy, map and measure each page of `gfns` (reference 3.11). 0 or a negative errno.

    No invalidation check: slots_lock and the file's invalidate lock keep everybody away who could take the pages.
    """
    kvm = tdx.kvm
    yield kvm.lock.lock()
    yield kvm.slots_lock.lock()
    if (yield tdx.state.read()) is TdState.RUNNABLE:
        yield kvm.slots_lock.unlock()
        yield kvm.lock.unlock()
        return -Errno.EINVAL
    yield kvm.srcu.read_lock()
    if vcpu.arch.mirror_root is None:
        yield from kvm_mmu_load(kvm, vcpu)
    code = 0
    for gfn in gfns.frames():
        code = yield from _populate(tdx, vcpu, gfn)
        if code:
            break
        if measure:
            for offset in range(0, 4096, EXTEND_BYTES):
                result = yield from tdh_mr_extend(tdx.module, td=tdx.td, gpa=Gpa(gpa_of(gfn) + offset))
                must(tdx, "TDH.MR.EXTEND", result)
    yield kvm.srcu.read_unlock()
    yield kvm.slots_lock.unlock()
    yield kvm.lock.unlock()
    return code


def _populate(tdx: KvmTdx, vcpu: Vcpu, gfn: int) -> Steps[int]:
    """kvm_gmem_populate and tdx_gmem_post_populate for one page."""
    kvm = tdx.kvm
    slot = kvm.slots().find(gfn)
    if slot is None or slot.gmem is None:
        return -14
    file = slot.gmem.file.peek()
    if file is None:
        return -14
    yield file.inode.invalidate_lock.write_lock()
    got = yield from kvm_gmem_get_pfn(slot.gmem.file, slot, gfn)
    if not isinstance(got, tuple):
        yield file.inode.invalidate_lock.write_unlock()
        return -int(got)
    fault = Fault(kvm, gpa_of(gfn), "write", is_private=True, prefetch=True)
    fault.slot = slot
    fault.pfn, _ = got
    fault.max_level = fault.goal_level
    tdx.page_add_src = fault.pfn
    vcpu.arch.caches.topup()
    outcome = RetPf.RETRY
    while outcome is RetPf.RETRY:
        yield kvm.mmu_lock.read_lock()
        outcome = yield from kvm_tdp_mmu_map(kvm, vcpu, fault, vcpu.arch.mirror_root)
        yield kvm.mmu_lock.read_unlock()
        if kvm.vm_dead.peek():
            outcome = RetPf.INVALID
        elif outcome is RetPf.RETRY:
            yield from await_retry(kvm, vcpu)
    tdx.page_add_src = None
    kvm.host_memory.put_page(fault.pfn)
    yield file.inode.invalidate_lock.write_unlock()
    return 0 if outcome is RetPf.FIXED else -5


def td_finalize(tdx: KvmTdx) -> Steps[None]:
    """KVM_TDX_FINALIZE_VM: first the state, then the permission to prefault: who sees the second sees the first.

    Takes the locks that the other calls which build a TD take: the module refuses them as busy beside one another.
    """
    kvm = tdx.kvm
    yield kvm.lock.lock()
    yield kvm.slots_lock.lock()
    must(tdx, "TDH.MR.FINALIZE", (yield from tdh_mr_finalize(tdx.module, td=tdx.td)))
    yield tdx.state.write(TdState.RUNNABLE)
    yield kvm.pre_fault_allowed.write(True)
    yield kvm.slots_lock.unlock()
    yield kvm.lock.unlock()


def release_gmem(kvm: Kvm) -> Steps[None]:
    """The VMM closes its guest_memfd files: kvm_gmem_release zaps every leaf while the HKID is still assigned."""
    yield kvm.slots_lock.lock()
    for slot in list(kvm.slots()):
        file = slot.gmem.file.peek() if slot.gmem is not None else None
        if file is None:
            continue
        yield file.inode.invalidate_lock.write_lock()
        first = slot.gmem_index(slot.base_gfn)
        yield from kvm_gmem_invalidate_begin(kvm, file, first, first + slot.npages)
        yield from kvm_gmem_invalidate_end(kvm, file, first, first + slot.npages)
        yield from file.unbind(slot)
        yield from file.inode.truncate_range(first, first + slot.npages)
        yield file.inode.invalidate_lock.write_unlock()
    yield kvm.slots_lock.unlock()


def vm_destroy(kvm: Kvm, tdx: KvmTdx | None) -> Steps[None]:
    """kvm_destroy_vm, with no vCPU running: files, key, roots, control pages, in this order."""
    yield from release_gmem(kvm)
    if tdx is not None:
        yield from tdx_mmu_release_hkid(tdx)
    for vcpu in kvm.vcpus:
        yield from kvm_mmu_free_roots(kvm, vcpu, mirror=True)
        vcpu.arch.caches.drain()
    yield kvm.mmu_lock.write_lock()
    for mirror in (False, True):
        yield from kvm_tdp_mmu_invalidate_roots(kvm, mirror=mirror)
    yield from zap_scheduled_roots(kvm, shared=False)
    yield kvm.mmu_lock.write_unlock()
    yield kvm.rcu.barrier()
    if tdx is not None:
        yield from tdx_reclaim_control_pages(tdx)
    kvm.destroyed = True
    kvm.kernel.count("vm.destroyed")


def tdx_mmu_release_hkid(tdx: KvmTdx) -> Steps[None]:
    """tdx_mmu_release_hkid: flush every vCPU off its LP, then the caches of every package, then free the key."""
    module, td = tdx.module, tdx.td
    for tdvpr in tdx.tdvpr.values():
        associated = module.vcpu(tdvpr).assoc_lpid.peek()
        if associated >= 0:
            must(
                tdx,
                "TDH.VP.FLUSH",
                (yield from tdh_vp_flush(module, tdvpr_pfn=tdvpr, lp=tdx.lps[associated])),
            )
    must(tdx, "TDH.MNG.VPFLUSHDONE", (yield from tdh_mng_vpflushdone(module, td=td)))
    for package in range(module.packages):
        must(tdx, "TDH.PHYMEM.CACHE.WB", (yield from tdh_phymem_cache_wb(module, package=package)))
    must(tdx, "TDH.MNG.KEY.FREEID", (yield from tdh_mng_key_freeid(module, td=td)))
    tdx.hkid = -1


def tdx_reclaim_control_pages(tdx: KvmTdx) -> Steps[None]:
    """tdx_vm_destroy: vCPUs' pages, the TDCS, and last the TDR, whose lines are the module's own key's."""
    pages = [page for owned in tdx.vcpu_pages.values() for page in owned] + tdx.tdcs_pages
    for page in pages:
        yield from _reclaim(tdx, page)
    yield from _reclaim(tdx, tdx.td.tdr_pfn)
    result = yield from tdh_phymem_page_wbinvd(tdx.module, pfn=tdx.td.tdr_pfn, hkid=0)
    must(tdx, "TDH.PHYMEM.PAGE.WBINVD", result)


def _reclaim(tdx: KvmTdx, page: Pfn) -> Steps[None]:
    must(tdx, "TDH.PHYMEM.PAGE.RECLAIM", (yield from tdh_phymem_page_reclaim(tdx.module, pfn=page)))
    tdx.kvm.host_memory.free(page, 0)
