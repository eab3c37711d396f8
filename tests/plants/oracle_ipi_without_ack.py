"""What if a kick did not wait for its acknowledgement? The vCPU goes on in the guest, by translations promised away.

The plant of `stale-tlb` by an entry that is being used. Source: races.md R63 (do not wait for the ack).
"""

from sim import replaces
from vcpu import pcpu


@replaces(pcpu.smp_call_function_many)
def smp_call_function_many(kernel, targets, handler, *, wait):
    """Send and go on."""
    for target in targets:
        yield pcpu.SendIpi(target, handler)
