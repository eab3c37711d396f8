"""What the module keeps true whatever its host does: for `kernel.always` and `kernel.at_end`.

Each returns a predicate. Entries, pages and TDs in the middle of a call are left out: a call may change two words one after
the other while it holds the lock of one of them. Numbers are those of reference 7.1. 2 and 3 need a TLB with non-leaf entries;
8 is about contents: both are the embedding's.

`INVARIANTS` hold after any step, `AT_REST` adds what can only be asked when no call is in flight. A search by `dpor` that looks
at predicates after every step takes all steps as dependent; `tdx.module.watch` asks the same questions only of the steps that
can break them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from sim import Broken
from tdx.module.l2 import aliases_agree, l2_tables
from tdx.module.objects import Lifecycle, Tdr
from tdx.module.pamt import PageType
from tdx.module.septe import Septe, SeptState
from tdx.module.sharex import HP, HP_EXCLUSIVE, HP_READER
from tdx.module.walk import named_page
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, PgLevel

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
            if not module.may_reach(td, pfn, level):
                page = module.pamt.leaf(pfn)
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
                page = named_page(module, entry, level)
                if page.lock.peek() & HP_EXCLUSIVE:
                    continue
                if page.kind is not kind or page.owner != tdr.pfn:
                    return Broken(
                        gfn=hex(gfn), level=level.short, entry=entry, page=page.kind.name, owner=page.owner
                    )
        return True

    return holds


def named_frames(entry: Septe, level: PgLevel) -> range:
    """The frames that an entry gives to its TD; empty for one that names no page."""
    if entry.state in (SeptState.FREE, SeptState.REMOVED):
        return range(0)
    pfn = entry.pfn_at(level)
    return range(pfn, pfn + (level.pages if entry.is_leaf else 1))


def pages_have_one_entry(module: TdxModule) -> Callable[[], Verdict]:
    """A page is named by at most one entry of all TDs, in whatever size."""

    def holds() -> Verdict:
        named = sorted(
            (frames.start, frames.stop, gfn, level)
            for tdr in module.tds()
            if tdr.lifecycle is not Lifecycle.TEARDOWN
            for gfn, level, entry in module.entries(tdr.tdcs)
            if (frames := named_frames(entry, level))
        )
        for (_, end, gfn, level), (start, _, other, other_level) in pairwise(named):
            if start < end:
                return Broken(
                    pfn=hex(start), one=f"{gfn:#x} {level.short}", other=f"{other:#x} {other_level.short}"
                )
        return True

    return holds


def owned_pages_are_named(module: TdxModule) -> Callable[[], Verdict]:
    """The other direction of 6: a page that is a TD's data or S-EPT is named by an entry, of whatever tree.

    Asked while no call is in flight.
    """

    def holds() -> Verdict:
        if module.in_flight:
            return True
        living = [tdr for tdr in module.tds() if tdr.lifecycle is not Lifecycle.TEARDOWN]
        named = {
            (frames.start, level if entry.is_leaf else PG_LEVEL_4K): tdr.pfn
            for tdr in living
            for _, level, entry in module.entries(tdr.tdcs)
            if (frames := named_frames(entry, level))
        }
        named |= {(page.pfn, PG_LEVEL_4K): tdr.pfn for tdr in living for page in l2_tables(module, tdr.tdcs)}
        owners = {tdr.pfn for tdr in living}
        for page in module.pamt.assigned():
            if page.kind in (PageType.PT_REG, PageType.PT_EPT) and page.owner in owners:
                owner = named.get((page.pfn, page.level))
                if owner != page.owner:
                    return Broken(
                        pfn=hex(page.pfn), level=page.level.short, page=page.kind.name, named_by=owner
                    )
        return True

    return holds


def locks_are_free(module: TdxModule) -> Callable[[], Verdict]:
    """No PAMT entry, tree, epoch or OP_STATE is locked while no call is in flight, but for what running vCPUs hold.

    A vCPU inside holds its TDVPR and TDR shared, and the 1G and 2M entries on the way to its TDVPR. Host priority may stay.
    One that left a fatal TD is counted as inside for good, but holds nothing.
    """

    def holds() -> Verdict:
        if module.in_flight:
            return True
        running: dict[int, int] = {}
        may_have_left: set[int] = set()
        for tdr in module.tds():
            tdcs = tdr.tdcs
            for lock in (tdcs.sept_tree_lock, tdcs.epoch_lock, tdcs.op_state_lock):
                if lock.peek() & ~HP:
                    return Broken(lock=lock, word=lock.peek())
            for vcpu in tdr.vcpus:
                if vcpu.inside:
                    way = [
                        module.pamt.entry(vcpu.pfn, level)
                        for level in (PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K)
                    ]
                    for page in (*way, module.pamt.entry(tdr.pfn, PG_LEVEL_4K)):
                        running[id(page)] = running.get(id(page), 0) + HP_READER
                        if tdr.fatal:
                            may_have_left.add(id(page))
        for page in module.pamt.known():
            word, held = page.lock.peek() & ~HP, running.get(id(page), 0)
            if word != held and not (id(page) in may_have_left and word < held):
                return Broken(lock=page.lock, word=page.lock.peek())
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

AT_REST: dict[str, Callable[[TdxModule], Callable[[], Verdict]]] = {
    **INVARIANTS,
    "a page has at most one S-EPT entry": pages_have_one_entry,
    "a page of a TD has an S-EPT entry": owned_pages_are_named,
    "no lock stays taken": locks_are_free,
    "an alias bit speaks of an L2 entry": aliases_agree,
}
"""Those and what else is true when no call is in flight, by text."""
