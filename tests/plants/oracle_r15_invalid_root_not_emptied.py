"""What if the fast zap left the invalid roots to their last user? The slot is gone, and SPTEs still map its frames.

The plant of `stale-spte` in an invalid root. Source: races.md R15 (commit 4c6654bd160d).
"""

from mmu import zap
from sim import replaces


@replaces(zap.zap_scheduled_roots)
def zap_scheduled_roots(kvm, *, shared):
    """Nothing now."""
    yield from ()
