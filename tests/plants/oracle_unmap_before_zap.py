"""What if the host took its pages away before it told KVM? Frames are freed that SPTEs still map.

The plant of `uaf-page`. Source: races.md R15, R39; Documentation/mm/mmu_notifier.rst.
"""

from mmu import notifier
from sim import replaces


@replaces(notifier.invalidate_hva_range)
def invalidate_hva_range(kvm, start, end):
    """Unmap, then start and end."""
    yield from kvm.primary.unmap(start, end)
    yield from notifier.invalidate_range_start(kvm, start, end)
    yield from notifier.invalidate_range_end(kvm, start, end)
