"""A module and the names in it: TDs, vCPUs, logical processors, and which pages are free.

Physical memory is 16M to 4G of one TDMR. Pages for control structures and S-EPT are taken from below 2G, data pages from 2G on,
those of 4K from 3G on: so 512 of a kind lie side by side, as a merge wants them. A page is free if the module's PAMT says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sim import Kernel
from tdx.module import LogicalProcessor, Tdvps, TdxModule, profile_named
from tdx.module.dynamic_pamt import PAGES_IN_WORD, DynamicPamt
from tdx.module.objects import NOT_ASSOCIATED, HkidState, Tdr
from tdx.module.pamt import PageType
from tdx.module.septe import Septe
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_4K, Pfn, PgLevel
from vcpu.tlb import Tlb

TDMR: Final = (0x1000, 0x100000)
CONTROL_FROM: Final = 0x1000
DATA_FROM: Final = 0x80000
SMALL_DATA_FROM: Final = 0xC0000
LPS: Final = 6
HOST_LPS_FROM: Final = 4
"""LPs from here on are where the host calls, unless the call is about a vCPU that belongs elsewhere."""
PAGES_OF_DYNAMIC_PAMT: Final = "+dpamt"


class World:
    """A TDX module with names.

    Args: profile: a release's name, with `+dpamt` at its end for Dynamic PAMT.
    Raises: ValueError: no such release.
    """

    def __init__(self, profile: str) -> None:
        release = profile_named(profile.removesuffix(PAGES_OF_DYNAMIC_PAMT))
        if profile.endswith(PAGES_OF_DYNAMIC_PAMT):
            release = release.with_dynamic_pamt()
        self.kernel = Kernel()
        self.module = TdxModule(self.kernel, tdmr=[TDMR], profile=release)
        self.td_pages: dict[str, Pfn] = {}
        self.vcpu_pages: dict[str, Pfn] = {}
        self.tlbs = [Tlb() for _ in range(LPS)]
        self.interrupts = [False] * LPS
        self.rips: dict[int, tuple[str, int]] = {}
        """Where the guest of a TDVPR stands: the instruction that has not happened yet ("" if none), and its address."""
        self.lps = [self._lp(n) for n in range(LPS)]

    def _lp(self, n: int) -> LogicalProcessor:
        return LogicalProcessor(
            n,
            flush_tlb=lambda td_key: self.tlbs[n].flush(self.td_name(td_key)),
            interrupt_pending=lambda: self.interrupts[n],
        )

    # Names.

    def td_name(self, pfn: int | None) -> str:
        """The TD whose TDR that is; its address if it has no name."""
        return _name_of(self.td_pages, pfn)

    def vcpu_name(self, pfn: int | None) -> str:
        """The vCPU whose TDVPR that is; its address if it has no name."""
        return _name_of(self.vcpu_pages, pfn)

    def tdr(self, name: str) -> Tdr | None:
        """The TDR of that name, if the page is one (yet, still)."""
        holds = self.module.pamt.entry(self.td_pages[name], PG_LEVEL_4K).holds
        return holds if isinstance(holds, Tdr) else None

    def vcpu(self, name: str) -> Tdvps | None:
        """The vCPU of that name, if the page is one (yet, still)."""
        holds = self.module.pamt.entry(self.vcpu_pages[name], PG_LEVEL_4K).holds
        return holds if isinstance(holds, Tdvps) else None

    def living_tds(self) -> Iterator[tuple[str, Tdr]]:
        """The TDs that exist, by name."""
        for name in self.td_pages:
            tdr = self.tdr(name)
            if tdr is not None:
                yield name, tdr

    def living_vcpus(self) -> Iterator[tuple[str, Tdvps]]:
        """The vCPUs that exist, by name."""
        for name in self.vcpu_pages:
            vcpu = self.vcpu(name)
            if vcpu is not None:
                yield name, vcpu

    def new_name(self, kind: str) -> str:
        """The first name of that kind that nobody has: `td0`, `vcpu1`."""
        taken = self.td_pages if kind == "td" else self.vcpu_pages
        return next(f"{kind}{n}" for n in range(len(taken) + 1) if f"{kind}{n}" not in taken)

    def forget_dead(self, coming: set[int]) -> None:
        """Drop the names of pages that are no TDR or TDVPR any more. Args: coming: frames that may yet become one."""
        for pages, alive in ((self.td_pages, self.tdr), (self.vcpu_pages, self.vcpu)):
            for name in [name for name in pages if alive(name) is None and pages[name] not in coming]:
                del pages[name]

    def lp_of(self, vcpu: str) -> int:
        """Where a vCPU belongs: the LP it is associated with, else the one of its number."""
        known = self.vcpu(vcpu) if vcpu in self.vcpu_pages else None
        if known is not None and known.assoc_lpid.peek() != NOT_ASSOCIATED:
            return known.assoc_lpid.peek()
        digits = vcpu.removeprefix("vcpu")
        return int(digits[:6]) % HOST_LPS_FROM if digits.isdecimal() else 0

    # Free pages and keys.

    def free_page(self, taken: set[int], *, data: PgLevel | None) -> Pfn | None:
        """The first free page, or None if memory is used up.

        Args: taken: frames that somebody is about to use. data: the size of a data page; None for a structure of the module.
        """
        if data is None:
            return self._first_free(CONTROL_FROM, DATA_FROM, PG_LEVEL_4K, taken)
        if data == PG_LEVEL_4K:
            return self._first_free(SMALL_DATA_FROM, TDMR[1], data, taken)
        return self._first_free(DATA_FROM, SMALL_DATA_FROM, data, taken)

    def _first_free(self, start: int, end: int, level: PgLevel, taken: set[int]) -> Pfn | None:
        pamt = self.module.pamt
        for pfn in range(start, end, level.pages):
            if pfn in taken or pamt.leaf(pfn).kind is not PageType.PT_NDA or self._holds_pamt(pfn):
                continue
            if level == PG_LEVEL_4K or pamt.is_free(pfn):
                return Pfn(pfn)
        return None

    def _holds_pamt(self, pfn: int) -> bool:
        """Whether Dynamic PAMT has entries in the page."""
        pamt = self.module.pamt
        return isinstance(pamt, DynamicPamt) and pamt.bitmap_word(pfn).peek() >> pfn % PAGES_IN_WORD & 1 != 0

    def free_hkid(self) -> int:
        """The first key id that is free; the first of all if none is."""
        hkids = self.module.kot.hkids
        return next((n for n, hkid in hkids.items() if hkid.state is HkidState.FREE), min(hkids))

    # Where things are.

    def entry_at(self, tdr: Tdr, gfn: int, level: int) -> tuple[PgLevel, Septe] | None:
        """The entry of that level around `gfn`, or the one above it where the tree ends; None before MNG.INIT."""
        if not tdr.tdcs.has_root:
            return None
        page = tdr.tdcs.root
        while True:
            entry = Septe(page.septe(gfn).peek())
            if page.level <= level or entry.is_leaf or not entry.rwx:
                return page.level, entry
            page = self.module.sept_pages[entry.pfn_at(0)]


def _name_of(pages: dict[str, Pfn], pfn: int | None) -> str:
    if pfn is None:
        return "nobody"
    for name, known in pages.items():
        if known == pfn:
            return name
    return f"{pfn << PAGE_SHIFT:#x}"
