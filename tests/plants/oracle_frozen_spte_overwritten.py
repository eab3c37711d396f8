"""What if nobody could tell a frozen SPTE from a hole? Two faults install one mirror SPTE, each over the other's freeze.

The plant of `overwrite` by a thread that does not own the entry. Source: races.md R59; reference F37.
"""

from mmu import spte
from sim import replaces


@replaces(spte.is_frozen_spte)
def is_frozen_spte(value):
    """Never."""
    return False
