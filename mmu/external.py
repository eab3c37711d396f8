"""The mirror's hook: the one table of functions through which common MMU code reaches a page table it cannot write.

Common code knows that a *mirror* table exists and that every change of it must be repeated in the *external* one. It
knows nothing of S-EPT, SEAMCALLs or tracking (Sean Christopherson, kvm@, 6 Feb 2026). Generation v7 has the four hooks
below; 7.2 folds link, set and remove into one, keyed on old and new SPTE.
All return 0 or a negative errno. Source: struct kvm_x86_ops; reference 3.7, 3.8, 4.1, 4.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmu.page_table import KvmMmuPage
    from sim import Cell, Steps
    from vcpu.addresses import Gfn, PgLevel


Awaited = tuple["Cell[int]", "Callable[[int], bool]"]
"""A word, and the condition that somebody waits for."""


class ExternalSpt(Protocol):
    """The vendor's side of a mirror."""

    def link_external_spt(self, gfn: Gfn, level: PgLevel, sp: KvmMmuPage) -> Steps[int]:
        """A non-leaf entry at `level` is being installed; `sp` is the child table. mmu_lock read, entry frozen."""

    def set_external_spte(self, gfn: Gfn, level: PgLevel, new_spte: int) -> Steps[int]:
        """A leaf is being installed. mmu_lock read, entry frozen."""

    def remove_external_spte(self, gfn: Gfn, level: PgLevel, old_spte: int) -> Steps[int]:
        """A leaf has been removed from the mirror. mmu_lock write."""

    def awaited(self) -> Awaited | None:
        """What the running thread's last -EBUSY was about: the word, and when another try is worth it. Asked once."""

    def free_external_spt(self, gfn: Gfn, level: PgLevel, sp: KvmMmuPage) -> Steps[int]:
        """A table page is to be taken back; a failure leaks it on purpose."""
