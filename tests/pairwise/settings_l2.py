"""Settings with L2 VMs: their trees, written directly beside the TD's own, and the calls that act on aliases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tdx.module import LEAVES, PageType, SeamcallReturn, Septe, SeptState
from tdx.module.l2 import (
    ATTR_R,
    ATTR_SVE,
    ATTR_VALID,
    ATTR_W,
    ATTR_XS,
    L2Septe,
    l2_leaf,
    l2_table,
    pack_attributes,
)
from tdx.module.objects import DEBUG, EPT_VIOLATION_ON_L2_SEPT_WALK_FAILURE, TDCX_PAGES
from tdx.module.profile import TDX_1_5_28, TDX_2_0
from tdx.module.sept import SeptPage
from tdx.module.status import NULL_PA
from tests.pairwise.calls import ENTRY, PARENT, TD
from tests.pairwise.search import Dress
from tests.pairwise.settings import Act, Answer, Setting, both, interrupted
from tests.pairwise.states import Age, Guest, State
from tests.pairwise.world import FIRST_TDCX, TABLE, World
from vcpu.addresses import (
    LEVELS,
    PAGE_SHIFT,
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    PG_LEVEL_512G,
    Pfn,
    PgLevel,
    gpa_of,
)

S = SeptState
READ_WRITE = ATTR_VALID | ATTR_R | ATTR_W
READ_EXECUTE = ATTR_VALID | ATTR_R | ATTR_XS
WRITE_ONLY = ATTR_VALID | ATTR_W
NOTHING = ATTR_VALID
ALL = 0x7FFF
FIRST_L2_TABLE = 0x1070
TABLES_PER_VM = 8

# Worlds.


def own(world: World, pfn: int, kind: PageType) -> Pfn:
    """One more page of the TD."""
    world._assign(pfn, PG_LEVEL_4K, kind)
    world.tdr.chldcnt.v += 1
    return Pfn(pfn)


def l2_vms(*reaches: PgLevel, attributes: Sequence[int] = ()) -> Dress:
    """L2 VMs whose trees lead to their entry of this level at the place, and what they may do with the page there.

    A vCPU has no pages for its L2 VMs: nothing here enters one.
    """

    def dress(world: World) -> None:
        tdcs = world.tdcs
        tdcs.num_l2_vms = len(reaches)
        for vm, reach in enumerate(reaches, 1):
            root_pfn = own(world, FIRST_TDCX + TDCX_PAGES + vm - 1, PageType.PT_TDCX)
            world.tdr.tdcx.append(root_pfn)
            root = SeptPage(root_pfn, tdcs.root.level, 0, vm)
            tdcs.l2_roots.append(root)
            _grow(world, root, reach, attributes[vm - 1] if vm <= len(attributes) else 0)

    return dress


def _grow(world: World, root: SeptPage, reach: PgLevel, attributes: int) -> None:
    """The tables below a root, an alias bit for each, and the alias of the page."""
    gfn, vm, module = world.gfn, root.vm, world.module
    l1, l2 = world.tdcs.root, root
    frames = FIRST_L2_TABLE + TABLES_PER_VM * vm
    while l2.level > reach:
        above = Septe(l1.septe(gfn).v)
        pfn = own(world, frames + l2.level, PageType.PT_EPT)
        below = SeptPage(pfn, LEVELS[l2.level - 1], gfn & -l2.level.pages, vm)
        module.sept_pages[pfn] = below
        linked = l2_table(pfn)
        l2.septe(gfn).v = int(linked.blocked() if above.state.is_blocked else linked)
        l1.septe(gfn).v = int(above.with_alias(vm))
        l1, l2 = module.sept_pages[above.pfn_at(0)], below
    if attributes:
        page = Septe(l1.septe(gfn).v)
        hidden = page.state.is_blocked or page.state.is_pending
        l2.septe(gfn).v = int(l2_leaf(attributes, page.pfn_at(reach), blocked=hidden))
        l1.septe(gfn).v = int(page.with_alias(vm))


def debug(world: World) -> None:
    """The host may look into the TD."""
    world.tdcs.attributes = DEBUG


def exits_on_walk(world: World) -> None:
    """A missing L2 table is the host's business, not the guest's."""
    world.tdcs.vm_ctls[:2] = [EPT_VIOLATION_ON_L2_SEPT_WALK_FAILURE] * 2


def do(world: World, name: str, **operands: Any) -> None:
    """A call that is made before the threads start."""
    result = world.kernel.prepare(LEAVES[name].call(world.module, td=world.td, **operands))
    assert result.ok, f"{name}: {result}"


def split(world: World) -> None:
    """The large page at the parent has been split, in the trees of both L2 VMs too, and the table above it is blocked and tracked."""
    place: dict[str, Any] = {"gpa": gpa_of(world.gfn), "level": world.parent_level}
    pages = {"l2_1_pfn": Pfn(TABLE + 1), "l2_2_pfn": Pfn(TABLE + 2)}
    do(world, "TDH.MEM.PAGE.DEMOTE", **place, pfn=TABLE, lp=world.lps["a"], **pages)
    do(world, "TDH.MEM.RANGE.BLOCK", **place)
    do(world, "TDH.MEM.TRACK")


def one_child_differs(world: World) -> None:
    """One alias among the 512 has attributes of its own."""
    table = world.module.sept_pages[TABLE + 1]
    cell = table.at(3)
    cell.v = int(L2Septe(cell.v).with_attributes(READ_EXECUTE))


# Calls.


def _of_vm(*words: int) -> int:
    return pack_attributes((0, *words))


def _attr_wr(variant: str, attributes: Sequence[int], masks: Sequence[int], at: str = ENTRY) -> Act:
    needs = {"attributes": _of_vm(*attributes), "flags": _of_vm(*masks)}
    return Act("TDG.MEM.PAGE.ATTR.WR", at, "G", lambda _world, _who: needs, variant=variant)


def _add(variant: str, *, sept_page: bool, allow_existing: bool = False) -> Act:
    def needs(world: World, _who: str) -> dict[str, Any]:
        return {
            "pfn": world.spare if sept_page else None,
            "l2_1_pfn": Pfn(world.spare + 1),
            "l2_2_pfn": Pfn(world.spare + 2),
            "version": 1,
            "allow_existing": allow_existing,
        }

    return Act("TDH.MEM.SEPT.ADD", PARENT, "S", needs, variant=variant, again=_with_what_is_left)


def _with_what_is_left(_operands: Mapping[str, Any], answer: Answer) -> Mapping[str, Any]:
    assert isinstance(answer, SeamcallReturn)
    left = (answer.r8, answer.r9, answer.r10)
    names = ("pfn", "l2_1_pfn", "l2_2_pfn")
    return {
        name: None if word == NULL_PA else Pfn(word >> PAGE_SHIFT)
        for name, word in zip(names, left, strict=True)
    }


def _demote(variant: str, vms: int, *, sparse: bool) -> Act:
    def needs(world: World, _who: str) -> dict[str, Any]:
        given = {f"l2_{vm}_pfn": Pfn(world.spare + vm) for vm in range(1, vms + 1)}
        return {"pfn": world.spare, "l2_sept_add_mode": sparse, **given}

    return Act("TDH.MEM.PAGE.DEMOTE", PARENT, "S", needs, variant=variant)


def _version(name: str, version: int) -> Act:
    return Act(name, PARENT, "S", lambda _world, _who: {"version": version}, variant=f"v{version}")


def _simple(name: str, at: str, variant: str = "", **needs: Any) -> Act:
    return Act(name, at, "S", lambda _world, _who: needs, variant=variant)


SEPT_RD = _simple("TDH.MEM.SEPT.RD", ENTRY)
SEPT_RD_PARENT = _simple("TDH.MEM.SEPT.RD", PARENT, variant="parent")
SEPT_RD_L2 = _simple("TDH.MEM.SEPT.RD", ENTRY, variant="L2 attributes", read_l2_attributes=True)
SEPT_RD_L2_PARENT = _simple(
    "TDH.MEM.SEPT.RD", PARENT, variant="parent, L2 attributes", read_l2_attributes=True
)
BLOCK = _simple("TDH.MEM.RANGE.BLOCK", ENTRY)
BLOCK_PARENT = _simple("TDH.MEM.RANGE.BLOCK", PARENT, variant="parent")
UNBLOCK = _simple("TDH.MEM.RANGE.UNBLOCK", ENTRY)
UNBLOCK_PARENT = _simple("TDH.MEM.RANGE.UNBLOCK", PARENT, variant="parent")
TRACK = _simple("TDH.MEM.TRACK", TD)
REMOVE = _simple("TDH.MEM.PAGE.REMOVE", ENTRY)
REMOVE_PARENT = _simple("TDH.MEM.PAGE.REMOVE", PARENT, variant="parent")
AUG_PARENT = Act("TDH.MEM.PAGE.AUG", PARENT, "S", lambda world, _who: {"pfn": world.spare}, variant="parent")
MEM_RD = _simple("TDH.MEM.RD", ENTRY)
UNBLOCKW = _simple("TDH.EXPORT.UNBLOCKW", ENTRY)
RELOCATE = Act("TDH.MEM.PAGE.RELOCATE", ENTRY, "S", lambda world, _who: {"pfn": world.spare})
AUG = Act("TDH.MEM.PAGE.AUG", ENTRY, "S", lambda world, _who: {"pfn": world.spare})
ADD = _add("v1", sept_page=True)
ADD_L2 = _add("v1, L2 pages only", sept_page=False)
ADD_MISSING = _add("v1, what is missing", sept_page=True, allow_existing=True)
SEPT_REMOVE, SEPT_REMOVE_1 = (_version("TDH.MEM.SEPT.REMOVE", version) for version in (0, 1))
PROMOTE, PROMOTE_1 = (_version("TDH.MEM.PAGE.PROMOTE", version) for version in (0, 1))
DEMOTE = _demote("sparse", 2, sparse=True)
DEMOTE_DENSE = _demote("dense", 2, sparse=False)
DEMOTE_WITHOUT = _demote("no L2 pages", 0, sparse=True)
ACCEPT = _simple("TDG.MEM.PAGE.ACCEPT", ENTRY)
ATTR_RD = _simple("TDG.MEM.PAGE.ATTR.RD", ENTRY)
GIVE = _attr_wr("give to VM 2", (0, READ_WRITE), (0, ALL))
CHANGE = _attr_wr("change VM 1's", (READ_EXECUTE,), (ALL,))
TAKE = _attr_wr("take from VM 1", (NOTHING,), (ALL,))
ILLEGAL = _attr_wr("illegal", (NOTHING, WRITE_ONLY), (ATTR_R, ALL))
RESERVED = _attr_wr("reserved bits", (READ_WRITE | ATTR_SVE,), (ALL,))
WITHOUT_VALID = _attr_wr("without VALID", (ATTR_R,), (0,))
NOBODY = _attr_wr("flags of no VM", (0, 0, 0), (0, 0, ALL))
GIVE_PARENT = _attr_wr("parent, give to VM 2", (0, READ_WRITE), (0, ALL), PARENT)


ACCEPT_BELOW_BLOCK = {
    frozenset((ACCEPT.key, BLOCK_PARENT.key)): (
        "ACCEPT walks the L2 tree to its alias as the host does, and stops at the table that was blocked meanwhile: FATAL_ERROR() "
        "(tdg_mem_page_accept.c; helpers.c:l2_sept_walk)"
    )
}
GUEST_BELOW_DEMOTE = {
    frozenset((guest.key, demote.key)): (
        "DEMOTE links the TD's own new page before those of L2 VMs: a guest that is already below it finds no way to the alias of its "
        "page: FATAL_ERROR() (tdh_mem_page_demote.c after its checks; tdg_mem_page_attr_rd.c, _attr_wr.c, _accept.c)"
    )
    for guest in (ATTR_RD, CHANGE, ACCEPT)
    for demote in (DEMOTE, DEMOTE_DENSE)
}

# Settings.

SHARED = State(PG_LEVEL_4K, "RUNNABLE", S.NL_MAPPED, entry=S.MAPPED, rest=S.FREE, guest=Guest.CURRENT)
PENDING = SHARED._replace(entry=S.PENDING)
TRACKED = SHARED._replace(entry=S.BLOCKED, entry_age=Age.PREVIOUS)
LARGE = State(PG_LEVEL_4K, "RUNNABLE", S.BLOCKED, Age.PREVIOUS, guest=Guest.CURRENT)
NO_TABLE = State(PG_LEVEL_4K, "RUNNABLE", S.FREE, guest=Guest.CURRENT)
EMPTY = State(PG_LEVEL_4K, "RUNNABLE", S.NL_BLOCKED, Age.PREVIOUS, entry=S.FREE, rest=S.FREE)
TO_BE_SPLIT = LARGE._replace(guest=Guest.OUTSIDE)
MERGEABLE = State(PG_LEVEL_4K, "RUNNABLE", S.NL_BLOCKED, Age.PREVIOUS, S.MAPPED, rest=S.MAPPED)
TO_ENTRY = (PG_LEVEL_4K, PG_LEVEL_4K)
TO_PARENT = (PG_LEVEL_2M, PG_LEVEL_2M)
ALIASED = l2_vms(*TO_ENTRY, attributes=(READ_WRITE,))
LARGE_ALIASED = l2_vms(*TO_PARENT, attributes=(READ_WRITE,))
SPLIT = both(LARGE_ALIASED, split)

L2_SETTINGS = (
    Setting(
        "a page that one of two L2 VMs shares",
        SHARED,
        (SEPT_RD, BLOCK, BLOCK_PARENT, ATTR_RD, GIVE, CHANGE, TAKE, ILLEGAL, ADD_L2, ADD_MISSING),
        ALIASED,
    ),
    Setting(
        "a shared page, blocked and tracked",
        TRACKED,
        (SEPT_RD, UNBLOCK, BLOCK_PARENT, REMOVE, RELOCATE, ATTR_RD, GIVE),
        ALIASED,
    ),
    Setting(
        "a shared page, pending",
        PENDING,
        (ACCEPT, GIVE, TAKE, BLOCK, BLOCK_PARENT, ATTR_RD, SEPT_RD),
        ALIASED,
        known=ACCEPT_BELOW_BLOCK,
    ),
    Setting(
        "a shared page, pending, blocked and tracked",
        TRACKED._replace(entry=S.PENDING_BLOCKED),
        (ACCEPT, UNBLOCK, REMOVE, RELOCATE, TRACK),
        ALIASED,
    ),
    Setting(
        "a shared page, pending and write-blocked",
        PENDING._replace(phase="LIVE_EXPORT", entry=S.PENDING_BLOCKEDW),
        (ACCEPT, ATTR_RD, CHANGE, BLOCK, BLOCK_PARENT, UNBLOCKW),
        ALIASED,
    ),
    Setting(
        "a debug TD's page that an L2 VM shares",
        SHARED,
        (SEPT_RD_L2, SEPT_RD_L2_PARENT, BLOCK, TAKE, MEM_RD),
        both(debug, ALIASED),
        plain_dress=debug,
    ),
    Setting(
        "the second L2 VM has no table there",
        SHARED,
        (GIVE, ILLEGAL, ADD_L2, ADD_MISSING, BLOCK_PARENT, SEPT_RD_PARENT),
        l2_vms(PG_LEVEL_4K, PG_LEVEL_2M, attributes=(READ_WRITE,)),
    ),
    Setting(
        "the second L2 VM has no table there, and the host is told",
        SHARED,
        (GIVE, RESERVED, NOBODY, WITHOUT_VALID, ADD_L2, BLOCK_PARENT),
        both(exits_on_walk, l2_vms(PG_LEVEL_4K, PG_LEVEL_2M)),
    ),
    Setting(
        "a shared page that has been exported",
        SHARED._replace(phase="LIVE_EXPORT", entry=S.EXPORTED_BLOCKEDW),
        (RELOCATE, ATTR_RD, CHANGE, SEPT_RD, BLOCK_PARENT),
        ALIASED,
    ),
    Setting(
        "a range that is free in all trees",
        NO_TABLE,
        (ADD, ADD_L2, ADD_MISSING),
        l2_vms(*TO_PARENT),
        against=(ADD, SEPT_RD_PARENT, GIVE_PARENT),
    ),
    Setting(
        "a range to which an L2 VM has no way",
        NO_TABLE,
        (ADD, ADD_MISSING),
        l2_vms(PG_LEVEL_2M, PG_LEVEL_512G),
        against=(SEPT_RD_PARENT,),
    ),
    Setting(
        "an empty table that L2 VMs have too, blocked and tracked",
        EMPTY,
        (SEPT_REMOVE, SEPT_REMOVE_1, UNBLOCK_PARENT, ADD, SEPT_RD_PARENT, AUG),
        l2_vms(*TO_ENTRY),
    ),
    Setting(
        "a large page that one of two L2 VMs shares, blocked and tracked",
        LARGE,
        (DEMOTE, DEMOTE_DENSE, DEMOTE_WITHOUT),
        LARGE_ALIASED,
        against=(UNBLOCK_PARENT, ATTR_RD, CHANGE),
        known=GUEST_BELOW_DEMOTE,
    ),
    Setting(
        "a large page that one of two L2 VMs shares, pending",
        LARGE._replace(parent=S.PENDING_BLOCKED),
        (DEMOTE,),
        LARGE_ALIASED,
        against=(UNBLOCK_PARENT, REMOVE_PARENT, ACCEPT),
        known=GUEST_BELOW_DEMOTE,
    ),
    Setting(
        "a large page to which an L2 VM has no way",
        TO_BE_SPLIT,
        (DEMOTE_DENSE,),
        l2_vms(PG_LEVEL_2M, PG_LEVEL_1G),
        against=(UNBLOCK_PARENT,),
    ),
    Setting(
        "512 pages that L2 VMs share alike, blocked and tracked",
        TO_BE_SPLIT,
        (PROMOTE, PROMOTE_1),
        SPLIT,
        against=(UNBLOCK_PARENT, SEPT_RD_PARENT),
        plain_state=MERGEABLE,
    ),
    Setting(
        "512 pages of which an L2 VM shares one otherwise",
        TO_BE_SPLIT,
        (PROMOTE_1,),
        both(SPLIT, one_child_differs),
        against=(UNBLOCK_PARENT,),
        plain_state=MERGEABLE,
    ),
    Setting(
        "an interrupt waits while L2 VMs get their tables",
        NO_TABLE,
        (ADD, ADD_MISSING),
        both(interrupted, l2_vms(*TO_PARENT)),
        against=(SEPT_RD_PARENT, BLOCK_PARENT, AUG_PARENT),
    ),
    Setting(
        "an interrupt waits while a page of L2 VMs is split",
        TO_BE_SPLIT,
        (DEMOTE, DEMOTE_DENSE),
        both(interrupted, LARGE_ALIASED),
        against=(UNBLOCK_PARENT,),
    ),
    Setting(
        "an interrupt waits while pages of L2 VMs are merged",
        TO_BE_SPLIT,
        (PROMOTE_1,),
        both(SPLIT, interrupted),
        against=(UNBLOCK_PARENT,),
        plain_state=MERGEABLE,
    ),
    Setting(
        "somebody may want the tree while a page of L2 VMs is split",
        TO_BE_SPLIT,
        (DEMOTE,),
        LARGE_ALIASED,
        against=(UNBLOCK_PARENT, SEPT_RD_PARENT),
        profile=TDX_1_5_28,
    ),
    Setting(
        "somebody may want the tree while L2 VMs get their tables",
        NO_TABLE,
        (ADD,),
        l2_vms(*TO_PARENT),
        against=(SEPT_REMOVE_1, BLOCK_PARENT),
        profile=TDX_2_0,
    ),
    Setting(
        "somebody may want the tree while pages of L2 VMs are merged",
        TO_BE_SPLIT,
        (PROMOTE_1,),
        SPLIT,
        against=(UNBLOCK_PARENT, SEPT_RD_PARENT),
        profile=TDX_2_0,
        plain_state=MERGEABLE,
    ),
)
