"""Comparing what a call did with what a row says: status and operand, the entry afterwards, outputs, and what must hold anyway.

Beside what the row says, every case asks: does the entry keep its word when the call fails; is every lock free that was free before;
does the TDR count its pages, and does each entry name a page of its TD (`tdx.module.invariants`).
Bits and public state numbers are written down from the reference (3.1 to 3.3, 11.2), not taken from the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tdx.module import Operand, SeptState, Status
from tdx.module.exits import ExitReason, TdExit
from tdx.module.invariants import children_are_counted, entries_name_owned_pages
from tdx.module.migration_data import ListInfo
from tdx.module.pamt import PageType
from tdx.module.septe import Septe
from tdx.module.status import NULL_PA
from tests.conformance.calling import DATA, Outcome
from tests.conformance.effects import FATAL, Before, unmet_effects
from tests.conformance.situation import NotExpressible
from tests.conformance.standing import standing, wrongly_changed
from tests.conformance.table import ENTRY_STATUSES, RESUMED, SHUTDOWN, Row
from tests.conformance.world import IMPORT_MEM, World
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_1G, gpa_of

PUBLIC = {
    "FREE": 0,
    "REMOVED": 5,
    "NL_MAPPED": 0x84,
    "NL_BLOCKED": 0x81,
    "MAPPED": 4,
    "BLOCKED": 1,
    "BLOCKEDW": 8,
    "EXPORTED_BLOCKEDW": 9,
    "EXPORTED_DIRTY": 11,
    "EXPORTED_DIRTY_BLOCKEDW": 12,
    "PENDING": 2,
    "PENDING_BLOCKED": 3,
    "PENDING_BLOCKEDW": 16,
    "PENDING_EXPORTED_BLOCKEDW": 17,
    "PENDING_EXPORTED_DIRTY": 19,
    "PENDING_EXPORTED_DIRTY_BLOCKEDW": 20,
}
"""Public numbers of the states (reference 3.2)."""
RWX = 0b111
LEAF_FLAG = 1 << 7
SHOWN_OF_LEAF = RWX | 0b111 << 3 | 1 << 6 | LEAF_FLAG | (1 << 52) - (1 << 12) | 1 << 63
SHOWN_OF_TABLE = RWX | LEAF_FLAG
SVE = 1 << 63
LOCK_BITS = 1 << 11 | 1 << 52
LOCKED = 1 << 11
WRITE = 2
BIT_63 = 1 << 63
NUMBER = re.compile(r"\d+|0x[0-9a-f]+")
OUTPUT = re.compile(
    r"(?:(?P<side>host|guest):? )?(?P<register>RAX|RCX|RDX|R8|R9\.\.R11|R9|R1[0-3])\s*=\s*(?P<what>[^,;]+)"
)


@dataclass
class Seen:
    """A case after its call."""

    row: Row
    world: World
    outcome: Outcome
    before: Before

    @property
    def entry(self) -> Septe:
        """The entry as the call found it: under its lock, if the guest's race changed it."""
        return self.before.entry if self.world.raced is None else Septe(self.world.raced)


def differences(seen: Seen) -> Iterator[str]:
    """What is not as it must be, one sentence each: expected, then actual. After another status nobody asks for outputs."""
    status = list(_status(seen))
    yield from status
    yield from _state(seen)
    if not status:
        yield from _outputs(seen)
        rax = None if seen.outcome.ret is None else seen.outcome.ret.rax
        yield from unmet_effects(seen.row.note, seen.world, seen.before, rax)
    yield from _locks(seen)
    yield from _bookkeeping(seen)
    yield from _standing(seen)


# Status.


def _status(seen: Seen) -> Iterator[str]:
    row, outcome = seen.row, seen.outcome
    met = True
    if row.status.startswith("ENTRY:"):
        met = _entry_status(row.status.removeprefix("ENTRY:"), outcome)
    elif row.status.startswith("TDEXIT_"):
        met = _exit_is(row.status, outcome.exit)
    elif row.status == RESUMED:
        met = outcome.interrupted
    elif row.status == SHUTDOWN:
        met = False
    else:
        gives_status = outcome.exit is None and outcome.ret is not None
        expected = Status[row.status] + operand_number(row.operand, seen.world) | _fatal_bit(row)
        met = gives_status and outcome.ret is not None and is_status(expected, outcome.ret.rax, seen.world)
    if not met:
        yield f"status {row.expected}, but the call gave {outcome}"


def _fatal_bit(row: Row) -> int:
    """The bit of RAX that says, where the note says so, that the TD can only be torn down."""
    return FATAL if "with the fatal bit" in row.note else 0


def is_status(expected: int, given: int, world: World) -> bool:
    """Whether RAX is what is expected; what goes wrong in IMPORT.MEM may end the session, and says so with one more bit."""
    return given == expected or (world.want.call.name == IMPORT_MEM and given == expected | FATAL)


def _entry_status(name: str, outcome: Outcome) -> bool:
    listed, ret = outcome.listed, outcome.ret
    if listed is None or ret is None or listed.status != ENTRY_STATUSES.index(name):
        return False
    return name not in ("SUCCESS", "SKIPPED") or ret.rax == Status.TDX_SUCCESS


def _exit_is(status: str, left: TdExit | None) -> bool:
    if left is None:
        return False
    if status == "TDEXIT_HOST_PRIORITY_BUSY_TIMEOUT":
        return left.status is Status.TDX_HOST_PRIORITY_BUSY_TIMEOUT and left.trap_like
    if status == "TDEXIT_TDCALL":
        return left.reason is ExitReason.TDCALL and left.status is Status.TDX_SUCCESS and left.trap_like
    if status == "TDEXIT_TD_IS_DEAD":
        return left.status is Status.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE
    return left.reason is ExitReason.EPT_VIOLATION and left.status is Status.TDX_SUCCESS


def operand_number(name: str, world: World) -> int:
    """What is added to a status for an operand by that name."""
    if name == "-":
        return 0
    if name in ExitReason.__members__:
        return ExitReason[name]
    if name == "level_reached":
        return world.table.level.tdx
    if name == "R8+vm":
        return Operand.R8 + 1
    if name == "R9..R11":
        return Operand.R9
    if name == "vm+level":
        return 1 << 16 | world.l2_level().tdx
    if name not in Operand.__members__:
        raise NotExpressible(f"nobody knows what operand {name} is")
    return Operand[name]


# The entry.


def _state(seen: Seen) -> Iterator[str]:
    row = seen.row
    now = Septe(seen.world.entry.peek())
    if not seen.world.want.call.levels:
        return
    if (now ^ seen.before.entry) & LOCKED:
        yield f"the entry is to stay {'locked' if seen.before.entry & LOCKED else 'unlocked'}, but is not"
    if row.after is not None and row.after is not now.state:
        yield f"state after {row.after.name}, but it is {now.state.name}"
    refused = row.status.startswith("TDX_") and Status[row.status] is not Status.TDX_SUCCESS
    goes_on = "INTERRUPTED" in row.status and row.after not in (None, row.state)
    if goes_on or row.status in (RESUMED, "TDX_INTERRUPTED_RESUMABLE"):
        return  # progress is kept
    keeps = row.after is None or row.after is row.state or (refused and row.state is None)
    before = seen.entry
    if keeps and not _same_word(before, now, row):
        yield f"the entry is to keep its word {before:#x}, but it is {now:#x}"


def _same_word(before: int, now: int, row: Row) -> bool:
    """But for lock bits; what succeeds may change other bits of an entry that keeps its state (HPA, aliases)."""
    if row.status in ("TDX_SUCCESS", "ENTRY:SUCCESS"):
        return Septe(before).state is Septe(now).state
    return not (before ^ now) & ~LOCK_BITS


# Outputs.


def _outputs(seen: Seen) -> Iterator[str]:
    text = seen.row.outputs
    outcome = seen.outcome
    if not text:
        return
    if text == "-":
        yield from _no_details(seen)
        return
    if text == "RCX,RDX restored":
        for name in ("rcx", "rdx"):
            if _register(outcome, name) != outcome.went_in[name]:
                yield f"{name.upper()} restored to {outcome.went_in[name]:#x}, but it is {_register(outcome, name):#x}"
        return
    for match in OUTPUT.finditer(text):
        what = match["what"].strip()
        expected = _output(what)
        if expected is None:
            continue
        names = ("r9", "r10", "r11") if ".." in match["register"] else (match["register"].lower(),)
        for name in names:
            wanted = expected(seen, name)
            if wanted is None:
                continue
            value = _told_to(match["side"], seen, name)
            if value != wanted:
                shown = "nothing" if value is None else f"{value:#x}"
                yield f"{name.upper()}={what} ({wanted:#x}), but it is {shown}"


def unknown_outputs(row: Row) -> list[str]:
    """Outputs that the row names and nobody here can check."""
    if row.outputs in ("", "-", "RCX,RDX restored", "guest RAX,RIP unchanged"):
        return []
    known = list(OUTPUT.finditer(row.outputs))
    return [row.outputs] if not known else [m["what"] for m in known if _output(m["what"].strip()) is None]


def _output(what: str) -> Callable[[Seen, str], int | None] | None:
    """What the word or number means."""
    if NUMBER.fullmatch(what):
        return lambda _seen, _name: int(what, 0)
    if what in PageType.__members__:
        return lambda _seen, _name: PageType[what]
    return OUTPUTS.get(what)


def _no_details(seen: Seen) -> Iterator[str]:
    """Host memory calls set RCX and RDX to 0 first: what is not told there stays 0 (reference 3.3)."""
    want, ret = seen.world.want, seen.outcome.ret
    if want.call.is_guest or want.call.has_list or not want.call.levels or ret is None or ret.ok:
        return
    if seen.row.status.startswith("TDX_L2_"):
        return  # details of the L2 entry
    if ret.rcx or ret.rdx:
        yield f"RCX and RDX 0, but they are {ret.rcx:#x} and {ret.rdx:#x}"


def _register(outcome: Outcome, name: str) -> int:
    return int(getattr(outcome.ret, name))


def _told_to(side: str | None, seen: Seen, name: str) -> int | None:
    """A register as that side sees it; a host sees a TD exit as TDH.VP.ENTER reports it."""
    outcome = seen.outcome
    left = outcome.exit
    if side == "guest" or left is None:
        return None if outcome.ret is None else _register(outcome, name)
    if name == "rax":
        return left.reason if left.status is Status.TDX_SUCCESS else int(left.status)
    return {"rcx": left.qualification, "rdx": left.extended, "r8": left.gpa}.get(name)


def _arch_entry(seen: Seen, _name: str) -> int:
    """The entry as the host is shown it (reference 3.3)."""
    entry = seen.entry
    if entry & LEAF_FLAG:
        return entry & SHOWN_OF_LEAF
    return SVE if entry.state is SeptState.FREE else entry & SHOWN_OF_TABLE


def _level_and_state(seen: Seen, _name: str) -> int:
    return seen.world.table.level.tdx | PUBLIC[seen.entry.state.name] << 8


def _mapped(seen: Seen, _name: str) -> int | None:
    page = seen.before.page
    return None if page is None else page.pfn << PAGE_SHIFT


def _table_below(seen: Seen, _name: str) -> int | None:
    below = seen.world.below
    return None if below is None else below.pfn << PAGE_SHIFT


def _unused_l2(seen: Seen, name: str) -> int:
    used = int(name[1:]) - 8 <= seen.world.want.aliases
    return seen.outcome.went_in[name] | (0 if used else BIT_63)


def _eeq(kind: int, *, detailed: bool) -> Callable[[Seen, str], int]:
    def expected(seen: Seen, _name: str) -> int:
        if not detailed:
            return kind | (seen.outcome.exit.extended & ~15 if seen.outcome.exit is not None else 0)
        entry, world = seen.entry, seen.world
        leaf = 1 << 46 if entry & LEAF_FLAG else 0
        reached = world.table.level.tdx
        return kind | world.want.level.tdx << 32 | reached << 35 | PUBLIC[entry.state.name] << 38 | leaf

    return expected


def _gpa_level_pending(seen: Seen, _name: str) -> int:
    pending = 1 << 62 if seen.entry.state.is_pending else 0
    return gpa_of(seen.world.gfn) | seen.world.table.level.tdx | pending


OUTPUTS: dict[str, Callable[[Seen, str], int | None]] = {
    "arch_entry": _arch_entry,
    "level+state": _level_and_state,
    "level+state(": _level_and_state,
    "level+state of the parent": _level_and_state,
    "HPA of removed page": _mapped,
    "old HPA": _mapped,
    "HPA of removed SEPT page": _table_below,
    "HPA of freed SEPT page": _table_below,
    "data read": lambda _seen, _name: DATA,
    "gpa+level+pending": _gpa_level_pending,
    "attributes": lambda _seen, _name: 0,
    "L2 attributes)": lambda _seen, _name: 0,
    "NULL_PA(v1)": lambda seen, _name: NULL_PA if seen.world.want.version else None,
    "L2 pages (bit63 = unused)": _unused_l2,
    "list info with updated first entry": lambda seen, _name: (
        ListInfo(1, seen.world.want.list_entries - 1).word
    ),
    "write|entry rwx": lambda seen, _name: WRITE | (seen.entry & RWX) << 3,
    "EEQ type1": _eeq(1, detailed=True),
    "EEQ type2": _eeq(2, detailed=False),
    "EEQ type5": _eeq(5, detailed=True),
    "CHLDCNT": lambda seen, _name: seen.world.tdr.chldcnt.peek(),
    "TDR": lambda seen, _name: seen.world.tdr.pfn << PAGE_SHIFT,
    "GPA": lambda seen, _name: gpa_of(seen.world.gfn),
    "TDX_HOST_PRIORITY_BUSY_TIMEOUT": lambda _seen, _name: Status.TDX_HOST_PRIORITY_BUSY_TIMEOUT,
    "OPERAND_BUSY": lambda _seen, _name: Status.TDX_OPERAND_BUSY + Operand.RCX,
}
"""What the outputs column says a register holds, to the value it must have; None where it says nothing for this case."""


# What must hold anyway.


def _locks(seen: Seen) -> Iterator[str]:
    for name, word in seen.before.locks_now(seen.world):
        yield f"{name} is to be as free as before, but is {word:#x}"


def _bookkeeping(seen: Seen) -> Iterator[str]:
    world = seen.world
    if world.table.level > PG_LEVEL_1G and seen.entry.state.is_leaf:
        return  # there is no such page
    for check in (children_are_counted, entries_name_owned_pages):
        verdict = check(world.module)()
        if verdict is not True:
            yield f"{(check.__doc__ or '').split(':')[1].split(';')[0].strip()}, but {verdict}"


def _standing(seen: Seen) -> Iterator[str]:
    """Calls without an entry: their notes say what they change; a refusal changes nothing else."""
    stood, ret = seen.outcome.stood, seen.outcome.ret
    if stood:
        refused = ret is None or ret.is_error
        yield from wrongly_changed(seen.row.note, stood, standing(seen.world), refused=refused)
