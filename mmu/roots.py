"""Roots: finding, making, invalidating and putting the top tables of the TDP MMU.

A root is reference-counted: by every vCPU that has it loaded and by the MMU itself. It leaves the list when the last
reference goes, which may only happen once it is invalid; its memory is freed after a grace period, because aging and
fast page faults walk roots under RCU alone.
Source: kvm_tdp_mmu_alloc_root, kvm_tdp_mmu_put_root, kvm_tdp_mmu_invalidate_roots, kvm_mmu_load; reference 1.7, 4.10, 9 (V3).
"""

from __future__ import annotations

from mmu.fault import VcpuMmu
from mmu.page_table import KvmMmuPage
from mmu.tdp_mmu import free_sp
from mmu.vm import Kvm
from sim import Steps
from sim.dependence import READ, WRITE, note
from vcpu.addresses import LEVELS
from vcpu.vcpu import Vcpu

ROOTS = "tdp_mmu_roots"
"""For searches that reorder accesses: the list of roots, which is read under RCU and changed under tdp_mmu_pages_lock."""


def kvm_mmu_load(kvm: Kvm, vcpu: Vcpu) -> Steps[int]:
    """V3: give the vCPU its roots; the mirror root is made once and kept until the vCPU dies."""
    mmu: VcpuMmu = vcpu.arch
    if mmu.caches.topup():
        return -12
    if kvm.has_mirror and mmu.mirror_root is None:
        mmu.mirror_root = yield from kvm_tdp_mmu_alloc_root(kvm, mmu, mirror=True)
    mmu.root = yield from kvm_tdp_mmu_alloc_root(kvm, mmu, mirror=False)
    return 1


def kvm_tdp_mmu_alloc_root(kvm: Kvm, mmu: VcpuMmu, *, mirror: bool) -> Steps[KvmMmuPage]:
    """Find a valid root of this kind and take a reference, or make one (refcount 2: this vCPU and the MMU)."""
    yield kvm.mmu_lock.read_lock()
    note(ROOTS, READ)
    for root in list(kvm.tdp_mmu_roots):
        if (yield from _match(root, mirror=mirror)) and (yield from get_root(root)):
            yield kvm.mmu_lock.read_unlock()
            return root
    yield kvm.tdp_mmu_pages_lock.lock()
    for root in kvm.tdp_mmu_roots:
        if (yield from _match(root, mirror=mirror)) and (yield from get_root(root)):
            break
    else:
        root = kvm.page_tables.add(mmu.caches.alloc_root(LEVELS[kvm.root_level], mirror=mirror))
        root.root_count.v = 2
        note(ROOTS, WRITE)
        kvm.tdp_mmu_roots.append(root)
    yield kvm.tdp_mmu_pages_lock.unlock()
    yield kvm.mmu_lock.read_unlock()
    return root


def _match(root: KvmMmuPage, *, mirror: bool) -> Steps[bool]:
    if root.is_mirror != mirror:
        return False
    return not (yield root.invalid.read())


def get_root(root: KvmMmuPage) -> Steps[bool]:
    """refcount_inc_not_zero."""
    count: int = yield root.root_count.update(lambda count: count + 1 if count else 0, "inc unless zero")
    return count > 0


def kvm_tdp_mmu_put_root(kvm: Kvm, root: KvmMmuPage) -> Steps[None]:
    """Drop a reference; the last one takes the root off the list and frees it after a grace period."""
    references = yield root.root_count.fetch_add(-1)
    if references < 1:
        kvm.kernel.find("refcount", f"refcount_t: underflow: {root} is put more often than got")
    if references != 1:
        return
    if not (yield root.invalid.read()):
        kvm.bug("the last reference to a valid root was put")
    yield kvm.tdp_mmu_pages_lock.lock()
    note(ROOTS, WRITE)
    kvm.tdp_mmu_roots.remove(root)
    yield kvm.tdp_mmu_pages_lock.unlock()
    kvm.rcu.call(f"free {root}", lambda: free_sp(kvm, root))


def kvm_mmu_free_roots(kvm: Kvm, vcpu: Vcpu, *, mirror: bool = False) -> Steps[None]:
    """Let go of the direct root, and with `mirror` (the vCPU dies) of the mirror root."""
    mmu: VcpuMmu = vcpu.arch
    roots = [mmu.root, mmu.mirror_root if mirror else None]
    mmu.root = None
    if mirror:
        mmu.mirror_root = None
    for root in roots:
        if root is not None:
            yield kvm.mmu_lock.read_lock()
            yield from kvm_tdp_mmu_put_root(kvm, root)
            yield kvm.mmu_lock.read_unlock()


def kvm_mmu_free_obsolete_roots(kvm: Kvm, vcpu: Vcpu) -> Steps[None]:
    """V1, V3: serve FREE_OBSOLETE_ROOTS: free the loaded root if it has been invalidated."""
    mmu: VcpuMmu = vcpu.arch
    if mmu.root is not None and (yield mmu.root.invalid.read()):
        yield from kvm_mmu_free_roots(kvm, vcpu)


def kvm_tdp_mmu_invalidate_roots(kvm: Kvm, *, mirror: bool) -> Steps[int]:
    """Make all valid roots of a kind invalid and owe each its zap. mmu_lock write-held, or the VM is being destroyed.

    Returns: how many. Whoever has one loaded learns it by FREE_OBSOLETE_ROOTS, set in the same critical section.
    """
    invalidated = 0
    for root in kvm.tdp_mmu_roots:
        if root.is_mirror == mirror and not (yield root.invalid.read()):
            yield root.scheduled_root_to_zap.write(True)
            yield root.invalid.write(True)
            invalidated += 1
    return invalidated


def valid_roots(kvm: Kvm, *, direct: bool, mirror: bool, invalid: bool) -> Steps[list[KvmMmuPage]]:
    """for_each_tdp_mmu_root_yield_safe: the roots of these kinds, each with a reference that the caller must put."""
    found = []
    note(ROOTS, READ)
    for root in list(kvm.tdp_mmu_roots):
        is_invalid = yield root.invalid.read()
        wanted = invalid if is_invalid else mirror if root.is_mirror else direct
        if wanted and (yield from get_root(root)):
            found.append(root)
    return found
