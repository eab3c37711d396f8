"""What if a zap of the mirror were not repeated in the S-EPT? They disagree, and the module keeps the page.

The plant of `diverged` (and of `uaf-page`, once the page goes back to the host). Source: reference 4.1, 4.4.
"""

from mmu import tdp_mmu
from sim import replaces


@replaces(tdp_mmu._remove_external_spte)
def remove_external_spte(kvm, sp, gfn, old_spte):
    """Nothing."""
    yield from ()
