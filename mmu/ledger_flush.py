"""Flush debts: whoever takes a mapping or a permission away owes a TLB flush before mmu_lock is released.

A debt is made by the step that changes a leaf of a valid direct root, and is the changing thread's. It is paid by telling
all vCPUs (TLB_FLUSH, or FREE_OBSOLETE_ROOTS, which makes them load another root). A leaf of an invalid root owes nothing:
its vCPUs were told when the root became invalid. Nor does a mirror's: the module refuses to remove what was not tracked.
Source: Documentation/virt/kvm/locking.rst; tdp_mmu.c, the `flush` that every zap returns; reference 2.3, 4.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vcpu.vcpu import FREE_OBSOLETE_ROOTS, TLB_FLUSH

if TYPE_CHECKING:
    from mmu.page_table import KvmMmuPage, SpteCell
    from mmu.vm import Kvm
    from sim import Access, Thread
    from vcpu.vcpu import Request

PAYING = frozenset([TLB_FLUSH.name, FREE_OBSOLETE_ROOTS.name])


class FlushLedger:
    """Who owes a flush, and for what."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self._owed: dict[Thread, str] = {}

    def owe(self, thread: Thread, cell: SpteCell, why: str) -> None:
        """`thread` has taken something away in `cell`."""
        if not cell.sp.is_mirror and thread not in self._owed and not _root_of(cell.sp).invalid.peek():
            self._owed[thread] = f"{cell}: {why}, step {self.kvm.kernel.steps}"

    def told_all(self, request: Request) -> None:
        """The running thread has told all vCPUs, and they have left the guest."""
        if self._owed and request.name in PAYING:
            self._owed.pop(self.kvm.kernel.current, None)

    def lock_used(self, thread: Thread, access: Access) -> None:
        """An access to a lock: the release of mmu_lock is when debts are due."""
        if self._owed and access.target is self.kvm.mmu_lock and access.releases and thread in self._owed:
            debt = self._owed.pop(thread)
            self.kvm.kernel.find("lock-rule", "mmu_lock is released with a TLB flush owed", owed=debt)


def _root_of(sp: KvmMmuPage) -> KvmMmuPage:
    while sp.parent is not None:
        sp = sp.parent[0]
    return sp
