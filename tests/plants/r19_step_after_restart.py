"""R19: after a yield the walk starts over at the frame it had reached, and then takes a step aside all the same.

Source: 3a0f64de479c "KVM: x86/mmu: Don't advance iterator after restart due to yielding" (v5.10 to v5.15). A root was then
zapped in one pass at its own level; today's passes over 4K, 2M and 1G first would leave only empty tables behind.
"""

from mmu import tdp_iter, zap
from sim import replaces


@replaces(tdp_iter.TdpIter.next)
def next_(self):
    """Down, else aside, else up and aside; after a restart as well."""
    if self.yielded:
        yield from self.start()
        if not self.valid:
            return
    if self.level > self.min_level:
        self.old_spte = yield self.sptep.read_once()
        child = self._child()
        if child is not None:
            yield from self._read(child, self.next_last_level_gfn)
            return
    sp, level = self.sp, self.level
    gfn = (self.gfn & -level.pages) + level.pages
    while gfn % (level.pages * tdp_iter.ENTRIES) == 0:
        if sp.parent is None:
            self.valid = False
            return
        sp = sp.parent[0]
        level = tdp_iter.LEVELS[level + 1]
    self.next_last_level_gfn = gfn
    if gfn >= self.end:
        self.valid = False
        return
    yield from self._read(sp, gfn)


@replaces(zap.tdp_mmu_zap_root)
def tdp_mmu_zap_root(kvm, root, *, shared):
    """One pass, as in v5.15."""
    yield kvm.rcu.read_lock()
    yield from zap._zap_root_pass(kvm, root, root.level, shared=shared)
    yield kvm.rcu.read_unlock()
