"""Invalidation windows: how a fault that works without mmu_lock learns that its frame was taken away meanwhile.

A zap opens a window (`in_progress`), names its range, zaps, and closes it by bumping `seq` first and `in_progress` last,
all under mmu_lock for write. A fault takes `seq` before it looks anything up, and under mmu_lock asks both.
Source: virt/kvm/kvm_main.c (kvm_mmu_invalidate_begin, _range_add, _end), include/linux/kvm_host.h
(mmu_invalidate_retry_gfn, _unsafe); reference 1.1, 11.3, 7.5.
"""

from __future__ import annotations

from mmu.vm import INVALID_GPA, Kvm
from sim import Steps


def kvm_mmu_invalidate_begin(kvm: Kvm) -> Steps[None]:
    """Open a window. mmu_lock write-held."""
    kvm.mmu_lock.assert_held_for_write()
    in_progress = yield kvm.mmu_invalidate_in_progress.read()
    yield kvm.mmu_invalidate_in_progress.write(in_progress + 1)
    if not in_progress:
        yield kvm.mmu_invalidate_range_start.write(INVALID_GPA)
        yield kvm.mmu_invalidate_range_end.write(INVALID_GPA)


def kvm_mmu_invalidate_range_add(kvm: Kvm, start: int, end: int) -> Steps[None]:
    """Widen the window to the hull of what it covers and [start, end). It never shrinks while any window is open."""
    kvm.mmu_lock.assert_held_for_write()
    old_start = yield kvm.mmu_invalidate_range_start.read()
    if old_start == INVALID_GPA:
        yield kvm.mmu_invalidate_range_start.write(start)
        yield kvm.mmu_invalidate_range_end.write(end)
        return
    old_end = yield kvm.mmu_invalidate_range_end.read()
    yield kvm.mmu_invalidate_range_start.write(min(old_start, start))
    yield kvm.mmu_invalidate_range_end.write(max(old_end, end))


def kvm_mmu_invalidate_end(kvm: Kvm) -> Steps[None]:
    """Close a window: first the new seq, so that whoever sees no window open sees that one was. mmu_lock write-held."""
    kvm.mmu_lock.assert_held_for_write()
    seq = yield kvm.mmu_invalidate_seq.read()
    yield kvm.mmu_invalidate_seq.write(seq + 1)
    in_progress = yield kvm.mmu_invalidate_in_progress.read()
    yield kvm.mmu_invalidate_in_progress.write(in_progress - 1)
    if in_progress < 1:
        kvm.bug("an invalidation ended that never began")


def mmu_invalidate_retry_gfn(kvm: Kvm, mmu_seq: int, gfn: int) -> Steps[bool]:
    """Whether a fault that took `mmu_seq` must retry. mmu_lock held: the answer is exact."""
    kvm.mmu_lock.assert_held()
    if (yield kvm.mmu_invalidate_in_progress.read()):
        start = yield kvm.mmu_invalidate_range_start.read()
        if start == INVALID_GPA:
            kvm.kernel.find("kvm-bug", "WARN: an invalidation is in progress but has no range")
        end = yield kvm.mmu_invalidate_range_end.read()
        if start <= gfn < end:
            return True
    seq = yield kvm.mmu_invalidate_seq.read()
    return bool(seq != mmu_seq)


def mmu_invalidate_retry_gfn_unsafe(kvm: Kvm, mmu_seq: int, gfn: int) -> Steps[bool]:
    """The same without mmu_lock: may be out of date, only saves work. The range is read plainly, as in the kernel."""
    if (yield kvm.mmu_invalidate_in_progress.read_once()):
        start = yield kvm.mmu_invalidate_range_start.read()
        end = yield kvm.mmu_invalidate_range_end.read()
        if start <= gfn < end:
            return True
    seq = yield kvm.mmu_invalidate_seq.read_once()
    return bool(seq != mmu_seq)
