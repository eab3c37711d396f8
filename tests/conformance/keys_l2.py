"""Keys about L2 VMs: aliases, their tables, the pages that calls take for them, and the attributes that a guest gives."""

from __future__ import annotations

from collections.abc import Callable

from tdx.module.l2 import (
    ATTR_BITS,
    ATTR_PWA,
    ATTR_R,
    ATTR_RWX,
    ATTR_VALID,
    ATTR_W,
    ATTR_XS,
    l2_table,
)
from tdx.module.objects import EPT_VIOLATION_ON_L2_SEPT_WALK_FAILURE
from tdx.module.pamt import PageType
from tdx.module.sept import SeptPage
from tests.conformance.keys_td import hold_page
from tests.conformance.situation import NotExpressible, Situation, Words
from tests.conformance.vocabulary import key, measure
from tests.conformance.world import World
from tests.conformance.world import l2_page as l2_page_of
from vcpu.addresses import PAGE_SHIFT


@key("l2_vms", "num_l2_vms", _0="", _1="", _2="", _3="")
def l2_vms(want: Situation, value: str, how: str) -> None:
    """How many L2 VMs the TD has."""
    want.l2_vms = int(value)


@key("l2_alias", _0="", _1="")
def l2_alias(want: Situation, value: str, how: str) -> None:
    """Whether L2 VM 1 has an alias of the range."""
    want.l2_vms = max(want.l2_vms, 1)
    want.aliases = int(value)


def _needs_l2_pages(want: Situation) -> None:
    if want.call.name not in ("TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.DEMOTE"):
        raise NotExpressible(f"{want.call.name} takes no L2 pages")
    want.version = want.call.versions - 1
    want.l2_vms = max(want.l2_vms, 1)


@key(
    "l2_page",
    "l2_pages",
    null="",
    nonnull="",
    ok="",
    bad_hpa="hkid",
    not_in_tdmr="",
    busy="",
    not_nda="",
    bad_vm="",
)
def l2_page(want: Situation, value: str, how: str) -> None:
    """The page for the table of L2 VM 1, in R9."""
    _needs_l2_pages(want)
    if value == "bad_vm":
        l2_vm(want, "bad", "")
        return
    pfn = l2_page_of(1)
    want.l2_pages = max(want.l2_pages, int(value != "null"))
    if value == "busy":
        want.then(lambda world: hold_page(world.pamt(pfn)))
    elif value == "not_nda":
        want.then(lambda world: world.own(PageType.PT_EPT, pfn))
    elif value in ("bad_hpa", "not_in_tdmr"):
        word = pfn << PAGE_SHIFT | 1 << 46 if value == "bad_hpa" else 1 << PAGE_SHIFT
        want.patch(lambda _world, words: words.update(r9=word))


@key("l2_vm", ok="", bad="", invalid="", not_existing="")
def l2_vm(want: Situation, value: str, how: str) -> None:
    """Whether the TD has the L2 VM that a page is given for."""
    _needs_l2_pages(want)
    want.l2_pages = 1
    want.l2_vms = 1 if value == "ok" else 0


@measure("l2_pages_left", against="0")
def l2_pages_left(want: Situation, count: int) -> None:
    """How many L2 pages are still to be added after the first page."""
    _needs_l2_pages(want)
    want.l2_vms = max(want.l2_vms, count)
    want.l2_pages = count
    if count > 3:
        raise NotExpressible("a TD has three L2 VMs")


@key("l2_walk", ok="", failed="")
def l2_walk(want: Situation, value: str, how: str) -> None:
    """Whether the tree of L2 VM 1 reaches down to the range."""
    want.l2_vms = max(want.l2_vms, 1)
    want.l2_tables = value == "ok"
    if want.call.name == "TDG.MEM.PAGE.ATTR.WR":
        want.patch(_ask_attributes)
    else:
        _needs_l2_pages(want)
        want.l2_pages = 1


@key("l2_entry", ok="", free="", not_free="")
def l2_entry(want: Situation, value: str, how: str) -> None:
    """Whether L2 VM 1 has a table of its own for the range already."""
    _needs_l2_pages(want)
    want.l2_pages = 1
    want.aliases = int(value == "not_free")


@key("l2_children", all_free="", not_all_free="")
def l2_children(want: Situation, value: str, how: str) -> None:
    """What the L2 S-EPT page of VM 1 below holds."""
    want.l2_vms = max(want.l2_vms, 1)
    want.aliases = max(want.aliases, 1)
    if value == "not_all_free":
        want.then(_fill_l2_table)


def _l2_table(world: World) -> SeptPage:
    level = world.table.level - 1
    pages = world.module.sept_pages.values()
    found = next((page for page in pages if page.vm == 1 and page.level == level), None)
    if found is None:
        raise NotExpressible("L2 VM 1 has no table below")
    return found


def _fill_l2_table(world: World) -> None:
    table = _l2_table(world)
    table.septe(table.gfn(3)).v = int(l2_table(world.own(PageType.PT_EPT)))


@key("l2_page_pamt", "l2_sept_page_pamt", "removed_l2_sept_page_pamt", free="", busy="")
def l2_page_pamt(want: Situation, value: str, how: str) -> None:
    """The PAMT entry of the L2 S-EPT page of VM 1: the one below, or the one that is given."""
    if want.call.name in ("TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.DEMOTE"):
        l2_page(want, "busy" if value == "busy" else "ok", "")
        return
    want.l2_vms = max(want.l2_vms, 1)
    want.aliases = max(want.aliases, 1)
    if value == "busy":
        want.then(lambda world: hold_page(world.pamt(_l2_table(world).pfn)))


@key("l2_flag", "l2_attributes", "read_l2", _0="", _1="")
def l2_flag(want: Situation, value: str, how: str) -> None:
    """Flag of SEPT.RD: show the attributes of the L2 VMs."""
    if want.call.name != "TDH.MEM.SEPT.RD":
        raise NotExpressible(f"{want.call.name} has no such flag")
    want.patch(lambda _world, words: words.update(rdx=words["rdx"] | int(value)))


@key("l2_sept_add_mode", _0="", _1="")
def l2_sept_add_mode(want: Situation, value: str, how: str) -> None:
    """Flag of DEMOTE: add L2 pages only where there is an alias."""
    if want.call.name != "TDH.MEM.PAGE.DEMOTE":
        raise NotExpressible(f"{want.call.name} has no such flag")
    want.patch(lambda _world, words: words.update(rdx=words["rdx"] | int(value)))


@key("exit_on_l2_walk_fail", _0="", _1="")
def exit_on_l2_walk_fail(want: Situation, value: str, how: str) -> None:
    """VM_CTLS of L2 VM 1: leave to the host where its tree does not reach."""
    want.l2_vms = max(want.l2_vms, 1)
    ctls = EPT_VIOLATION_ON_L2_SEPT_WALK_FAILURE if value == "1" else 0
    want.then(lambda world: world.tdcs.vm_ctls.__setitem__(0, ctls))


def _attributes(attributes: int, mask: int, vm: int = 1) -> Callable[[World, Words], None]:
    """Ask for attributes of one VM: RDX the values, R8 which of them count."""

    def change(_world: World, words: Words) -> None:
        words["rdx"] |= attributes << ATTR_BITS * vm
        words["r8"] |= mask << ATTR_BITS * vm

    return change


_ask_attributes = _attributes(ATTR_VALID | ATTR_R, ATTR_R)


@key(
    "attr",
    ok="",
    bad="l1 no_such_vm not_valid",
    bad_flags="l1 no_such_vm",
    bad_mask="l1 no_such_vm",
    illegal_combination="write_only pwa_only",
)
def attr(want: Situation, value: str, how: str) -> None:
    """The attributes that ATTR.WR is to give."""
    if want.call.name != "TDG.MEM.PAGE.ATTR.WR":
        raise NotExpressible(f"{want.call.name} takes no attributes")
    want.l2_vms = max(want.l2_vms, 1)
    asked = {
        "ok": _ask_attributes,
        "bad/l1": _attributes(ATTR_VALID | ATTR_R, 0, vm=0),
        "bad/no_such_vm": _attributes(ATTR_VALID | ATTR_R, 0, vm=3),
        "bad/not_valid": _attributes(ATTR_R, ATTR_R),
        "bad_flags/l1": _attributes(0, ATTR_R, vm=0),
        "bad_flags/no_such_vm": _attributes(0, ATTR_R, vm=3),
        "illegal_combination/write_only": _attributes(ATTR_VALID | ATTR_W, ATTR_W | ATTR_R),
        "illegal_combination/pwa_only": _attributes(ATTR_VALID | ATTR_XS | ATTR_PWA, ATTR_RWX | ATTR_PWA),
    }
    value = value.replace("mask", "flags")
    want.patch(asked[f"{value}/{how}" if how else value])
