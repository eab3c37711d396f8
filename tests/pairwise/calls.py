"""The calls that are paired: one line each.

A line says which leaf, where it acts (`entry`, its `parent`, a neighbour of the entry, a page), its group in reference 4.4, what the
leaf needs beside TD, address and level, and which objects of seamcall_locks.csv it takes in the world of `tests.pairwise.world`.
Everything else follows: op_states from the module's table, operands from the leaf's own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from sim import Steps
from tdx.module import LEAVES, SeamcallReturn
from tdx.module.exits import TdcallResult
from tdx.module.migration_data import GpaListEntry, GpaOperation, GpaStatus, MemoryBundle, PageListEntry
from tdx.module.objects import DEBUG
from tdx.module.sept_states import ALLOWED_OP_STATES
from tdx.module.tdcall import TDCALLS
from tests.pairwise.states import TEARDOWN, Guest, State
from tests.pairwise.world import World
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Gpa, PgLevel, gpa_of

ENTRY, PARENT, NEIGHBOUR, PAGE, VCPU, TD = "entry", "parent", "neighbour", "page", "vCPU", "TD"
Operands = Callable[[World, str], Mapping[str, Any]]
ALL = (PG_LEVEL_4K, PG_LEVEL_2M, PG_LEVEL_1G)


class Depth(IntEnum):
    """How far below the parent a call looks."""

    PARENT = 0
    ENTRY = 1
    NEIGHBOURS = 2


DEBUG_CALLS = frozenset(("TDH.MEM.RD", "TDH.MEM.WR"))
"""Calls on a debug TD, which cannot migrate."""
TO_LEAF = DEBUG_CALLS | {"TDG.MEM.PAGE.ATTR.RD"}
"""Calls that act on the leaf around an address, in whatever size it is: at the parent, if that is a leaf."""
LOOKS_INTO_TABLES = frozenset(("TDH.MEM.PAGE.PROMOTE", "TDH.MEM.SEPT.REMOVE"))


@dataclass(frozen=True, slots=True)
class Call:
    """One line of the table."""

    name: str
    at: str
    group: str
    needs: Operands = field(default=lambda _world, _who: {})
    levels: tuple[PgLevel, ...] = ALL
    """Levels of the entry it acts on."""
    variant: str = ""
    prepare: Callable[[World, str], None] = field(default=lambda _world, _who: None)
    """What is there before the call: the list of the zero-step defence, say."""

    @property
    def label(self) -> str:
        """As the tables show it: `PAGE.AUG`, `VP.ENTER (zero-step)`."""
        short = self.name.removeprefix("TDH.").removeprefix("TDG.").removeprefix("PHYMEM.PAGE.")
        if self.name not in DEBUG_CALLS:
            short = short.removeprefix("MEM.")
        return f"{short} ({self.variant})" if self.variant else short

    @property
    def key(self) -> str:
        """The line's own name: label and place."""
        return f"{self.label} at {self.at}"

    @property
    def is_guest(self) -> bool:
        """Whether the guest makes it."""
        return self.name.startswith("TDG.")

    @property
    def migrates(self) -> bool:
        """Whether it is a call of migration."""
        return self.name.startswith(("TDH.EXPORT.", "TDH.IMPORT."))

    def meets(self, other: Call) -> bool:
        """Whether one TD can have both: a TD that can be looked into cannot migrate."""
        return not (
            (self.migrates and other.name in DEBUG_CALLS) or (other.migrates and self.name in DEBUG_CALLS)
        )

    @property
    def lists(self) -> bool:
        """Whether it works on a list, and says what became of an entry there."""
        return not self.is_guest and "gpa_list" in LEAVES[self.name].parameters

    @property
    def looks_below(self) -> Depth:
        """How far below the parent it looks, entry by entry."""
        if self.at == NEIGHBOUR:
            return Depth.NEIGHBOURS
        return Depth.PARENT if self.at in (PARENT, TD) or self.group == "E" else Depth.ENTRY

    def looks_into_table(self, at: str) -> bool:
        """Whether it looks at all entries of the table below the parent, or below the entry."""
        return self.at == at and self.name in LOOKS_INTO_TABLES

    def level(self, world_level: PgLevel) -> PgLevel:
        """The level of the entry that it acts on."""
        return PgLevel(world_level + 1) if self.at == PARENT else world_level

    def fits(self, state: State) -> bool:
        """Whether the call makes sense there: its level exists, the module lets it pass, and a guest's call has a guest.

        Physical-page calls fit everywhere. Calls that take the TDR exclusive, and those on a TD that is torn down, are kept also
        where they are refused, because they take their locks before.
        """
        if self.at in (ENTRY, PARENT, NEIGHBOUR) and self.level(state.level) not in self.levels:
            return False
        if self.is_guest:
            return state.guest is not Guest.OUTSIDE
        if self.name in DEBUG_CALLS and state.is_migrating:
            return False
        if self.at == PAGE:
            return True
        if state.phase == TEARDOWN:
            return self.name == "TDH.MEM.SEPT.RD"
        return state.op_state in ALLOWED_OP_STATES.get(self.name, ())

    def operands(self, world: World, who: str) -> dict[str, Any]:
        """What thread `who` would call it with now."""
        needed: dict[str, Any] = dict(self.needs(world, who))
        leaf = TDCALLS[self.name] if self.is_guest else LEAVES[self.name]
        offset = 1 << 9 * (world.level - 1) if self.at == NEIGHBOUR else 0
        known: dict[str, Any] = {
            "td": world.td,
            "gpa": gpa_of(world.gfn + offset),
            "level": self.level(world.level),
            "lp": world.lps["guest" if self.is_guest else who],
            "vcpu": world.vcpus["guest"],
            "interrupt_pending": world.lps["guest"].interrupt_pending,
        }
        return {name: value for name, value in known.items() if name in leaf.parameters} | needed

    def steps(self, world: World, who: str) -> Steps[str]:
        """The call as thread `who` would make it now, operands and all: to be run at once or later; returns what it returned."""
        operands = self.operands(world, who)
        leaf = TDCALLS[self.name] if self.is_guest else LEAVES[self.name]
        return _told(leaf.call(world.module, **operands), operands.get("gpa_list"))


def _told(steps: Steps[SeamcallReturn | TdcallResult], gpa_list: list[GpaListEntry] | None) -> Steps[str]:
    return text_of((yield from steps), gpa_list)


def text_of(result: SeamcallReturn | TdcallResult, gpa_list: list[GpaListEntry] | None = None) -> str:
    """The outcome as the tables show it; of a list call, that of its only entry."""
    if isinstance(result, TdcallResult):
        if result.interrupted:
            return "INTERRUPTED"
        if result.exit is not None:
            return f"TDEXIT({result.exit.extended_type})"
        assert result.ret is not None
        result = result.ret
    if gpa_list and result.ok and gpa_list[0].status:
        return f"ENTRY:{GpaStatus(gpa_list[0].status).name}"
    if result.exit is not None:
        return f"SUCCESS|{result.exit.reason.name}"
    return str(result).removeprefix("TDX_")


def _spare(world: World, _who: str) -> dict[str, Any]:
    return {"pfn": world.spare}


def _mapped(world: World, _who: str) -> dict[str, Any]:
    return {"pfn": world.mapped()}


def _vcpu(world: World, who: str) -> dict[str, Any]:
    return {"tdvpr_pfn": world.vcpus[who].pfn, "guest": world.leave}


def _suspect(world: World, who: str) -> None:
    """The vCPU stands where its last seven EPT violations at the place happened."""
    vcpu = world.vcpus[who]
    vcpu.rip = vcpu.entry_rip = 0
    vcpu.last_epf_gpa_list.append(Gpa(gpa_of(world.gfn)))


def _debug(world: World, _who: str) -> None:
    """The TD is one that the host may look into."""
    world.tdcs.attributes = DEBUG


def _list(world: World, _who: str) -> dict[str, Any]:
    return {"gpa_list": [GpaListEntry(Gpa(gpa_of(world.gfn)), GpaOperation.MIGRATE)]}


def _export(world: World, who: str) -> dict[str, Any]:
    return {**_list(world, who), "stream": STREAMS[who]}


def _import(operation: GpaOperation) -> Operands:
    def needs(world: World, who: str) -> dict[str, Any]:
        listed = [GpaListEntry(Gpa(gpa_of(world.gfn)), operation)]
        bundle = MemoryBundle.sent_to(world.tdcs.migration, listed, migs_index=STREAMS[who])
        new_pages = [PageListEntry(world.spare)]
        return {"gpa_list": listed, "bundle": bundle, "stream": STREAMS[who], "new_pages": new_pages}

    return needs


STREAMS = {"a": 0, "b": 1}
"""Each thread has a stream of its own, so that two calls of migration meet at the entry."""


def _hkid(world: World, _who: str) -> dict[str, Any]:
    return {"pfn": world.mapped(), "hkid": 0}


def _data(_world: World, _who: str) -> dict[str, Any]:
    return {"data": 1}


def _attributes(_world: World, _who: str) -> dict[str, Any]:
    return {"attributes": 0, "flags": 0}


ONLY_4K = (PG_LEVEL_4K,)
UP_TO_2M = (PG_LEVEL_4K, PG_LEVEL_2M)
RESIZED = (PG_LEVEL_2M, PG_LEVEL_1G)

_TABLE = (
    Call("TDH.MEM.SEPT.ADD", PARENT, "S", _spare, RESIZED),
    Call("TDH.MEM.SEPT.ADD", ENTRY, "S", _spare, RESIZED),
    Call("TDH.MEM.SEPT.REMOVE", PARENT, "X", levels=RESIZED),
    Call("TDH.MEM.SEPT.REMOVE", ENTRY, "X", levels=RESIZED),
    Call("TDH.MEM.SEPT.RD", ENTRY, "S"),
    Call("TDH.MEM.SEPT.RD", PARENT, "S"),
    Call("TDH.MEM.PAGE.ADD", ENTRY, "T", _spare, ONLY_4K),
    Call("TDH.MR.EXTEND", ENTRY, "T"),
    Call("TDH.MEM.PAGE.AUG", ENTRY, "S", _spare, UP_TO_2M),
    Call("TDH.MEM.PAGE.AUG", PARENT, "S", _spare, UP_TO_2M),
    Call("TDH.MEM.PAGE.AUG", NEIGHBOUR, "S", _spare, UP_TO_2M),
    Call("TDH.MEM.PAGE.REMOVE", ENTRY, "S"),
    Call("TDH.MEM.PAGE.REMOVE", PARENT, "S"),
    Call("TDH.MEM.PAGE.RELOCATE", ENTRY, "S", _spare, ONLY_4K),
    Call("TDH.MEM.PAGE.PROMOTE", PARENT, "S", levels=RESIZED),
    Call("TDH.MEM.PAGE.PROMOTE", ENTRY, "S", levels=RESIZED),
    Call("TDH.MEM.PAGE.DEMOTE", PARENT, "S", _spare, RESIZED),
    Call("TDH.MEM.PAGE.DEMOTE", ENTRY, "S", _spare, RESIZED),
    Call("TDH.MEM.RANGE.BLOCK", ENTRY, "X"),
    Call("TDH.MEM.RANGE.BLOCK", PARENT, "X"),
    Call("TDH.MEM.RANGE.UNBLOCK", ENTRY, "X"),
    Call("TDH.MEM.RANGE.UNBLOCK", PARENT, "X"),
    Call("TDH.MEM.TRACK", TD, "K"),
    Call("TDH.MEM.RD", ENTRY, "S", prepare=_debug),
    Call("TDH.MEM.WR", ENTRY, "S", _data, prepare=_debug),
    Call("TDH.EXPORT.BLOCKW", ENTRY, "S", _list, ONLY_4K),
    Call("TDH.EXPORT.UNBLOCKW", ENTRY, "S", levels=ONLY_4K),
    Call("TDH.EXPORT.RESTORE", ENTRY, "S", _list, ONLY_4K),
    Call("TDH.EXPORT.MEM", ENTRY, "S", _export, ONLY_4K),
    Call("TDH.IMPORT.MEM", ENTRY, "S", _import(GpaOperation.MIGRATE), ONLY_4K),
    Call("TDH.IMPORT.MEM", ENTRY, "S", _import(GpaOperation.CANCEL), ONLY_4K, variant="cancel"),
    Call("TDH.VP.ENTER", VCPU, "E", _vcpu),
    Call("TDH.VP.ENTER", VCPU, "Z", _vcpu, variant="zero-step", prepare=_suspect),
    Call("TDG.MEM.PAGE.ACCEPT", ENTRY, "G", levels=UP_TO_2M),
    Call("TDG.MEM.PAGE.ACCEPT", PARENT, "G", levels=UP_TO_2M),
    Call("TDG.MEM.PAGE.ATTR.RD", ENTRY, "G"),
    Call("TDG.MEM.PAGE.ATTR.WR", ENTRY, "G", _attributes),
    Call("TDH.PHYMEM.PAGE.RECLAIM", PAGE, "P", _mapped),
    Call("TDH.PHYMEM.PAGE.RDMD", PAGE, "P", _mapped),
    Call("TDH.PHYMEM.PAGE.WBINVD", PAGE, "P", _hkid),
    Call(
        "TDH.PHYMEM.PAGE.WBINVD", PAGE, "P", lambda w, _who: {"pfn": w.spare, "hkid": 0}, variant="new page"
    ),
)
CALLS = tuple(call for call in _TABLE if call.name in LEAVES or call.name in TDCALLS)
"""Every line whose leaf the module has."""
