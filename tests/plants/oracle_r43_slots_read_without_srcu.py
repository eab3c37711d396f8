"""What if the MMU notifier read the memslots without SRCU? They may be freed under it.

The plant of the rule "slots read => SRCU or slots_lock" (`lock-rule`). Source: races.md R43 (commit 4bcdd831d9d0).
"""

from mmu import notifier
from sim import replaces


@replaces(notifier.invalidate_range_start)
def invalidate_range_start(kvm, start, end):
    """Looks for slots, and finds none."""
    yield kvm.mn_active_invalidate_count.fetch_add(1)
    yield kvm.memslots.dereference_protected()
