"""What if a fault kept the reference of the page that it mapped (F60)? The page is never freed.

The plant of `refcount`. Source: kvm_mmu_finish_page_fault(); reference F60.
"""

from mmu import fault
from sim import replaces


@replaces(fault.release_page)
def release_page(kvm, page_fault):
    """Keeps it."""
