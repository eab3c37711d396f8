"""What if a fault that lost the race to link a table forgot to free its own (F3C)?

The plant of `leak`. Source: tdp_mmu.c, kvm_tdp_mmu_map(); reference F3C.
"""

from mmu import tdp_mmu
from sim import replaces


@replaces(tdp_mmu.free_sp)
def free_sp(kvm, sp):
    """Forgets the table, and keeps its frames."""
    kvm.page_tables.free(sp)
