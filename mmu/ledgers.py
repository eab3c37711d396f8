"""The MMU's ledgers: what observers keep beside the model, to say what no single step can see to be wrong.

`MmuLedger` is one VM's: translations promised away (`vcpu.tlb_ledger`), private content (`vcpu.content`), SPTEs with their
owners, frames and lock rules (`mmu.ledger_sptes`), flushes owed (`mmu.ledger_flush`). The model speaks to it at the few
points where an operation may rely on something (`Kvm.promise_unmapped`, `Kvm.promise_flushed`); everything else it sees
in the accesses themselves, so that a patched path cannot forget to tell. A VM without a ledger runs the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mmu.ledger_flush import FlushLedger
from mmu.ledger_sptes import SpteLedger
from mmu.page_table import KvmMmuPage
from mmu.spte import describe, is_last_spte, spte_to_pfn
from vcpu.content import ContentLedger
from vcpu.tlb_ledger import TlbLedger

if TYPE_CHECKING:
    from mmu.vm import Kvm
    from vcpu.addresses import GfnRange, Pfn

DIRECT = "direct"
MIRROR = "mirror"
"""The two address spaces of the ledger: what the direct root maps, and what mirror and S-EPT map."""


class MmuLedger:
    """All ledgers of one VM, attached to it. Make it when the world is built: what is mapped by then is known to be."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.tlb = TlbLedger(kvm.kernel)
        self.content = ContentLedger(kvm.kernel, kvm.memory)
        self.flushes = FlushLedger(kvm)
        self.sptes = SpteLedger(kvm, self.flushes)
        kvm.host_memory.on_free.append(self._frames_freed)
        kvm.ledger = self

    def _frames_freed(self, pfn: Pfn, pages: int) -> None:
        """Frames go back to the host. What a VM that died of a bug gives back is told by the bug."""
        if not self.kvm.vm_bugged:
            self.sptes.frames_freed(pfn, pages)
            self.content.frames_freed(pfn, pages)

    def unmapped(self, what: str, gfns: GfnRange, place: str, *, direct: bool, mirror: bool) -> None:
        """The operation relies on nothing mapping `gfns` from here on: not in tables, not in TLBs.

        Roots that are invalid but not yet empty count as well: once the operation has returned, no notifier will find what
        they map (races.md R15). Before that they may map what they like (N6).
        """
        for root in self.kvm.tdp_mmu_roots:
            if not (mirror if root.is_mirror else direct):
                continue
            for sp, index, spte in leafs_in(self.kvm, root, gfns):
                self.kvm.kernel.find(
                    "stale-spte",
                    f"a present SPTE outlives {what}",
                    gfn=hex(sp.gfn_of(index)),
                    spte=describe(spte, sp.level),
                    root="invalid" if root.invalid.peek() else "valid",
                    promised=place,
                )
        self.flushed(what, gfns, place, direct=direct, mirror=mirror)

    def flushed(self, what: str, gfns: GfnRange, place: str, *, direct: bool, mirror: bool) -> None:
        """The operation relies on no older translation of `gfns` being used from here on."""
        for space, meant in ((DIRECT, direct), (MIRROR, mirror)):
            if meant:
                self.tlb.promise(space, gfns.start, gfns.end, what, place)


def leafs_in(kvm: Kvm, root: KvmMmuPage, gfns: GfnRange) -> Iterator[tuple[KvmMmuPage, int, int]]:
    """Present leafs under a root that overlap `gfns`: table, index, value. For observers."""
    todo = [root]
    while todo:
        sp = todo.pop()
        for index, spte in sp.present():
            gfn = sp.gfn_of(index) & ~kvm.direct_bits
            if gfn >= gfns.end or gfn + sp.level.pages <= gfns.start:
                continue
            if is_last_spte(spte, sp.level):
                yield sp, index, spte
                continue
            child = kvm.page_tables.find(spte_to_pfn(spte))
            if child is not None:
                todo.append(child)
