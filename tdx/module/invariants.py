"""What the module keeps true whatever its host does: for `kernel.always` and `kernel.at_end`.

Each returns a predicate. Entries and TDs in the middle of a call are left out: a call may change two words one after the
other while it holds the lock. Numbers are those of reference 7.1. 2 and 3 need a TLB with non-leaf entries and DEMOTE; 8 is
about contents: both are the embedding's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from sim import Broken
from tdx.module.objects import Lifecycle, Tdr
from tdx.module.pamt import PageType
from tdx.module.septe import SeptState
from tdx.module.sharex import HP_EXCLUSIVE
from vcpu.addresses import PG_LEVEL_4K, PgLevel

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

Verdict = bool | Broken
Translations = Callable[[], "Iterable[tuple[Td, int, PgLevel]]"]


def cached_pages_are_owned(module: TdxModule, translations: Translations) -> Callable[[], Verdict]:
    """1: no LP that runs a vCPU of a TD has a translation to a page that is not this TD's.

    Args:
        translations: what such LPs have cached: TD, frame, size.
    """

    def holds() -> Verdict:
        for td, pfn, level in translations():
            page = module.pamt.leaf(pfn)
            if page.kind is not PageType.PT_REG or page.owner != td.tdr_pfn:
                return Broken(
                    td=td.name, pfn=hex(pfn), level=level.short, page=page.kind.name, owner=page.owner
                )
        return True

    return holds


def refcounts_match_vcpus(module: TdxModule) -> Callable[[], Verdict]:
    """4: a REFCOUNT is the number of vCPUs inside from epochs of its parity, and nobody is two epochs behind."""

    def holds() -> Verdict:
        for tdr in module.tds():
            if any(vcpu.moving for vcpu in tdr.vcpus):
                continue
            unit = tdr.tdcs.epoch.peek()
            inside = [vcpu.vcpu_epoch for vcpu in tdr.vcpus if vcpu.inside]
            odd = sum(epoch & 1 for epoch in inside)
            if (len(inside) - odd, odd) != (unit.refcount0, unit.refcount1):
                return Broken(td=hex(tdr.pfn), unit=unit, inside=inside)
            if inside and min(inside) < unit.epoch - 1:
                return Broken(td=hex(tdr.pfn), unit=unit, oldest=min(inside))
        return True

    return holds


def children_are_counted(module: TdxModule) -> Callable[[], Verdict]:
    """5: a TDR's child count is the number of 4K pages that it owns; asked only while no call is in flight."""

    def holds() -> Verdict:
        if module.in_flight:
            return True
        owned: dict[int | None, int] = {}
        for entry in module.pamt.assigned():
            owned[entry.owner] = owned.get(entry.owner, 0) + entry.level.pages
        for tdr in module.tds():
            if tdr.chldcnt.peek() != owned.get(tdr.pfn, 0):
                return Broken(td=hex(tdr.pfn), chldcnt=tdr.chldcnt.peek(), owned=owned.get(tdr.pfn, 0))
        return True

    return holds


def entries_name_owned_pages(module: TdxModule) -> Callable[[], Verdict]:
    """6: a leaf names a REG page of exactly its size, a table entry an EPT page, both of this TD."""

    def holds() -> Verdict:
        for tdr in module.tds():
            if _is_changing(module, tdr):
                continue
            for gfn, level, entry in module.entries(tdr.tdcs):
                if entry.is_locked or entry.state in (SeptState.FREE, SeptState.REMOVED):
                    continue
                kind = PageType.PT_REG if entry.is_leaf else PageType.PT_EPT
                page = module.pamt.entry(entry.pfn_at(level), level if entry.is_leaf else PG_LEVEL_4K)
                if page.kind is not kind or page.owner != tdr.pfn:
                    return Broken(
                        gfn=hex(gfn), level=level.short, entry=entry, page=page.kind.name, owner=page.owner
                    )
        return True

    return holds


def no_entry_stays_locked(module: TdxModule) -> Callable[[], Verdict]:
    """7: no entry is locked while no call is in flight; host priority may stay."""

    def holds() -> Verdict:
        if module.in_flight:
            return True
        for tdr in module.tds():
            if tdr.lifecycle is Lifecycle.TEARDOWN:
                continue
            for gfn, level, entry in module.entries(tdr.tdcs):
                if entry.is_locked:
                    return Broken(gfn=hex(gfn), level=level.short, entry=entry)
        return True

    return holds


def _is_changing(module: TdxModule, tdr: Tdr) -> bool:
    """Whether a call may change the tree without locking entries: the TDR is exclusive, or pages are being reclaimed."""
    lock = module.pamt.entry(tdr.pfn, PG_LEVEL_4K).lock.peek()
    return lock & HP_EXCLUSIVE != 0 or tdr.lifecycle is Lifecycle.TEARDOWN


INVARIANTS: dict[str, Callable[[TdxModule], Callable[[], Verdict]]] = {
    "a REFCOUNT counts the vCPUs inside": refcounts_match_vcpus,
    "a TDR counts the pages it owns": children_are_counted,
    "an S-EPT entry names a page of its TD": entries_name_owned_pages,
    "no S-EPT entry stays locked": no_entry_stays_locked,
}
"""Those that need nothing but the module, by text."""
