"""Taking mappings away: a range of leafs, a whole root, everything fast.

Source: tdp_mmu_zap_leafs, kvm_tdp_mmu_unmap_gfn_range, tdp_mmu_zap_root, kvm_mmu_zap_all_fast; reference 4.6, 4.10.
A leaf that merely overlaps a range is zapped whole. Normal VMs fault it back in; a TD would lose the data outside the
range, which is why huge private mappings must be split first (they do not exist in this generation).
"""

from __future__ import annotations

from enum import Flag, auto

from mmu.events import ZapAllFast
from mmu.page_table import KvmMmuPage
from mmu.roots import kvm_tdp_mmu_invalidate_roots, kvm_tdp_mmu_put_root, valid_roots
from mmu.spte import SHADOW_NONPRESENT_VALUE, is_last_spte, is_shadow_present_pte
from mmu.tdp_iter import TdpIter
from mmu.tdp_mmu import handle_changed_spte, tdp_mmu_iter_cond_resched, tdp_mmu_set_spte
from mmu.vm import Kvm
from sim import Steps
from vcpu.addresses import GfnRange
from vcpu.vcpu import FREE_OBSOLETE_ROOTS


class Filter(Flag):
    """kvm_gfn_range_filter: which of a gfn's two mappings is meant."""

    SHARED = auto()
    PRIVATE = auto()


BOTH = Filter.SHARED | Filter.PRIVATE


def tdp_mmu_zap_leafs(
    kvm: Kvm, root: KvmMmuPage, gfns: GfnRange, *, can_yield: bool, flush: bool
) -> Steps[bool]:
    """Zap every leaf that overlaps `gfns`; returns whether a TLB flush is owed. mmu_lock write-held."""
    kvm.mmu_lock.assert_held_for_write()
    yield kvm.rcu.read_lock()
    it = TdpIter(kvm.page_tables, root, gfns.start, gfns.end, gfn_bits=kvm.direct_bits)
    yield from it.start()
    while it.valid:
        if can_yield and (yield from tdp_mmu_iter_cond_resched(kvm, it, flush=flush, shared=False)):
            flush = False
        elif is_shadow_present_pte(it.old_spte) and is_last_spte(it.old_spte, it.level):
            kvm.kernel.charge("kvm_mirror_zap_free_4k" if root.is_mirror else "dirtylog_clear_spte")
            yield from tdp_mmu_set_spte(kvm, it.sp, it.sptep, it.old_spte, SHADOW_NONPRESENT_VALUE, it.gfn)
            kvm.kernel.count("mmu.leafs_zapped")
            if not root.invalid.peek():
                flush = True
        yield from it.next()
    yield kvm.rcu.read_unlock()
    return flush


def kvm_unmap_gfn_range(kvm: Kvm, gfns: GfnRange, filter_: Filter, *, may_block: bool = True) -> Steps[bool]:
    """kvm_tdp_mmu_unmap_gfn_range over the roots that `filter_` names; a VM without a mirror has all in the direct one."""
    began_ns = kvm.kernel.now_ns
    direct = bool(filter_ & Filter.SHARED) or not kvm.has_mirror
    mirror = bool(filter_ & Filter.PRIVATE) and kvm.has_mirror
    flush = False
    for root in (yield from valid_roots(kvm, direct=direct, mirror=mirror, invalid=True)):
        flush = yield from tdp_mmu_zap_leafs(kvm, root, gfns, can_yield=may_block, flush=flush)
        yield from kvm_tdp_mmu_put_root(kvm, root)
    kvm.kernel.record("zap", kvm.kernel.now_ns - began_ns)
    return flush


def tdp_mmu_zap_root(kvm: Kvm, root: KvmMmuPage, *, shared: bool) -> Steps[None]:
    """Empty a root in passes over 4K, 2M, 1G and the root's own level, so that no pass takes long under RCU."""
    yield kvm.rcu.read_lock()
    for level in (1, 2, 3, root.level):
        yield from _zap_root_pass(kvm, root, level, shared=shared)
    yield kvm.rcu.read_unlock()


def _zap_root_pass(kvm: Kvm, root: KvmMmuPage, level: int, *, shared: bool) -> Steps[None]:
    top = 1 << 9 * kvm.root_level
    it = TdpIter(kvm.page_tables, root, 0, top, min_level=level)
    yield from it.start()
    while it.valid:
        dropped = yield from tdp_mmu_iter_cond_resched(kvm, it, flush=False, shared=shared)
        if not dropped and is_shadow_present_pte(it.old_spte) and it.level <= level:
            if not shared:
                yield from tdp_mmu_set_spte(
                    kvm, it.sp, it.sptep, it.old_spte, SHADOW_NONPRESENT_VALUE, it.gfn
                )
            else:
                yield from _zap_atomic(kvm, it)
        yield from it.next()


def _zap_atomic(kvm: Kvm, it: TdpIter) -> Steps[None]:
    """Cmpxchg to non-present, again if somebody else changed it first."""
    while is_shadow_present_pte(it.old_spte):
        seen = yield it.sptep.cmpxchg(it.old_spte, SHADOW_NONPRESENT_VALUE)
        if seen == it.old_spte:
            yield from handle_changed_spte(
                kvm, it.sp, it.gfn, it.level, it.old_spte, SHADOW_NONPRESENT_VALUE, shared=True
            )
            return
        it.old_spte = seen


def kvm_mmu_zap_all_fast(kvm: Kvm) -> Steps[None]:
    """Make the direct roots obsolete in one short critical section, then zap them under mmu_lock for read.

    No flush: loading another root flushes, and the freed tables wait for RCU. Mirror roots are never fast-zapped.
    slots_lock held. Source: kvm_mmu_zap_all_fast(), kvm_tdp_mmu_zap_invalidated_roots(); reference 4.10.
    """
    yield kvm.mmu_lock.write_lock()
    generation = yield kvm.mmu_valid_gen.read()
    yield kvm.mmu_valid_gen.write(1 - generation)
    invalidated = yield from kvm_tdp_mmu_invalidate_roots(kvm, mirror=False)
    if kvm.kernel.events is not None:
        kvm.kernel.emit(ZapAllFast(1 - generation, invalidated))
    yield from kvm.make_all_cpus_request(FREE_OBSOLETE_ROOTS)
    kvm.promise_flushed("kvm_mmu_zap_all_fast")
    yield kvm.mmu_lock.write_unlock()
    yield kvm.mmu_lock.read_lock()
    yield from zap_scheduled_roots(kvm, shared=True)
    yield kvm.mmu_lock.read_unlock()


def zap_scheduled_roots(kvm: Kvm, *, shared: bool) -> Steps[None]:
    """Pay what invalidation owes: zap each scheduled root and put the MMU's own reference."""
    for root in (yield from valid_roots(kvm, direct=False, mirror=False, invalid=True)):
        if (yield root.scheduled_root_to_zap.read()):
            yield root.scheduled_root_to_zap.write(False)
            yield from tdp_mmu_zap_root(kvm, root, shared=shared)
            yield from kvm_tdp_mmu_put_root(kvm, root)
        yield from kvm_tdp_mmu_put_root(kvm, root)
