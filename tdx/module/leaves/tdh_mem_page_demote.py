"""TDH.MEM.PAGE.DEMOTE: split a 2M or 1G leaf into 512, in the TD's own tree and in those of its L2 VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sim import Steps
from tdx.module.interrupts import interruption
from tdx.module.l2 import L2Walk, l2_sept_walk, l2_table
from tdx.module.operands import BIT_63, encode, page_info
from tdx.module.pamt import PageType, PamtEntry
from tdx.module.resize import check_resizable, pamt_demote, split_page
from tdx.module.seamcall import lock_new_page, lock_td, seamcall
from tdx.module.sept import SeptPage
from tdx.module.sept_states import next_state
from tdx.module.septe import Septe, SeptState, make
from tdx.module.status import NULL_PA, Operand, Refused, SeamcallReturn, Status, require
from tdx.module.walk import check_page_info, lock_entry, wrong_state
from vcpu.addresses import LEVELS, PAGE_SHIFT, PG_LEVEL_1G, PG_LEVEL_2M, Gfn, Gpa, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.objects import LogicalProcessor, Tdcs, Tdr
    from tdx.module.operands import Td
    from tdx.module.walk import Walk

LEAF = "TDH.MEM.PAGE.DEMOTE"


@seamcall(
    LEAF,
    leaf=15,
    cost="tdh_mem_page_demote",
    rcx="page_info",
    rdx="td+l2_sept_add_mode",
    r8="pfn",
    r9="l2_1_pfn?",
    r10="l2_2_pfn?",
    r11="l2_3_pfn?",
    r12="pamt_pfn0",
    r13="pamt_pfn1",
)
def tdh_mem_page_demote(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    gpa: Gpa,
    level: PgLevel,
    pfn: Pfn,
    lp: LogicalProcessor,
    l2_sept_add_mode: bool = False,
    l2_1_pfn: Pfn | None = None,
    l2_2_pfn: Pfn | None = None,
    l2_3_pfn: Pfn | None = None,
    pamt_pfn0: Pfn | None = None,
    pamt_pfn1: Pfn | None = None,
) -> Steps[SeamcallReturn]:
    """S-EPT leaf of 2M or 1G -> NL_MAPPED above 512 leaves of the next size, in the S-EPT page at frame `pfn`.

    What was blocked comes back open: children are MAPPED or PENDING, and there is nothing to unblock. Contents stay where they are.
    An interrupt that waits for `lp` ends the call with INTERRUPTED_RESTARTABLE; nothing is committed, but the new pages may have been
    written (`module.overwritten`). RCX and RDX then come back as they were.

    Args:
        pamt_pfn0, pamt_pfn1: with Dynamic PAMT, of a 2M page, the page pair that will hold its 512 PAMT entries.
        l2_sept_add_mode: sparse: an L2 VM gets a page only if the range is aliased; otherwise whenever one is given.
    Returns: R9 to R11: the L2 pages as given, with bit 63 set in one that was not needed.

    Source: tdh_mem_page_demote.c; reference 8.11. The entry is locked all the time; the split page's PAMT entry only while it is split.
    """
    tdr, tdcs = yield from lock_td(held, td, LEAF, Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=PG_LEVEL_1G, lowest=PG_LEVEL_2M)
    yield from held.tree(tdcs)
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    if next_state(LEAF, entry.state) is None:
        raise wrong_state(module, LEAF, walk, entry)
    entry = entry.without_accept_counter(level)
    large = module.pamt.entry(entry.pfn_at(level), level)
    yield from check_resizable(module, tdcs, walk, entry, large)
    page = yield from lock_new_page(held, pfn, Operand.R8)
    l2_given = (l2_1_pfn, l2_2_pfn, l2_3_pfn)
    l2_pages = yield from _lock_l2_pages(held, tdcs, entry, l2_given, sparse=l2_sept_add_mode)
    # The new pages are written now, but nothing refers to them.
    rdx = encode("td+l2_sept_add_mode", {"td": td, "l2_sept_add_mode": l2_sept_add_mode})
    interrupted = Refused(Status.TDX_INTERRUPTED_RESTARTABLE, rcx=page_info(gpa, level), rdx=rdx)
    child = entry.unblocked(level)
    module.note_overwritten(pfn, tdr.hkid)
    new = _New(page, split_page(pfn, gfn, level, child, large.pfn))
    l2_new = []
    for vm, l2_page in l2_pages.items():
        yield from _test_interrupts(module, tdcs, lp, interrupted)
        above = yield from _walk_to_l2_entry(module, tdcs, vm, gfn, level)
        module.note_overwritten(l2_page.pfn, tdr.hkid)
        l2_new.append(_New(l2_page, _l2_split_page(l2_page.pfn, gfn, child, large, above), above))
    yield from _test_interrupts(module, tdcs, lp, interrupted)
    yield from pamt_demote(module, held, large, (pamt_pfn0, pamt_pfn1))
    # All checks passed.
    yield from _link(module, tdr, walk, new)
    for l2 in l2_new:
        yield from _link(module, tdr, walk, l2)
    r9, r10, r11 = _echo(l2_given, l2_pages, tdcs.num_l2_vms)
    return SeamcallReturn(Status.TDX_SUCCESS, r9=r9, r10=r10, r11=r11)


class _New(NamedTuple):
    """A page that is filled, and where it goes: below the L2 entry `above`, or below the TD's own."""

    page: PamtEntry
    sept_page: SeptPage
    above: L2Walk | None = None


def _lock_l2_pages(
    held: Held, tdcs: Tdcs, entry: Septe, given: tuple[Pfn | None, ...], *, sparse: bool
) -> Steps[dict[int, PamtEntry]]:
    """Check and lock the pages that will be used. Returns: by VM."""
    used: dict[int, PamtEntry] = {}
    for vm, pfn in enumerate(given[: tdcs.num_l2_vms], 1):
        operand = Operand(Operand.R8 + vm)
        if pfn is None:
            require(not entry.is_aliased(vm), Status.TDX_L2_SEPT_PAGE_NOT_PROVIDED, operand)
        elif not sparse or entry.is_aliased(vm):
            used[vm] = yield from lock_new_page(held, pfn, operand)
    return used


def _test_interrupts(
    module: TdxModule, tdcs: Tdcs, lp: LogicalProcessor, interrupted: Refused
) -> Steps[None]:
    """Stop if an interrupt waits, or the tree is wanted, in releases that look."""
    when = module.profile.demote_interrupts
    if when == "always" or (when == "l2" and tdcs.num_l2_vms > 0):
        why = yield from interruption(module, tdcs, lp, interrupted.status)
        if why is not None:
            interrupted.status = why
            raise interrupted


def _walk_to_l2_entry(module: TdxModule, tdcs: Tdcs, vm: int, gfn: Gfn, level: PgLevel) -> Steps[L2Walk]:
    walk = yield from l2_sept_walk(module, tdcs, vm, gfn, level)
    if walk.level != level:
        raise Refused(Status.TDX_L2_SEPT_WALK_FAILED, walk.operand, *walk.details(tdcs))
    return walk


def _l2_split_page(pfn: Pfn, gfn: Gfn, child: Septe, large: PamtEntry, above: L2Walk) -> SeptPage:
    """The page of an L2 VM: 512 aliases, open unless the page is pending; or FREE entries where there was no alias."""
    if not child.is_aliased(above.vm):
        return SeptPage(pfn, LEVELS[above.level - 1], gfn, above.vm)
    alias = above.entry if child.state.is_pending else above.entry.unblocked()
    return split_page(pfn, gfn, above.level, alias, large.pfn, above.vm)


def _link(module: TdxModule, tdr: Tdr, walk: Walk, new: _New) -> Steps[None]:
    """The entry, still locked, becomes a table; then its page is the TD's. BEPOCH of the page stays what it was.

    Below an L2 entry: the TD's own entry then gets its alias bit, by a read and a write.
    """
    page, above = new.page, new.above
    module.sept_pages[page.pfn] = new.sept_page
    if above is None:
        yield module.write_entry(walk.septe, make(SeptState.NL_MAPPED, page.pfn))
    else:
        yield above.septe.write_once(l2_table(page.pfn))
        word: int = yield walk.septe.read_once()
        yield module.write_entry(walk.septe, Septe(word).with_alias(above.vm))
    module.note_overwritten(page.pfn, None)
    page.assign(PageType.PT_EPT, tdr.pfn)
    yield from module.pamt.count_in(page)
    yield tdr.chldcnt.fetch_add(1)


def _echo(given: tuple[Pfn | None, ...], used: dict[int, PamtEntry], num_l2_vms: int) -> list[int]:
    """R9 to R11: what was given; bit 63 marks a page that an L2 VM did not need."""
    words = []
    for vm, pfn in enumerate(given, 1):
        word = NULL_PA if pfn is None else pfn << PAGE_SHIFT & BIT_63 - 1
        unused = pfn is not None and vm <= num_l2_vms and vm not in used
        words.append(word | BIT_63 if unused else word)
    return words
