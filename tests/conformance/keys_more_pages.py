"""Keys of pages: those that the PHYMEM calls are given, what a mapped page holds, and aliases of L2 VMs."""

from __future__ import annotations

from tdx.module.l2 import L2Septe
from tdx.module.pamt import MAX_PFN, PageType
from tdx.module.sept import SeptPage
from tdx.module.septe import Septe
from tests.conformance.keys_more import only, put
from tests.conformance.keys_td import hold_page
from tests.conformance.situation import EPOCH, NEW, NotExpressible, Situation, Words
from tests.conformance.vocabulary import key
from tests.conformance.world import HKID, OTHER, TDMR, World
from vcpu.addresses import LEVELS, PAGE_SHIFT, PG_LEVEL_4K, Pfn

SIZES = {level.short: level for level in LEVELS[1:4]}


@key(
    "page",
    ok="",
    bad_hpa="hkid misaligned",
    not_in_tdmr="below beyond",
    busy="page 2M 1G",
    inside="2M 1G",
    tdr="",
)
def page(want: Situation, value: str, how: str) -> None:
    """The page of the PHYMEM calls: a page of the TD, an address inside a larger one, the TDR, or what is none."""
    only(want, "TDH.PHYMEM.PAGE.")
    own = NEW if want.call.name.endswith("WBINVD") else OTHER
    if how == "hkid" and own == NEW:
        raise NotExpressible(f"{want.call.name} takes any key")
    if value == "busy":
        level = SIZES.get(how, PG_LEVEL_4K)
        want.then(lambda world: hold_page(world.pamt(own, level)))
    elif value == "inside":
        want.then(lambda world: _become(world, PageType.PT_REG, how))
        want.patch(put("rcx", (OTHER + 1) << PAGE_SHIFT))
    elif value == "tdr":
        want.patch(lambda world, words: words.update(rcx=world.tdr.pfn << PAGE_SHIFT))
    elif how:
        frame = {"hkid": own | MAX_PFN, "misaligned": own, "below": TDMR[0] - 1, "beyond": TDMR[1]}[how]
        want.patch(put("rcx", (frame << PAGE_SHIFT) + (8 if how == "misaligned" else 0)))


@key("page_type", reg="4K 2M 1G", ept="", tdcx="", tdvpr="", nda="", rsvd="")
def page_type(want: Situation, value: str, how: str) -> None:
    """What the page is used for, and of which size it is."""
    only(want, "TDH.PHYMEM.PAGE.")
    want.then(lambda world: _become(world, PageType[f"PT_{value.upper()}"], how))


@key("page_size", **{f"_{name}": "" for name in SIZES})
def page_size(want: Situation, value: str, how: str) -> None:
    """How large the REG page is."""
    want.then(lambda world: _become(world, PageType.PT_REG, value))


def _become(world: World, kind: PageType, size: str) -> None:
    name = world.want.call.name
    pfn = NEW if name.endswith("WBINVD") else OTHER
    world.pamt(pfn).free()
    if name.endswith(("RECLAIM", "RDMD")):
        world.tdr.chldcnt.v -= 1
    if kind in (PageType.PT_NDA, PageType.PT_RSVD):
        world.pamt(pfn).kind = kind
        return
    world.own(kind, pfn, SIZES.get(size, PG_LEVEL_4K))
    world.pamt(pfn, SIZES.get(size, PG_LEVEL_4K)).bepoch.v = EPOCH
    if kind is PageType.PT_EPT:
        world.module.sept_pages[pfn] = SeptPage(Pfn(pfn), PG_LEVEL_4K, 0)


@key("overwritten", _0="", _1="")
def overwritten(want: Situation, value: str, how: str) -> None:
    """Whether the page was written under the TD's key by a call that did not finish."""
    if value == "1":
        want.then(lambda world: world.module.note_overwritten(Pfn(NEW), HKID))


@key("rcx_level", _4K="", _2M="", _1G="")
def rcx_level(want: Situation, value: str, how: str) -> None:
    """The level in RCX of RDMD."""
    only(want, "TDH.PHYMEM.PAGE.RDMD")
    want.patch(lambda _world, words: words.update(rcx=words["rcx"] | SIZES[value].tdx))


# L2 VMs.

ATTRIBUTES = {
    "reserved_bit": (0x8101, 0x7FFF),
    "take_away": (0x8000, 0x2F),
    "write": (0x8002, 2),
    "nothing": (0, 0),
}
"""Attributes that are asked for, and the mask of those that count: bit 0 R, 1 W, 2 and 3 X, 5 PWA, 14:8 reserved, 15 valid."""


@key("asked_attributes", **dict.fromkeys(ATTRIBUTES, ""))
def asked_attributes(want: Situation, value: str, how: str) -> None:
    """What TDG.MEM.PAGE.ATTR.WR asks for L2 VM 1."""
    only(want, "TDG.MEM.PAGE.ATTR.WR")
    want.l2_vms = max(want.l2_vms, 1)
    attributes, flags = ATTRIBUTES[value]

    def ask(_world: World, words: Words) -> None:
        words["rdx"] |= attributes << 16
        words["r8"] |= flags << 16

    want.patch(ask)


@key("l2_way", whole="", broken="", empty="")
def l2_way(want: Situation, value: str, how: str) -> None:
    """Whether the tree of L2 VM 1 has the alias that the entry says is there; it always does, unless the module is broken."""
    want.l2_vms = 1
    if value == "whole":
        want.aliases = 1
        return
    want.l2_tables = value == "empty"
    want.then(lambda world: setattr(world.entry, "v", int(Septe(world.entry.v).with_alias(1))))


@key("l2_twin", open="", blocked="")
def l2_twin(want: Situation, value: str, how: str) -> None:
    """Whether the L2 S-EPT table of VM 1 for the same range is blocked, as it is when BLOCK has blocked the entry."""
    want.l2_vms = want.aliases = 1
    if value == "blocked":
        want.then(_block_twin)


def _block_twin(world: World) -> None:
    table = world.tdcs.l2_roots[0]
    while table.level > world.table.level:
        table = world.module.sept_pages[L2Septe(table.septe(world.gfn).v).pfn]
    cell = table.septe(world.gfn)
    cell.v = int(L2Septe(cell.v).blocked())


@key("page_contents", zero="", some="")
def page_contents(want: Situation, value: str, how: str) -> None:
    """What the page holds that the entry maps."""
    if value == "some":
        want.then(fill_page)


def fill_page(world: World) -> None:
    """Write one qword of it."""
    assert world.page is not None
    world.module.memory.qword((world.page.pfn << PAGE_SHIFT) + 16).v = 0x77
