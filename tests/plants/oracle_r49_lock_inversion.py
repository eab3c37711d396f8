"""What if a hole were punched with slots_lock inside the file's invalidate lock? Binding takes them the other way round.

The plant of `lock-rule` by a lock-order cycle, whether or not it deadlocks. Source: races.md R49 (commit 2a62345b3052).
"""

from mmu import gmem_paths, memslot_paths
from sim import replaces


@replaces(gmem_paths.kvm_gmem_punch_hole)
def kvm_gmem_punch_hole(kvm, file, start, end):
    """invalidate_lock, then slots_lock."""
    yield file.inode.invalidate_lock.write_lock()
    yield kvm.slots_lock.lock()
    yield kvm.slots_lock.unlock()
    yield file.inode.invalidate_lock.write_unlock()


@replaces(memslot_paths.create_memslot)
def create_memslot(kvm, slot):
    """slots_lock, then the invalidate lock of every file (binding)."""
    yield kvm.slots_lock.lock()
    for bound in kvm.slots():
        lock = bound.gmem.file.peek().inode.invalidate_lock
        yield lock.write_lock()
        yield lock.write_unlock()
    yield kvm.slots_lock.unlock()
