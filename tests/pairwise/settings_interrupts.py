"""Settings in which an interrupt waits for every LP that makes a call, with no L2 VMs: long calls end early, and are made again.

A list here has two entries: the place and its neighbour. Without the interrupt the same lists are processed whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tdx.module import PageType, SeamcallReturn, SeptState
from tdx.module.migration_data import (
    COMMAND_RESUME,
    GpaListEntry,
    GpaOperation,
    ListInfo,
    MemoryBundle,
    PageListEntry,
)
from tdx.module.objects import HkidState, Lifecycle
from tdx.module.septe import FREE, make
from tests.pairwise.calls import ENTRY, PARENT, STREAMS, TD, Operands
from tests.pairwise.search import Dress
from tests.pairwise.settings import Act, Answer, Setting, both, interrupted, no_interrupt
from tests.pairwise.settings_l2 import (
    BLOCK,
    BLOCK_PARENT,
    DEMOTE_WITHOUT,
    LARGE,
    MERGEABLE,
    PROMOTE,
    REMOVE,
    SEPT_RD,
    SEPT_RD_PARENT,
    TRACK,
    UNBLOCK_PARENT,
)
from tests.pairwise.states import Age, State
from tests.pairwise.world import AWAY, HKID, World
from vcpu.addresses import PG_LEVEL_4K, Gfn, Pfn, gpa_of

S = SeptState
WORDS = ((0, 7), (8, 9))
"""What lies in an imported page: offset and value."""
FAR = 300
"""An index beyond the first MAC list."""

# Worlds.


def neighbour(state: SeptState) -> Dress:
    """The entry next to the place maps a page in this state."""

    def dress(world: World) -> None:
        page = Pfn(AWAY[world.level] + 1)
        parent = world.module.peek_septe(world.td, world.gfn, world.parent_level)
        assert parent is not None
        table = world.module.sept_pages[parent.pfn_at(0)]
        cell = table.septe(world.gfn + 1)
        assert cell.v == int(FREE)
        cell.v = int(make(state, page))
        world._assign(page, world.level, PageType.PT_REG)
        world.tdr.chldcnt.v += 1

    return dress


def flushed(world: World) -> None:
    """The TD has left its key, and the caches are to be written back."""
    world.tdr.lifecycle = Lifecycle.BLOCKED
    key = world.module.kot.hkids[HKID]
    key.state = HkidState.FLUSHED
    key.to_write_back = {0}


# Calls.


def _places(world: World) -> tuple[Gfn, Gfn]:
    return Gfn(world.gfn), Gfn(world.gfn + 1)


def _list(world: World, operation: GpaOperation = GpaOperation.MIGRATE) -> list[GpaListEntry]:
    return [GpaListEntry(gpa_of(gfn), operation) for gfn in _places(world)]


def _resume_list(operands: Mapping[str, Any], answer: Answer) -> Mapping[str, Any]:
    """The list from where it was left, on the same stream if it has one."""
    assert isinstance(answer, SeamcallReturn)
    more: dict[str, Any] = {"list_info": answer.rcx}
    if "stream" in operands:
        more["stream"] = operands["stream"] | COMMAND_RESUME
    return more


def _resume_elsewhere(operands: Mapping[str, Any], answer: Answer) -> Mapping[str, Any]:
    """Not where it was left."""
    return {**_resume_list(operands, answer), "list_info": ListInfo(0, 1).word}


def _blockw(world: World, _who: str) -> dict[str, Any]:
    return {"gpa_list": _list(world)}


def _skipping(world: World, _who: str) -> dict[str, Any]:
    entries = _list(world)
    entries[0].operation = GpaOperation.NOP
    return {"gpa_list": entries}


def _unsound(world: World, _who: str) -> dict[str, Any]:
    entries = _list(world)
    entries[1].level = 1
    return {"gpa_list": entries}


def _export(world: World, who: str) -> dict[str, Any]:
    return {"gpa_list": _list(world), "bundle": MemoryBundle(), "stream": STREAMS[who]}


def _export_far(world: World, who: str) -> dict[str, Any]:
    return {**_export(world, who), "list_info": ListInfo(FAR, FAR).word}


def _import(operation: GpaOperation, contents: tuple[tuple[int, int], ...] = ()) -> Operands:
    def needs(world: World, who: str) -> dict[str, Any]:
        listed = _list(world, operation)
        bundle = MemoryBundle.sent_to(world.tdcs.migration, listed, {0: contents}, migs_index=STREAMS[who])
        new_pages = [PageListEntry(Pfn(world.spare + n)) for n in range(2)]
        return {"gpa_list": listed, "bundle": bundle, "stream": STREAMS[who], "new_pages": new_pages}

    return needs


BLOCKW = Act("TDH.EXPORT.BLOCKW", ENTRY, "S", _blockw, again=_resume_list)
BLOCKW_SKIPPING = Act("TDH.EXPORT.BLOCKW", ENTRY, "S", _skipping, variant="skips one", again=_resume_list)
BLOCKW_UNSOUND = Act("TDH.EXPORT.BLOCKW", ENTRY, "S", _unsound, variant="unsound list", again=_resume_list)
RESTORE = Act("TDH.EXPORT.RESTORE", ENTRY, "S", _blockw, again=_resume_list)
EXPORT = Act("TDH.EXPORT.MEM", ENTRY, "S", _export, again=_resume_list)
EXPORT_ELSEWHERE = Act(
    "TDH.EXPORT.MEM", ENTRY, "S", _export, variant="goes on elsewhere", again=_resume_elsewhere
)
EXPORT_FAR = Act("TDH.EXPORT.MEM", ENTRY, "S", _export_far, variant="begins late")
IMPORT = Act("TDH.IMPORT.MEM", ENTRY, "S", _import(GpaOperation.MIGRATE, WORDS), again=_resume_list)
IMPORT_ELSEWHERE = Act(
    "TDH.IMPORT.MEM",
    ENTRY,
    "S",
    _import(GpaOperation.MIGRATE),
    variant="goes on elsewhere",
    again=_resume_elsewhere,
)
CANCEL = Act("TDH.IMPORT.MEM", ENTRY, "S", _import(GpaOperation.CANCEL), variant="cancel", again=_resume_list)
ACCEPT_LARGE = Act(
    "TDG.MEM.PAGE.ACCEPT",
    PARENT,
    "G",
    variant="2M",
    again=lambda _operands, _answer: {"interrupt_pending": no_interrupt},
)
CACHE_WB = Act("TDH.PHYMEM.CACHE.WB", TD, "P", again=lambda _operands, _answer: {"resume": 1})
CACHE_WB_RESUMED = Act("TDH.PHYMEM.CACHE.WB", TD, "P", lambda _world, _who: {"resume": 1}, variant="resumed")
FREEID = Act("TDH.MNG.KEY.FREEID", TD, "T")

# Settings.

PENDING_LARGE = LARGE._replace(parent=S.PENDING, parent_age=Age.NONE)
LIVE = State(PG_LEVEL_4K, "LIVE_EXPORT", S.NL_MAPPED, entry=S.MAPPED, rest=S.FREE)
PAUSED = LIVE._replace(phase="PAUSED_EXPORT")
SENT = LIVE._replace(phase="RUNNABLE", entry=S.EXPORTED_BLOCKEDW)
QUIET = LIVE._replace(phase="RUNNABLE")
ARRIVING = LIVE._replace(phase="MEMORY_IMPORT", entry=S.FREE)
ARRIVED = LIVE._replace(phase="MEMORY_IMPORT")
COMMITTED = LIVE._replace(phase="LIVE_IMPORT", entry=S.FREE)
WITH_NEIGHBOUR = neighbour(S.MAPPED)

INTERRUPT_SETTINGS = (
    Setting(
        "an interrupt waits for the guest that accepts a large page",
        PENDING_LARGE,
        (ACCEPT_LARGE,),
        interrupted,
        against=(BLOCK_PARENT, DEMOTE_WITHOUT, SEPT_RD_PARENT),
    ),
    Setting(
        "an interrupt waits while a page is split",
        LARGE,
        (DEMOTE_WITHOUT,),
        interrupted,
        against=(DEMOTE_WITHOUT, UNBLOCK_PARENT, SEPT_RD_PARENT),
    ),
    Setting(
        "an interrupt waits while pages are merged",
        MERGEABLE,
        (PROMOTE,),
        interrupted,
        against=(UNBLOCK_PARENT, SEPT_RD_PARENT),
    ),
    Setting(
        "an interrupt waits while a list is write-blocked",
        LIVE,
        (BLOCKW, BLOCKW_SKIPPING, BLOCKW_UNSOUND),
        both(interrupted, WITH_NEIGHBOUR),
        against=(SEPT_RD, BLOCK, TRACK),
        plain_dress=WITH_NEIGHBOUR,
    ),
    Setting(
        "an interrupt waits while a list is restored",
        SENT,
        (RESTORE,),
        both(interrupted, neighbour(S.EXPORTED_BLOCKEDW)),
        against=(SEPT_RD, BLOCK),
        plain_dress=neighbour(S.EXPORTED_BLOCKEDW),
    ),
    Setting(
        "an interrupt waits while a list is exported",
        PAUSED,
        (EXPORT, EXPORT_ELSEWHERE, EXPORT_FAR),
        both(interrupted, WITH_NEIGHBOUR),
        against=(SEPT_RD, BLOCK),
        plain_dress=WITH_NEIGHBOUR,
    ),
    Setting(
        "an interrupt waits while a list is imported",
        ARRIVING,
        (IMPORT, IMPORT_ELSEWHERE),
        interrupted,
        against=(SEPT_RD, BLOCK_PARENT),
    ),
    Setting(
        "an interrupt waits while an import is cancelled",
        ARRIVED,
        (CANCEL,),
        both(interrupted, WITH_NEIGHBOUR),
        against=(SEPT_RD, BLOCK, REMOVE),
        plain_dress=WITH_NEIGHBOUR,
    ),
    Setting(
        "an interrupt waits while a list is imported after the start token",
        COMMITTED,
        (IMPORT, IMPORT_ELSEWHERE),
        interrupted,
        against=(SEPT_RD, BLOCK_PARENT),
    ),
    Setting(
        "an interrupt waits while caches are written back",
        QUIET,
        (CACHE_WB, CACHE_WB_RESUMED, FREEID),
        both(interrupted, flushed),
        plain_dress=flushed,
    ),
)
