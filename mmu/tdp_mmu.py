"""Changing SPTEs: atomically under mmu_lock for read, exclusively under it for write, and what follows from a change.

Under the read lock an SPTE is installed by cmpxchg, so that the first of two faults wins. A *mirror* SPTE is first frozen:
while its external twin is being made by the hook, every other reader that meets FROZEN_SPTE gives up and retries (F37,
F39). Under the write lock there are no other readers of the lock, but hardware and fast page faults may still set bits,
so a volatile leaf is exchanged, not written.
Source: arch/x86/kvm/mmu/tdp_mmu.c, generation v7; reference 3.7, 4.1 to 4.3; Documentation/virt/kvm/locking.rst.
"""

from __future__ import annotations

from mmu import spte as sptes
from mmu.events import GetPage, PrepareZapPage, SpteChanged
from mmu.page_table import KvmMmuPage
from mmu.spte import FROZEN_SPTE, is_frozen_spte, is_last_spte, is_shadow_present_pte, spte_to_pfn
from mmu.tdp_iter import TdpIter
from mmu.vm import Kvm
from sim import Cell, Steps
from vcpu.addresses import ENTRIES, LEVELS, Gfn


def tdp_mmu_set_spte_atomic(kvm: Kvm, it: TdpIter, new_spte: int) -> Steps[bool]:
    """Install `new_spte` where `it` points, or return False because another thread, or the hook, was in the way.

    Source: tdp_mmu_set_spte_atomic(); reference 3.7, steps 1 to 4.
    """
    kvm.mmu_lock.assert_held_for_read()
    if it.yielded or is_frozen_spte(it.old_spte):
        kvm.kernel.find("kvm-bug", "WARN: set_spte_atomic on a frozen SPTE or after a yield", gfn=hex(it.gfn))
    if not it.is_mirror or is_frozen_spte(new_spte):
        seen = yield it.sptep.cmpxchg(it.old_spte, new_spte)
        if seen != it.old_spte:
            it.old_spte = seen
            kvm.kernel.reached("spte_cmpxchg_lost")
            return False
    elif not (yield from _set_external_spte_present(kvm, it, new_spte)):
        return False
    yield from handle_changed_spte(kvm, it.sp, it.gfn, it.level, it.old_spte, new_spte, shared=True)
    return True


def _set_external_spte_present(kvm: Kvm, it: TdpIter, new_spte: int) -> Steps[bool]:
    """Freeze a mirror SPTE, repeat the change in the external table, thaw it: old value on error, new on success."""
    old_spte = it.old_spte
    if not is_shadow_present_pte(new_spte) or is_shadow_present_pte(old_spte):
        kvm.bug("an atomic change of a mirror SPTE must make it present", gfn=hex(it.gfn))
    seen = yield it.sptep.cmpxchg(old_spte, FROZEN_SPTE)
    if seen != old_spte:
        kvm.kernel.reached("spte_cmpxchg_lost")
        return False
    assert kvm.external is not None
    if is_last_spte(new_spte, it.level):
        error = yield from kvm.external.set_external_spte(it.gfn, it.level, new_spte)
    else:
        child = kvm.page_tables.to_sp(spte_to_pfn(new_spte))
        error = yield from kvm.external.link_external_spt(it.gfn, it.level, child)
    yield it.sptep.write_once(old_spte if error else new_spte)
    return not error


def tdp_mmu_set_spte(
    kvm: Kvm, sp: KvmMmuPage, sptep: Cell[int], old_spte: int, new_spte: int, gfn: Gfn
) -> Steps[int]:
    """Change an SPTE under mmu_lock for write; returns the value it replaced.

    Source: tdp_mmu_set_spte(), kvm_tdp_mmu_write_spte(); reference 4.1.
    """
    kvm.mmu_lock.assert_held_for_write()
    if is_frozen_spte(old_spte) or is_frozen_spte(new_spte):
        kvm.kernel.find("kvm-bug", "WARN: a frozen SPTE under mmu_lock for write", gfn=hex(gfn))
    old_spte = yield from kvm_tdp_mmu_write_spte(sptep, old_spte, new_spte, sp.level)
    yield from handle_changed_spte(kvm, sp, gfn, sp.level, old_spte, new_spte, shared=False)
    if sp.is_mirror:
        if is_shadow_present_pte(new_spte):
            kvm.bug("a mirror SPTE may only be removed under mmu_lock for write", gfn=hex(gfn))
        yield from _remove_external_spte(kvm, sp, gfn, old_spte)
    return old_spte


def kvm_tdp_mmu_write_spte(sptep: Cell[int], old_spte: int, new_spte: int, level: int) -> Steps[int]:
    """Exchange what others may change without a lock, write the rest (reference 8.3)."""
    if (
        is_shadow_present_pte(old_spte)
        and is_last_spte(old_spte, level)
        and sptes.spte_needs_atomic_update(old_spte)
    ):
        seen: int = yield sptep.xchg(new_spte)
        return seen
    yield sptep.write_once(new_spte)
    return old_spte


def _remove_external_spte(kvm: Kvm, sp: KvmMmuPage, gfn: Gfn, old_spte: int) -> Steps[None]:
    if is_shadow_present_pte(old_spte) and is_last_spte(old_spte, sp.level):
        assert kvm.external is not None
        yield from kvm.external.remove_external_spte(gfn, sp.level, old_spte)


def handle_changed_spte(
    kvm: Kvm, sp: KvmMmuPage, gfn: Gfn, level: int, old_spte: int, new_spte: int, *, shared: bool
) -> Steps[None]:
    """Bookkeeping of a change that has been made: trace, statistics, and the table that was cut off.

    Source: handle_changed_spte(); reference 4.2.
    """
    if old_spte == new_spte:
        return
    was_present = is_shadow_present_pte(old_spte)
    is_present = is_shadow_present_pte(new_spte)
    was_leaf = was_present and is_last_spte(old_spte, level)
    is_leaf = is_present and is_last_spte(new_spte, level)
    pfn_changed = spte_to_pfn(old_spte) != spte_to_pfn(new_spte)
    if was_leaf and is_leaf and pfn_changed:
        kvm.bug("a present leaf changed its pfn", gfn=hex(gfn), old=hex(old_spte), new=hex(new_spte))
    if kvm.kernel.events is not None:
        kvm.kernel.emit(SpteChanged(0, gfn, int(level), old_spte, new_spte, sp.is_mirror))
    if is_leaf and sptes.broken_write_bits(new_spte):
        kvm.kernel.find("overwrite", "an SPTE is writable beyond what MMU and host allow", gfn=hex(gfn))
    if is_leaf != was_leaf:
        kvm.page_tables.count_leaf(LEVELS[level], 1 if is_leaf else -1)
    if was_present and not was_leaf and (is_leaf or not is_present or pfn_changed):
        yield from handle_removed_pt(kvm, kvm.page_tables.to_sp(spte_to_pfn(old_spte)), shared=shared)


def handle_removed_pt(kvm: Kvm, sp: KvmMmuPage, *, shared: bool) -> Steps[None]:
    """Take a table apart that its parent no longer points to; it is freed after a grace period.

    Children keep FROZEN_SPTE, so that a lockless walker inside sees "not present" and a reader that still finds the
    table gives up. The external page goes last: KVM prunes top-down, TDX wants it bottom-up.
    Source: handle_removed_pt(); reference 4.3, steps 1 to 5.
    """
    if kvm.kernel.events is not None:
        kvm.kernel.emit(PrepareZapPage(sp.gfn, sp.level.value, sp.is_mirror))
    yield from tdp_mmu_unlink_sp(kvm, sp)
    for index in range(ENTRIES):
        sptep = sp.cell(index)
        gfn = Gfn(sp.gfn + index * sp.level.pages)
        if shared:
            old_spte = yield sptep.xchg(FROZEN_SPTE)
            while is_frozen_spte(old_spte):
                yield sptep.wait_until(lambda spte: not is_frozen_spte(spte))
                old_spte = yield sptep.xchg(FROZEN_SPTE)
        else:
            old_spte = yield sptep.read_once()
            if not is_shadow_present_pte(old_spte):
                continue
            old_spte = yield from kvm_tdp_mmu_write_spte(sptep, old_spte, FROZEN_SPTE, sp.level)
        yield from handle_changed_spte(kvm, sp, gfn, sp.level, old_spte, FROZEN_SPTE, shared=shared)
        if sp.is_mirror:
            if shared:
                kvm.bug("a mirror table is taken apart under mmu_lock for read", gfn=hex(gfn))
            yield from _remove_external_spte(kvm, sp, gfn, old_spte)
    if sp.is_mirror and kvm.external is not None:
        base_level = LEVELS[sp.level + 1]
        if (yield from kvm.external.free_external_spt(sp.gfn, base_level, sp)):
            sp.external_spt = None  # the module keeps it: leak it rather than reuse it
    kvm.rcu.call(f"free {sp}", lambda: free_sp(kvm, sp))


def tdp_mmu_unlink_sp(kvm: Kvm, sp: KvmMmuPage) -> Steps[None]:
    """Unaccount a table; one that exists for the NX-huge-page mitigation also leaves its list, under its lock."""
    kvm.page_tables.live -= 1
    if sp.nx_huge_page_disallowed:
        yield kvm.tdp_mmu_pages_lock.lock()
        sp.nx_huge_page_disallowed = False
        yield kvm.tdp_mmu_pages_lock.unlock()


def free_sp(kvm: Kvm, sp: KvmMmuPage) -> None:
    """tdp_mmu_free_sp: give the pages back. From here on a walker inside is a use after free."""
    kvm.page_tables.free(sp)
    kvm.host_memory.free(sp.spt_pfn, 0)
    if sp.external_spt is not None:
        kvm.host_memory.free(sp.external_spt, 0)


def init_child_sp(kvm: Kvm, sp: KvmMmuPage, it: TdpIter) -> None:
    """tdp_mmu_init_child_sp: role and base frame come from the place the table will be linked at."""
    kvm.page_tables.init_child(sp, it.sp, it.gfn)
    if kvm.kernel.events is not None:
        kvm.kernel.emit(GetPage(sp.gfn, sp.level.value, sp.is_mirror, created=True))


def tdp_mmu_link_sp(kvm: Kvm, it: TdpIter, sp: KvmMmuPage) -> Steps[bool]:
    """Put a table where `it` points, under mmu_lock for read; False as tdp_mmu_set_spte_atomic."""
    linked = yield from tdp_mmu_set_spte_atomic(kvm, it, sptes.make_nonleaf_spte(sp.spt_pfn))
    if linked:
        kvm.page_tables.live += 1
    return linked


def tdp_mmu_iter_cond_resched(kvm: Kvm, it: TdpIter, *, flush: bool, shared: bool) -> Steps[bool]:
    """Let others in if somebody waits for mmu_lock; True if the lock was dropped: the caller must continue its loop.

    Forward progress is required first; a pending flush is made before the lock goes. Source: reference 2.3.
    """
    if it.next_last_level_gfn == it.yielded_gfn or not kvm.mmu_lock.contended:
        return False
    if flush:
        yield from kvm.flush_remote_tlbs()
    yield kvm.rcu.read_unlock()
    if shared:
        yield kvm.mmu_lock.read_unlock()
        yield kvm.mmu_lock.read_lock()
    else:
        yield kvm.mmu_lock.write_unlock()
        yield kvm.mmu_lock.write_lock()
    yield kvm.rcu.read_lock()
    it.yielded = True
    kvm.kernel.reached("walk_yielded")
    return True
