"""Dynamic PAMT: the 4K entries of a 2M range live in a pair of pages that the host lends, and exist only so long.

Every 2M entry is one of three things: PT_REG, a 2M page of a TD, which needs no 4K entries; PT_PAMT, with a page pair that
holds 512 of them (256 in each page); NDA, with none. TDH.PHYMEM.PAMT.ADD and REMOVE go between the last two. DEMOTE of a 2M
page takes a pair (R12, R13), and PROMOTE to 2M gives it back there. A call that wants a 4K page nobody has, in a range
without a pair, fails with TDX_MISSING_PAMT_PAGE_PAIR; a 2M page cannot be added where a pair is.

Two words are new, each changed by atomic accesses:

- a bitmap with one bit for each 4K page of a TDMR, set while the page holds PAMT entries. Such a page has no PAMT type of its
  own (it may lie in a range without a pair), so the bit keeps it from being given to a TD, or lent twice.
- a count of the 512 pages that are in use, in the 2M entry. Whoever takes the last one out gets a hint with the page's address
  (bit 62): REMOVE would now succeed. The module keeps this count beside the host's own. KVM's posted series do not use the hint: without
  a lock around decision and REMOVE it is old when it arrives (Kirill Shutemov, kvm@, June 2025; races.md R81, R83).

Nothing in the module orders REMOVE with calls that reach a 4K entry implicitly, as PAGE.REMOVE does, and lock only that entry.
A REMOVE between such a call's last change and its unlocking takes the lock word away under it: a finding here (use after
free), in reality a write to a page of the host. A REMOVE between making the page NDA and counting it out finds the count not
zero, which shuts the module down. The host has to wait until such calls have returned.

The releases: public source has Dynamic PAMT (FEATURES0 bit 36) from 1.5.16 on, the count and the hint from 1.5.20 on. Here it is a
switch of every profile (`Profile.with_dynamic_pamt`), always with count and hint. SYS.CONFIG, which turns it on, is not modelled.
Nor are the contents of the pair's pages, TDX_INTERRUPTED_PAMT of IMPORT.MEM, and the bits of reserved areas.
Source: TDX module 1.5.25, pamt_manager.c, helpers.c:non_shared_hpa_metadata_check_and_lock, tdh_phymem_pamt_add.c and
tdh_phymem_pamt_remove.c; reference 15.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Cell, Steps
from sim.access import free_cell
from sim.dependence import UPDATE, WRITE, note
from tdx.module.operands import BAD_PFN
from tdx.module.pamt import ASSIGNED, PageType, Pamt, PamtEntry
from tdx.module.status import Operand, Refused, Status
from vcpu.addresses import ENTRIES, PAGE_SHIFT, PG_LEVEL_2M, PG_LEVEL_4K, Pfn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tdx.module.locks import Held
    from tdx.module.module import TdxModule

PAGES_IN_PAIR = 2
PAGES_IN_WORD = 64
REMOVAL_HINT = 1 << 62
"""In a returned page address: the page's 2M range needs its page pair no longer."""


class PagePair:
    """The two pages that hold the 4K entries of a 2M range, and how many of its 4K pages are in use."""

    __slots__ = ("count", "pfns")

    def __init__(self, entry: PamtEntry, pfns: tuple[Pfn, Pfn], count: int) -> None:
        self.pfns = pfns
        self.count: Cell[int] = Cell(f"pamt[{entry.pfn:#x},{entry.level.short}].page_count", count)


class DynamicPamt(Pamt):
    """The table with 1G and 2M arrays, a bitmap, and 4K entries where page pairs are."""

    __slots__ = ("_bitmap",)

    def __init__(self, tdmrs: Sequence[tuple[int, int]]) -> None:
        super().__init__(tdmrs)
        self._bitmap: dict[int, Cell[int]] = {}

    def is_leaf(self, entry: PamtEntry) -> bool:
        """Whether no smaller entries lie below, be it a page or a range without a pair."""
        kind = self.kind_of(entry)
        if entry.level == PG_LEVEL_2M:
            return kind is not PageType.PT_PAMT
        return kind is not PageType.PT_NDA

    def wrong_size(self, reached: PamtEntry, kind: PageType) -> Status:
        """A range that is nobody's lacks a page pair for a 4K page that is wanted as nobody's."""
        if reached.level == PG_LEVEL_2M and kind is reached.kind is PageType.PT_NDA:
            return Status.TDX_MISSING_PAMT_PAGE_PAIR
        return Status.TDX_PAGE_METADATA_INCORRECT

    def holds_metadata(self, pfn: int) -> Steps[bool]:
        """Whether the page holds PAMT entries. Yields: one read of the bitmap."""
        word: int = yield self.bitmap_word(pfn).read_once()
        return word >> pfn % PAGES_IN_WORD & 1 != 0

    def is_free(self, pfn: int) -> bool:
        """Whether no page of the 2M frame, which has no pair, holds PAMT entries."""
        numbers = range(pfn // PAGES_IN_WORD, (pfn + ENTRIES) // PAGES_IN_WORD)
        return not any(number in self._bitmap and self._bitmap[number].v for number in numbers)

    def count_in(self, page: PamtEntry) -> Steps[None]:
        """One 4K page more of its range is in use. Yields: one access, for a 4K page."""
        if page.level == PG_LEVEL_4K:
            yield self.pair_of(page.pfn).count.fetch_add(1)

    def count_out(self, page: PamtEntry) -> Steps[int]:
        """One 4K page less. Yields: one access, for a 4K page. Returns: `REMOVAL_HINT` if it was the last."""
        if page.level != PG_LEVEL_4K:
            return 0
        before: int = yield self.pair_of(page.pfn).count.fetch_add(-1)
        return REMOVAL_HINT if before == 1 else 0

    # Page pairs.

    def bitmap_word(self, pfn: int) -> Cell[int]:
        """The 64 bits of the bitmap that the page's bit is among."""
        number = pfn // PAGES_IN_WORD
        word = self._bitmap.get(number)
        if word is None:
            word = self._bitmap[number] = Cell(f"pamt.bitmap[{number * PAGES_IN_WORD:#x}]", 0)
        return word

    def pair_of(self, pfn: int) -> PagePair:
        """The page pair of the 2M range around `pfn`, which has one."""
        pair = self.entry(pfn, PG_LEVEL_2M).holds
        assert isinstance(pair, PagePair), f"no page pair for {pfn:#x}"
        return pair

    def claim(self, pfns: tuple[Pfn, Pfn], operands: tuple[Operand, Operand]) -> Steps[None]:
        """Set the bits of two pages, or neither. Yields: one access each, and one more to take the first back."""
        if not (yield from self._set_bit(pfns[0])):
            raise Refused(Status.TDX_PAGE_NOT_FREE, operands[0])
        if not (yield from self._set_bit(pfns[1])):
            yield from self._clear_bit(pfns[0])
            raise Refused(Status.TDX_PAGE_NOT_FREE, operands[1])

    def release(self, pfns: tuple[Pfn, Pfn]) -> Steps[None]:
        """Clear the bits of two pages."""
        for pfn in pfns:
            yield from self._clear_bit(pfn)

    def install(self, entry: PamtEntry, pfns: tuple[Pfn, Pfn], count: int = 0) -> None:
        """Make a 2M entry, which is held exclusive, one with a page pair; all 4K entries are new and NDA."""
        entry.assign(PageType.PT_PAMT, None, PagePair(entry, pfns, count))
        self._drop_entries(entry.pfn)

    def withdraw(self, entry: PamtEntry) -> tuple[Pfn, Pfn]:
        """Take the page pair away from a 2M entry, which is held exclusive; its 4K entries are gone with it."""
        pfns = self.pair_of(entry.pfn).pfns
        entry.free()
        self._drop_entries(entry.pfn)
        return pfns

    def split(self, held: Held, large: PamtEntry, pair: tuple[Pfn | None, Pfn | None]) -> Steps[None]:
        """DEMOTE: a 2M entry, which is held exclusive, gets a page pair; its 512 entries are REG of the same owner.

        The pages' own 2M entries are locked shared meanwhile: a page in the range that is split is busy whenever it is tried.
        Raises: Refused: OPERAND_INVALID, ADDR_RANGE_ERROR, BUSY or PAGE_NOT_FREE on R12 or R13, nothing changed.
        """
        pfns = tuple(BAD_PFN if pfn is None else pfn for pfn in pair)
        operands = (Operand.R12, Operand.R13)
        for check in (self.check_address, self.check_tdmr):
            for pfn, operand in zip(pfns, operands, strict=True):
                check(pfn, PG_LEVEL_4K, operand)
        mark = held.depth
        for pfn, operand in zip(pfns, operands, strict=True):
            yield from lock_pair_page(held, pfn, operand)
        yield from self.claim((pfns[0], pfns[1]), operands)
        kind, owner = self.kind_of(large), large.owner
        self.install(large, (pfns[0], pfns[1]), count=ENTRIES)
        for number in range(large.pfn, large.pfn + ENTRIES):
            self.entry(number, PG_LEVEL_4K).assign(kind, owner)
        yield from held.release(down_to=mark)

    def pair_addresses(self, entry: PamtEntry) -> tuple[int, int]:
        """Of the page pair of an entry that has one."""
        if not isinstance(entry.holds, PagePair):
            return 0, 0
        one, other = entry.holds.pfns
        return one << PAGE_SHIFT, other << PAGE_SHIFT

    def merge(self, large: PamtEntry) -> Steps[None]:
        """PROMOTE: a 2M entry, which is held exclusive, gets type and owner of its 512 entries, BEPOCH 0, and loses its page pair."""
        first = self.entry(large.pfn, PG_LEVEL_4K)
        kind, owner = self.kind_of(first), first.owner
        yield large.bepoch.write_once(0)
        pfns = self.withdraw(large)
        large.assign(kind, owner)
        yield from self.release(pfns)

    def _drop_entries(self, first: Pfn) -> None:
        """The memory that the 4K entries of a range lay in is something else now; who still uses one is found."""
        array = self._arrays[PG_LEVEL_4K]
        for number in range(first, first + ENTRIES):
            entry = array.pop(number, None)
            if entry is not None:
                note(entry.owned, WRITE)
                free_cell(entry.lock)
                free_cell(entry.bepoch)

    def _set_bit(self, pfn: Pfn) -> Steps[bool]:
        bit = 1 << pfn % PAGES_IN_WORD
        before: int = yield self.bitmap_word(pfn).fetch_or(bit)
        note(ASSIGNED, UPDATE)
        return not before & bit

    def _clear_bit(self, pfn: Pfn) -> Steps[None]:
        yield self.bitmap_word(pfn).fetch_and(~(1 << pfn % PAGES_IN_WORD))
        note(ASSIGNED, UPDATE)


def dynamic_table(module: TdxModule) -> DynamicPamt:
    """The table, if it is dynamic; else refuse the call as one of an unknown leaf."""
    if not isinstance(module.pamt, DynamicPamt):
        raise Refused(Status.TDX_OPERAND_INVALID, Operand.RAX)
    return module.pamt


def lock_range(held: Held, pfn: Pfn) -> Steps[PamtEntry]:
    """Lock the 2M entry of a range exclusive, or the 1G entry if that is a page; the range must be in a TDMR."""
    held.module.pamt.check_tdmr(pfn, PG_LEVEL_2M, Operand.RCX)
    return (yield from held.walk(pfn, PG_LEVEL_2M, Operand.RCX, exclusive=True))


def lock_pair_page(held: Held, pfn: Pfn, operand: Operand) -> Steps[None]:
    """Lock a page that is to hold PAMT entries shared, and see that it is nobody's, in a range with or without a pair.

    The caller has checked the address. Whether it holds PAMT entries already shows when its bit is set.
    """
    page = yield from held.walk(pfn, PG_LEVEL_4K, operand, exclusive=False)
    if page.kind is not PageType.PT_NDA:
        raise Refused(Status.TDX_PAGE_NOT_FREE, operand)
