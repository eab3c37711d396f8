"""What if KVM did not clear a page that it took from a TD (Z6)? The host gets content under the TD's key.

The plant of `content-lost` at the host's side. Source: reference 4.4, Z5 and Z6; races.md R65.
"""

from sim import replaces
from vcpu.memory import Memory


@replaces(Memory.zero)
def zero(memory, pfn, pages, key=0):
    """Nothing."""
