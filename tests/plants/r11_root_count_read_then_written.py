"""R11: shared page metadata is read and written back under mmu_lock for read, without an inner lock or an atomic.

Source: ce25681d59ff "KVM: x86/mmu: Protect marking SPs unsync when using TDP MMU with spinlock". There it was the unsync
flag and count of the shadow MMU, which is not modelled; here it is a root's reference count.
"""

from mmu import roots
from sim import replaces


@replaces(roots.get_root)
def get_root(root):
    """The increment in two steps."""
    count = yield root.root_count.read()
    if count:
        yield root.root_count.write(count + 1)
    return count > 0
