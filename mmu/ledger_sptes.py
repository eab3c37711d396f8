"""The SPTE ledger: who owns a frozen entry, which frames leafs map, and under which rules entries change.

It sees every store to an SPTE (`observe`), whoever makes it. What it judges, each a rule of the kernel's own:

- `overwrite`: an entry that one thread froze is changed by another; a leaf loses a permission under mmu_lock for read
  (a slower fault replaces newer rights, races.md R09);
- `lock-rule`: a plain store under mmu_lock for read by a thread that has not frozen the entry (R01, R59); a change of what is
  mapped without mmu_lock;
- `stale-spte`: a leaf installed inside an open invalidation window of its frame, for a frame without a memslot, against
  the frame's attribute, or for a page that guest_memfd no longer has there;
- `uaf-page`: a leaf installed for a free frame; a frame freed while a leaf maps it (R15, R39).

The installation rules hold at the instant of the store because faults install under mmu_lock, and windows open and close
under it for write. A TD that is being built installs without windows (reference 3.11): its mirror is left alone until
KVM allows prefaulting. Not judged: A and D bits (N1), non-leaf entries beyond their ownership.
Source: reference 3.7, 4.1, 8.3, 11.3; Documentation/virt/kvm/locking.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmu.page_table import SpteCell
from mmu.spte import (
    FROZEN_SPTE,
    SHADOW_NONPRESENT_VALUE,
    SPTE_RWX,
    describe,
    is_leaf_spte,
    is_shadow_present_pte,
    spte_to_pfn,
)
from vcpu.addresses import LEVELS

if TYPE_CHECKING:
    from mmu.ledger_flush import FlushLedger
    from mmu.vm import Kvm
    from sim import Access, Thread


class SpteLedger:
    """What every SPTE of a VM held last, and who may change it."""

    def __init__(self, kvm: Kvm, flushes: FlushLedger) -> None:
        self.kvm = kvm
        self.flushes = flushes
        self._last: dict[SpteCell, int] = {}
        self._owner: dict[SpteCell, Thread] = {}
        self._mapped_by: dict[tuple[int, int], dict[SpteCell, None]] = {}
        for sp in kvm.page_tables:
            for index, spte in sp.present():
                cell = sp.cell(index)
                self._last[cell] = spte
                if is_leaf_spte(spte, sp.level):
                    self._map(cell, spte)

    def observe(self, thread: Thread, access: Access) -> None:
        """An access to an SPTE has happened."""
        if not access.writes or not access.wrote:
            return
        cell: SpteCell = access.target
        old = self._last.get(cell, SHADOW_NONPRESENT_VALUE)
        new = cell.v
        self._last[cell] = new
        if old == new:
            return
        self._ownership(thread, access, cell, old, new)
        level = cell.level
        was_leaf, is_leaf = is_leaf_spte(old, level), is_leaf_spte(new, level)
        same_page = was_leaf and is_leaf and spte_to_pfn(old) == spte_to_pfn(new)
        if was_leaf and not same_page:
            del self._mapped_by[level, spte_to_pfn(old)][cell]
            self.flushes.owe(thread, cell, "leaf removed")
        if same_page and old & ~new & SPTE_RWX:
            self._permission_lost(thread, cell, old, new)
        if is_leaf and not same_page:
            self._map(cell, new)
            self._installed(cell, new)

    def frames_freed(self, pfn: int, pages: int) -> None:
        """Frames go back to the host (`HostMemory.on_free`): no leaf may map them."""
        mapped_by = self._mapped_by
        for frame in range(pfn, pfn + pages):
            for level in (1, 2, 3):
                for cell in mapped_by.get((level, frame & -LEVELS[level].pages), ()):
                    self._find("uaf-page", "a frame is freed while an SPTE maps it", cell, cell.peek())

    def _map(self, cell: SpteCell, spte: int) -> None:
        self._mapped_by.setdefault((cell.level, spte_to_pfn(spte)), {})[cell] = None

    def _ownership(self, thread: Thread, access: Access, cell: SpteCell, old: int, new: int) -> None:
        owner = self._owner.pop(cell, None)
        if new == FROZEN_SPTE:
            self._owner[cell] = thread
        if owner is not None and owner is not thread:
            self._find(
                "overwrite",
                "a frozen SPTE is changed by a thread that did not freeze it",
                cell,
                new,
                owner=owner,
            )
        held = self.kvm.mmu_lock.held_by(thread)
        if held == "write" or owner is thread:
            return
        if held == "read":
            if not access.reads:
                self._find("lock-rule", "a plain store to an SPTE under mmu_lock for read", cell, new)
        elif is_shadow_present_pte(old) != is_shadow_present_pte(new) or spte_to_pfn(old) != spte_to_pfn(new):
            self._find("lock-rule", "an SPTE is changed without mmu_lock", cell, new)

    def _permission_lost(self, thread: Thread, cell: SpteCell, old: int, new: int) -> None:
        self.flushes.owe(thread, cell, "permission removed")
        if self.kvm.mmu_lock.held_by(thread) == "read":
            self._find(
                "overwrite",
                "a fault replaces an SPTE by one that allows less",
                cell,
                new,
                was=describe(old, cell.level),
            )

    def _installed(self, cell: SpteCell, spte: int) -> None:
        kvm = self.kvm
        gfn = cell.gfn & ~kvm.direct_bits
        mirror = cell.sp.is_mirror
        pfn = spte_to_pfn(spte)
        if kvm.host_memory.owner(pfn) is None:
            self._find("uaf-page", "an SPTE is installed for a free frame", cell, spte)
        if mirror and not kvm.pre_fault_allowed.peek():
            return
        start, end = kvm.mmu_invalidate_range_start.peek(), kvm.mmu_invalidate_range_end.peek()
        if kvm.mmu_invalidate_in_progress.peek() and start <= gfn < end:
            self._find("stale-spte", "an SPTE is installed inside an open invalidation window", cell, spte)
            return
        slot = kvm.slot_of(gfn)
        if slot is None:
            self._find("stale-spte", "an SPTE is installed for a frame without a memslot", cell, spte)
        elif kvm.has_mirror and slot.has_gmem and kvm.attributes.peek_private(gfn) != mirror:
            self._find("stale-spte", "an SPTE is installed against the attribute of its frame", cell, spte)
        elif mirror and slot.gmem is not None:
            file = slot.gmem.file.peek()
            backing = None if file is None else file.inode.peek_pfn(slot.gmem_index(gfn))
            if backing != pfn:
                self._find("stale-spte", "an SPTE is installed for a page that left guest_memfd", cell, spte)

    def _find(self, kind: str, title: str, cell: SpteCell, spte: int, **more: object) -> None:
        self.kvm.kernel.find(kind, title, spte=cell, value=describe(spte, cell.level), **more)
