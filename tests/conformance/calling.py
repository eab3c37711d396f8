"""Making the call of a case: its registers, and what lies in shared memory beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sim import Steps
from sim.access import Access
from tdx.module import LEAVES, Registers, SeamcallReturn, SeptState, TdExit, dispatch
from tdx.module.migration_data import (
    MBMD_BUFFER,
    SHARED_PAGE,
    GpaListEntry,
    GpaOperation,
    ListInfo,
    MbType,
    MemoryBundle,
    PageListEntry,
    page_list_info,
)
from tdx.module.migration_state import PAGES
from tdx.module.status import NULL_PA
from tdx.module.tdcall import TDCALLS, tdcall
from tests.conformance.sessions import SESSIONS
from tests.conformance.situation import NEW, NotExpressible, Words
from tests.conformance.standing import Standing, standing
from tests.conformance.world import HKID, OTHER, SHARED, World, l2_page
from vcpu.addresses import PAGE_SHIFT, Gpa, Pfn, gpa_of

VERSION_SHIFT = 16
SEPT_ADD = "TDH.MEM.SEPT.ADD"
REGISTERS = ("rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13")
WRITTEN = 0x1122334455667788
"""What MEM.WR writes."""
DATA = 0xDDCCBBAA99887766
"""What is in the page before."""


@dataclass
class Outcome:
    """What came of a call: registers as a caller sees them, or a TD exit, or an interrupted TDCALL."""

    went_in: Words
    ret: SeamcallReturn | None = None
    exit: TdExit | None = None
    interrupted: bool = False
    listed: GpaListEntry | None = None
    """The first list entry afterwards."""
    stood: Standing = field(default_factory=dict)
    """How things stood just before the call."""

    def __str__(self) -> str:
        if self.listed is not None and self.ret is not None:
            return f"{self.ret} with entry status {self.listed.status}"
        if self.exit is not None:
            told = f"exit {self.exit.reason.name} {self.exit.status.name}, extended type {self.exit.extended_type}"
            return told if self.ret is None else f"{told}, guest sees {self.ret}"
        return "interrupted" if self.interrupted else str(self.ret)


def require_modelled(name: str) -> None:
    """Raises: NotExpressible: the model has no such leaf."""
    if name not in LEAVES and name not in TDCALLS:
        raise NotExpressible(f"{name} is not modelled")


def call(world: World, watch: Callable[[Access], None] | None = None, **more: Any) -> Outcome:
    """Make the call that the world was built for.

    Args:
        watch: sees every access before it happens. more: what the leaf wants beside registers, as TDH.VP.ENTER wants a guest.
    """
    want = world.want
    words = _words(world)
    for patch in want.patches:
        patch(world, words)
    context = _context(world) | more
    for change in want.handed:
        change(world, words, context)
    registers = Registers(**words)
    stood = {} if want.call.levels else standing(world)
    if want.seen is not None:
        watch = _race(world)
    if want.call.is_guest:
        left = world.run(
            tdcall(world.module, world.vcpu, registers, interrupt_pending=world.lp.interrupt_pending), watch
        )
        return Outcome(words, left.ret, left.exit, left.interrupted, stood=stood)
    steps: Steps[SeamcallReturn] = dispatch(world.module, registers, lp=world.lp, **context)
    ret = world.run(steps, watch)
    listed = context["gpa_list"][0] if want.call.has_list else None
    return Outcome(words, ret, listed=listed, stood=stood)


def _race(world: World) -> Callable[[Access], None]:
    """The entry changes to the row's state just before the first access to it that is no plain look."""
    changed = False

    def watch(access: Access) -> None:
        nonlocal changed
        if not changed and access.target is world.entry and access.writes:
            changed = True
            world.race()

    return watch


def _words(world: World) -> Words:
    """Registers that pass every check."""
    want = world.want
    call_ = want.call
    words = dict.fromkeys(REGISTERS, 0)
    words["rax"] = call_.leaf | want.version << VERSION_SHIFT
    gpa = gpa_of(world.gfn)
    if call_.gpa in ("page_info", "gpa"):
        words["rcx"] = gpa | (want.level.tdx if call_.gpa == "page_info" else 0)
    if call_.tdr:
        words[call_.tdr] = world.tdr.pfn << PAGE_SHIFT
    if call_.tdvpr:
        words[call_.tdvpr] = world.vcpu.pfn << PAGE_SHIFT
    if call_.page:
        words[call_.page] = NEW << PAGE_SHIFT
    more = _MORE.get(call_.name)
    if more is not None:
        words.update(more)
    for vm in range(1, want.l2_pages + 1):
        words[f"r{8 + vm}"] = l2_page(vm) << PAGE_SHIFT
    if call_.name == SEPT_ADD and want.l2_pages and want.state is SeptState.NL_MAPPED and not want.names_page:
        words["r8"] = NULL_PA  # L2 pages only
    if call_.has_list:
        words["rcx"] = ListInfo(0, want.list_entries - 1).word
    if call_.name in ("TDH.MEM.RD", "TDH.MEM.WR"):
        page = world.page
        if page is not None:
            world.module.memory.qword(page.pfn << PAGE_SHIFT).v = DATA
    return words


_L2_PAGES = {"r9": NULL_PA, "r10": NULL_PA, "r11": NULL_PA}
_LISTS = {"r8": MBMD_BUFFER, "r9": SHARED_PAGE, "r11": SHARED_PAGE, "r12": SHARED_PAGE}
ATTRIBUTES, HP_LOCK_TIMEOUT, GUEST_RAX = 0x1110000300000000, 0x9110000300000011, 0x1020000300000000
"""Metadata field ids."""
HP_LOCK_TIMEOUT_US = 2_000_000
ALL_BITS = (1 << 64) - 1
_TOKEN = {"r8": MBMD_BUFFER}


def _metadata(kind: MbType) -> Words:
    return {"r8": MBMD_BUFFER, "r9": page_list_info(PAGES[kind])}


_MORE: dict[str, Words] = {
    SEPT_ADD: _L2_PAGES,
    "TDH.MEM.PAGE.DEMOTE": _L2_PAGES,
    "TDH.MEM.PAGE.ADD": {"r9": SHARED << PAGE_SHIFT},
    "TDH.MEM.WR": {"r8": WRITTEN},
    "TDH.EXPORT.MEM": _LISTS,
    "TDH.IMPORT.MEM": _LISTS | {"r13": SHARED_PAGE},
    "TDH.EXPORT.TRACK": _TOKEN,
    "TDH.EXPORT.ABORT": _TOKEN,
    "TDH.IMPORT.TRACK": _TOKEN,
    "TDH.IMPORT.ABORT": _TOKEN,
    "TDH.EXPORT.STATE.IMMUTABLE": _metadata(MbType.IMMUTABLE_TD_STATE),
    "TDH.EXPORT.STATE.TD": _metadata(MbType.MUTABLE_TD_STATE),
    "TDH.EXPORT.STATE.VP": _metadata(MbType.MUTABLE_VCPU_STATE),
    "TDH.IMPORT.STATE.IMMUTABLE": _metadata(MbType.IMMUTABLE_TD_STATE),
    "TDH.IMPORT.STATE.TD": _metadata(MbType.MUTABLE_TD_STATE),
    "TDH.IMPORT.STATE.VP": _metadata(MbType.MUTABLE_VCPU_STATE),
    "TDH.MNG.RD": {"rdx": ATTRIBUTES},
    "TDH.MNG.WR": {"rdx": HP_LOCK_TIMEOUT, "r8": HP_LOCK_TIMEOUT_US, "r9": ALL_BITS},
    "TDH.VP.RD": {"rdx": GUEST_RAX},
    "TDH.VP.WR": {"rdx": GUEST_RAX, "r8": 5, "r9": ALL_BITS},
    "TDH.MNG.CREATE": {"rcx": NEW << PAGE_SHIFT, "rdx": HKID + 1},
    "TDH.PHYMEM.PAGE.RECLAIM": {"rcx": OTHER << PAGE_SHIFT},
    "TDH.PHYMEM.PAGE.RDMD": {"rcx": OTHER << PAGE_SHIFT},
    "TDH.PHYMEM.PAGE.WBINVD": {"rcx": NEW << PAGE_SHIFT | HKID << 46},
}
"""What single calls take beside the usual."""


def _context(world: World) -> dict[str, Any]:
    want = world.want
    if not want.call.has_list:
        session = SESSIONS.get(want.call.name)
        return {} if session is None else session(world)
    operation = GpaOperation[want.list_op.upper()]
    gpas = [gpa_of(world.gfn + n) for n in range(want.list_entries)]
    entries = [GpaListEntry(gpa, operation, want.list_pending) for gpa in gpas]
    first = entries[0]
    if want.list_spoilt == "reserved":
        first.reserved = 1 << 61
    elif want.list_spoilt == "level":
        first.level = 1
    elif want.list_spoilt == "not_private":
        first.gpa = Gpa(first.gpa | 1 << 47)
    context: dict[str, Any] = {"gpa_list": entries}
    if want.call.name == "TDH.EXPORT.MEM":
        context["bundle"] = MemoryBundle(buffers=[PageListEntry(invalid=want.no_buffer)])
    elif want.call.name == "TDH.IMPORT.MEM":
        context["bundle"] = bundle = MemoryBundle.sent_to(world.tdcs.migration, entries)
        bundle.buffers[0].invalid |= want.no_buffer
        bundle.macs[0] = () if want.bad_mac else bundle.macs[0]
        page = (
            PageListEntry(Pfn(0), invalid=True)
            if want.new_page is None
            else PageListEntry(Pfn(want.new_page))
        )
        context["new_pages"] = [page, *(PageListEntry(Pfn(NEW + n)) for n in range(1, want.list_entries))]
    return context
