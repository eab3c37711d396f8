"""For the table of locks: a world in which a call succeeds and takes every lock that it has, and where the locks are.

`ready` builds the first; `locks_of` finds the words of a named object in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim import Cell
from tdx.module import OpState
from tdx.module.migration import MigStream
from tdx.module.objects import HkidState, VcpuState
from tdx.module.pamt import PageType
from tdx.module.septe import TDEL
from tests.conformance.calls import Call
from tests.conformance.situation import NEW, NotExpressible, Situation
from tests.conformance.table import LockRow
from tests.conformance.world import HKID, OTHER, RUN, World, l2_page
from vcpu.addresses import LEVELS, PG_LEVEL_1G, PG_LEVEL_4K, Gpa, PgLevel, gpa_of

EXCLUSIVE = 1
SHAREX_READER = 2
HP_READER = 4
L2_PAGES = ("TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.DEMOTE")
SIZED_NEW_PAGE = "TDH.MEM.PAGE.AUG"
ONE_OPERAND_EACH = ("R9", "R10", "R11")


@dataclass(frozen=True)
class LockWord:
    """One word that the call tries.

    Attributes: `reader` is what one reader adds to it; `operand` overrides the row's, where it speaks of several words; `parent`: it is
    only on the way, taken shared whatever the row says.
    """

    cell: Cell[int]
    reader: int
    operand: str = ""
    parent: bool = False
    bit: int = EXCLUSIVE

    def hold(self, how: str) -> None:
        """Somebody else holds it. Args: how: `exclusive` or `shared`."""
        self.cell.v |= self.bit if how == "exclusive" else self.reader

    def is_taken(self, word: int, before: int) -> bool:
        """Whether the call has it in some mode, given the word before the call."""
        return bool(word & ~before & self.bit) or (self.reader > 0 and word - before >= self.reader)


# Worlds.


def levels(call: Call) -> tuple[PgLevel, ...]:
    """At which levels the locks of a call are looked at."""
    found = tuple(level for level in call.levels if level <= PG_LEVEL_1G)
    return found or (PG_LEVEL_4K,)


def ready(call: Call, level: PgLevel, prepare: Callable[[Situation], None] | None = None) -> World:
    """A world in which the call succeeds at that level, all its locks being free."""
    op_state = min(one for one in OpState if one in call.op_states)
    if OpState.RUNNABLE in call.op_states:
        op_state = OpState.RUNNABLE
    if call.name == "TDH.EXPORT.ABORT":
        op_state = OpState.POST_EXPORT  # only there does it read a token, and lock the stream
    want = Situation(call, level, call.benign, op_state, lifecycle=call.lifecycle)
    want.debug = True
    if call.name in L2_PAGES or call.name == "TDH.MEM.SEPT.REMOVE":
        want.l2_vms = 3
        want.version = call.versions - 1
    if call.name in ("TDH.MEM.PAGE.DEMOTE", "TDH.MEM.SEPT.REMOVE"):
        want.aliases = 3
    if call.name in L2_PAGES:
        want.l2_pages = 3
    if call.name == "TDH.MEM.PAGE.PROMOTE":
        want.children = "MAPPED"
    if prepare is not None:
        prepare(want)
    world = World(want)
    more = NEEDS.get(call.name)
    if more is not None:
        more(world)
    return world


def _no_vcpu_associated(world: World) -> None:
    world.vcpu.assoc_lpid.v = -1
    world.tdcs.num_assoc_vcpus.v = 0


def _flushed(world: World) -> None:
    _no_vcpu_associated(world)
    world.module.kot.hkids[HKID].state = HkidState.FLUSHED


def _to_write_back(world: World) -> None:
    _flushed(world)
    world.module.kot.hkids[HKID].to_write_back = {0}


def _raw_vcpu(world: World) -> None:
    """A vCPU that VP.INIT has not seen yet."""
    _no_vcpu_associated(world)
    world.vcpu.state.v = VcpuState.UNINITIALIZED
    world.tdcs.num_vcpus.v = 0


def _arriving_vcpu(world: World) -> None:
    """A vCPU of which only the pages are there; the TD expects one."""
    _raw_vcpu(world)
    world.tdcs.num_vcpus.v = 1


def _page_to_look_at(world: World) -> None:
    world.own(PageType.PT_REG, OTHER)


NEEDS: dict[str, Callable[[World], object]] = {
    "TDH.MNG.VPFLUSHDONE": _no_vcpu_associated,
    "TDH.MNG.KEY.FREEID": _flushed,
    "TDH.PHYMEM.CACHE.WB": _to_write_back,
    "TDH.IMPORT.STATE.VP": _arriving_vcpu,
    "TDH.VP.ADDCX": _raw_vcpu,
    "TDH.VP.INIT": _raw_vcpu,
    "TDH.VP.RD": _no_vcpu_associated,
    "TDH.VP.WR": _no_vcpu_associated,
    "TDH.VP.ENTER": _no_vcpu_associated,
    "TDH.PHYMEM.PAGE.RECLAIM": _page_to_look_at,
    "TDH.PHYMEM.PAGE.RDMD": _page_to_look_at,
}
"""What single calls need beside the usual."""


def suspect(world: World) -> None:
    """The zero-step defence suspects the entry's GPA, which is mapped: TDH.VP.ENTER looks, and goes on."""
    world.vcpu.last_epf_gpa_list.append(Gpa(gpa_of(world.gfn)))
    world.vcpu.rip = world.vcpu.entry_rip = 0x1000


# Objects.


def locks_of(row: LockRow, world: World) -> list[LockWord]:
    """The words behind an object: its own first, then those on the way. Raises: NotExpressible."""
    find = _OBJECTS.get(row.object)
    if find is None:
        raise NotExpressible(f"no object {row.object}")
    if row.kind.endswith("explicit_walk"):
        return [word for page in find(world) for word in _way_to(world, page)]
    return [word if isinstance(word, LockWord) else _leaf(world, word) for word in find(world)]


def ways_to(row: LockRow, world: World) -> list[LockWord]:
    """The PAMT entries above the pages of an object."""
    pages = _OBJECTS[row.object](world)
    return [word for page in pages for word in _way_to(world, page) if word.parent]


@dataclass(frozen=True)
class Page:
    """A page whose PAMT entry is the lock."""

    pfn: int
    level: PgLevel = PG_LEVEL_4K
    operand: str = ""


def _leaf(world: World, page: Page) -> LockWord:
    return LockWord(world.pamt(page.pfn, page.level).lock, HP_READER, page.operand)


def _way_to(world: World, page: Page | LockWord) -> list[LockWord]:
    assert isinstance(page, Page)
    above = LEVELS[page.level + 1 : PG_LEVEL_1G + 1]
    parents = [
        LockWord(world.pamt(page.pfn, level).lock, HP_READER, page.operand, parent=True) for level in above
    ]
    return [_leaf(world, page), *parents]


def _new_page(world: World) -> list[Page]:
    return [Page(NEW, world.want.level if world.want.call.name == SIZED_NEW_PAGE else PG_LEVEL_4K)]


def _l2_new_pages(_world: World) -> list[Page]:
    return [Page(l2_page(vm), operand=ONE_OPERAND_EACH[vm - 1]) for vm in (1, 2, 3)]


def _page(world: World) -> list[Page]:
    name = world.want.call.name
    if name.startswith("TDH.PHYMEM."):
        return [Page(NEW if name.endswith("WBINVD") else OTHER)]
    if world.page is not None:
        return [Page(world.page.pfn, world.page.level)]
    return _sept_page(world)


def _sept_page(world: World) -> list[Page]:
    if world.below is None:
        raise NotExpressible("the entry names no S-EPT page")
    return [Page(world.below.pfn)]


def _l2_sept_pages(world: World) -> list[Page]:
    level = world.want.level - 1
    pages = [page for page in world.module.sept_pages.values() if page.vm and page.level == level]
    return [Page(page.pfn) for page in pages]


def _children(world: World) -> list[LockWord]:
    below = world.below
    assert below is not None
    return [entry_word(below.septe(below.gfn(index))) for index in (0, 1, 255, 511)]


def entry_word(cell: Cell[int]) -> LockWord:
    return LockWord(cell, 0, bit=TDEL)


def _tdr(world: World) -> list[Page]:
    return [Page(NEW if world.want.call.name == "TDH.MNG.CREATE" else world.tdr.pfn)]


def _tree(world: World) -> LockWord:
    reader = HP_READER if world.want.profile.tree_host_priority else SHAREX_READER
    return LockWord(world.tdcs.sept_tree_lock, reader)


Find = Callable[[World], "list[Page] | list[LockWord]"]

_OBJECTS: dict[str, Find] = {
    "TDR.PAMT": _tdr,
    "TDVPR.PAMT": lambda world: [Page(world.vcpu.pfn)],
    "NEW_PAGE.PAMT": _new_page,
    "NEW_SEPT_PAGE.PAMT": _new_page,
    "NEW_TDCX.PAMT": _new_page,
    "NEW_TDVPR.PAMT": _new_page,
    "NEW_MIGSC.PAMT": _new_page,
    "NEW_L2_SEPT_PAGES.PAMT": _l2_new_pages,
    "PAGE.PAMT": _page,
    "OLD_PAGE.PAMT": _page,
    "SPLIT_PAGE.PAMT": _page,
    "SEPT_PAGE.PAMT": _sept_page,
    "REMOVED_SEPT_PAGE.PAMT": _sept_page,
    "REMOVED_L2_SEPT_PAGES.PAMT": _l2_sept_pages,
    "MERGED_PAGE.PAMT": lambda world: [Page(RUN, world.want.level)],
    "TDCS.OP_STATE": lambda world: [LockWord(world.tdcs.op_state_lock, HP_READER)],
    "SEPT_TREE": lambda world: [_tree(world)],
    "TD_EPOCH": lambda world: [LockWord(world.tdcs.epoch_lock, SHAREX_READER)],
    "TDCS.MIG": lambda world: [LockWord(world.tdcs.migration.lock, SHAREX_READER)],
    "MIGSC": lambda world: [LockWord(stream_of(world).lock, 0)],
    "KOT": lambda world: [LockWord(world.module.kot.lock, SHAREX_READER)],
    "KET": lambda world: [LockWord(world.module.ket_locks[0], 0)],
    "WBT(package)": lambda world: [LockWord(world.module.wbt_locks[0], 0)],
    "SEPT_ENTRY": lambda world: [entry_word(world.entry)],
    "CHILD_SEPT_ENTRIES[0..511]": _children,
}
"""Object of the table to where it is."""


def stream_of(world: World) -> MigStream:
    """The stream that a call names in R10; aborts go backwards."""
    migration = world.tdcs.migration
    return migration.backward if world.want.call.name.endswith(".ABORT") else migration.forward(0)
