"""What if the notifier ignored the zap's "flush needed"? mmu_lock is released while translations are still cached.

The plant of `lock-rule` by a flush debt. Source: races.md R25 (commit 048f49809c52).
"""

from mmu import zap
from sim import replaces
from vcpu.addresses import GfnRange


@replaces(zap.kvm_unmap_gfn_range)
def kvm_unmap_gfn_range(kvm, gfns, filter_, *, may_block=True):
    """Zaps, and says that nothing is owed."""
    direct = bool(filter_ & zap.Filter.SHARED) or not kvm.has_mirror
    mirror = bool(filter_ & zap.Filter.PRIVATE) and kvm.has_mirror
    for root in (yield from zap.valid_roots(kvm, direct=direct, mirror=mirror, invalid=True)):
        yield from zap.tdp_mmu_zap_leafs(kvm, root, GfnRange(*gfns), can_yield=may_block, flush=False)
        yield from zap.kvm_tdp_mmu_put_root(kvm, root)
    return False
