"""What things are called on the screen: words of memory, their values, pages, entries. Addresses are bytes, as in registers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from sim import Cell
from tdx.module.objects import NOT_ASSOCIATED, Epoch, Tdr, Tdvps
from tdx.module.pamt import PageType, PamtEntry
from tdx.module.septe import Septe, SeptState
from tdx.module.sharex import EXCLUSIVE, HP, HP_EXCLUSIVE, HP_READER, READER, Sharex, SharexHp
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_4K

if TYPE_CHECKING:
    from scenarios.seamcall.report import Seen
    from scenarios.seamcall.world import World

WIDTH: Final = 110
"""Columns of a printed line."""

ABOUT_TD: Final = {
    "op_state_lock": "OP_STATE lock",
    "sept_tree_lock": "SEPT_TREE lock",
    "epoch_lock": "TD_EPOCH lock",
    "epoch": "TD_EPOCH",
}
_TD = re.compile(r"td\[(0x[0-9a-f]+)\]\.(\w+)$")
_VCPU = re.compile(r"vcpu\[(0x[0-9a-f]+)\]\.(\w+)$")
_PAMT = re.compile(r"pamt\[(0x[0-9a-f]+),(\w+)\]\.(\w+)$")
_SEPT = re.compile(r"sept\[(0x[0-9a-f]+),(\w+)\]$")


def wrapped(head: str, parts: Iterable[str]) -> list[str]:
    """Parts with commas between them, behind a head that the lines below leave room for; nothing if there are none."""
    lines: list[str] = []
    line = ""
    for part in parts:
        if line and len(head) + len(line) + len(part) + 3 > WIDTH:
            lines.append(f"{line},")
            line = part
        else:
            line = f"{line}, {part}" if line else part
    if line:
        lines.append(line)
    return [f"{head if n == 0 else ' ' * len(head)}{text}" for n, text in enumerate(lines)]


def aligned(steps: Sequence[Seen]) -> list[str]:
    """Accesses, one a line, in columns."""
    verbs = max((len(step.verb) for step in steps), default=0)
    places = max((len(step.word) for step in steps), default=0)
    return [_step(step, verbs, places) for step in steps]


def _step(step: Seen, verbs: int, places: int) -> str:
    text = f"  {step.number:>4}  {step.verb:<{verbs}}  {step.word:<{places}}  {step.before}"
    if step.after != step.before:
        text += f" -> {step.after}" if step.before else step.after
    return text.rstrip()


def address(pfn: int) -> str:
    """A frame as the address of its first byte."""
    return f"{pfn << PAGE_SHIFT:#x}"


def cell_name(world: World, cell: Cell[Any]) -> str:
    """A word of memory, by what it is about."""
    name = cell.name
    if found := _TD.match(name):
        return f"{world.td_name(int(found[1], 16))} {ABOUT_TD.get(found[2], found[2])}"
    if found := _VCPU.match(name):
        return f"{world.vcpu_name(int(found[1], 16))} {found[2]}"
    if found := _PAMT.match(name):
        pfn = int(found[1], 16)
        return f"PAMT {found[2]} {owned_place(world, pfn, found[2])} {found[3].upper() if found[3] == 'bepoch' else found[3]}"
    if found := _SEPT.match(name):
        return f"S-EPT {found[2]} {address(int(found[1], 16))}"
    return name.replace("kot.lock", "KOT lock")


def owned_place(world: World, pfn: int, size: str) -> str:
    """A page by its name where it has one, else its address."""
    if size == PG_LEVEL_4K.short:
        for names, what in ((world.td_pages, "TDR"), (world.vcpu_pages, "TDVPR")):
            for name, known in names.items():
                if known == pfn:
                    return f"{address(pfn)} ({what} of {name})"
    return address(pfn)


def value(cell: Cell[Any] | None, word: Any) -> str:
    """What a word holds."""
    if isinstance(cell, SharexHp):
        return _lock(word, HP_EXCLUSIVE, word // HP_READER, priority=word & HP != 0)
    if isinstance(cell, Sharex):
        return _lock(word, EXCLUSIVE, word // READER, priority=False)
    if cell is not None and (found := _SEPT.match(cell.name)):
        level = {"4K": 1, "2M": 2, "1G": 3}.get(found[2], 4)
        return entry(Septe(word), level)
    if isinstance(word, Epoch):
        return epoch(word)
    if isinstance(word, Enum):
        return word.name
    if isinstance(word, bool) or word is None:
        return {True: "yes", False: "no", None: "-"}[word]
    return str(word) if not isinstance(word, int) or abs(word) < 10_000 else f"{word:#x}"


def _lock(word: int, exclusive: int, readers: int, *, priority: bool) -> str:
    parts = []
    if word & exclusive:
        parts.append("exclusive")
        if readers:
            parts.append(f"{readers} failed")
    elif readers:
        parts.append(f"shared x{readers}" if readers > 1 else "shared")
    if priority:
        parts.append("host priority")
    return " + ".join(parts) or "free"


def epoch(unit: Epoch) -> str:
    """TD_EPOCH, and the vCPUs that are inside from it and from the one before."""
    now, before = unit.refcount(unit.epoch), unit.refcount(unit.epoch + 1)
    inside = [f"{now} inside"] if now else []
    inside += [f"{before} inside since {unit.epoch - 1}"] if before else []
    return f"{unit.epoch}, {' and '.join(inside) or 'nobody inside'}"


def entry(word: Septe, level: int, *, place: bool = True) -> str:
    """An S-EPT entry: its state, what it names, and its lock bits."""
    state = word.state
    text = state.name
    if place and state.is_leaf:
        text += f", page {address(word.pfn_at(level))}"
    elif place and state in (SeptState.NL_MAPPED, SeptState.NL_BLOCKED):
        text += f", table {address(word.pfn_at(0))}"
    if done := word.accept_counter_at(level):
        text += f", {done} of 512 accepted"
    return text + ", TDEL" * word.is_locked + ", TDHP" * word.has_host_priority


def page_use(world: World, page: PamtEntry) -> str:
    """What a page is used for, by whom, and its BEPOCH where it has a meaning."""
    text = page.kind.name.removeprefix("PT_")
    if page.owner is not None:
        text += f" of {world.td_name(page.owner)}"
    bepoch = page.bepoch.peek()
    if bepoch and page.kind in (PageType.PT_REG, PageType.PT_EPT):
        text += f", BEPOCH {bepoch:#x}" if bepoch >> 63 else f", BEPOCH {bepoch}"
    return text


def td_facts(tdr: Tdr) -> dict[str, str]:
    """What is known of a TD, by name."""
    tdcs = tdr.tdcs
    return {
        "lifecycle": tdr.lifecycle.name + (", FATAL" if tdr.fatal else ""),
        "op_state": tdcs.op_state.name,
        "chldcnt": str(tdr.chldcnt.peek()),
        "TDCX pages": str(len(tdr.tdcx)),
        "attributes": f"{tdcs.attributes:#x}",
        "TD_EPOCH": epoch(tdcs.epoch.peek()),
        "vCPUs": str(tdcs.num_vcpus.peek()),
        "measurement": tdcs.measurement.hexdigest()[:12],
    }


def vcpu_facts(vcpu: Tdvps) -> dict[str, str]:
    """What is known of a vCPU, by name."""
    lpid = vcpu.assoc_lpid.peek()
    facts = {
        "state": vcpu.state.peek().name,
        "LP": "-" if lpid == NOT_ASSOCIATED else f"lp{lpid}",
        "epoch": str(vcpu.vcpu_epoch),
        "TDCX pages": str(len(vcpu.tdcx)),
        "#VE info": f"{vcpu.ve_info.gpa:#x}" if vcpu.ve_info is not None else "-",
        "EPT violations at this RIP": str(vcpu.possibly_epf_stepping),
        "suspect GPAs": ", ".join(f"{gpa:#x}" for gpa in vcpu.last_epf_gpa_list) or "-",
    }
    if vcpu.hp_busy_since_ns is not None:
        facts["loses to host priority"] = f"since {vcpu.hp_busy_since_ns} ns"
    return facts


TOLD_OF_TD: Final = (
    "lifecycle",
    "_fatal",
    "tdcx",
    "chldcnt",
    "_op_state",
    "epoch",
    "attributes",
    "num_vcpus",
)
TOLD_OF_VCPU: Final = ("state", "assoc_lpid", "vcpu_epoch", "possibly_epf_stepping", "hp_busy_since_ns")
NOT_TOLD: Final = ("pfn", "hkid", "private_end", "rip", "entry_rip", "rip_compared", "inside", "moving")
SHOWN_ALREADY: Final = frozenset((*TOLD_OF_TD, *TOLD_OF_VCPU, *NOT_TOLD))
"""Fields that `td_facts` and `vcpu_facts` tell, that never change, or that only the model has."""


def other_facts(*structures: object) -> dict[str, str]:
    """The numbers in control structures that have no words of their own, by field name."""
    facts: dict[str, str] = {}
    for structure in structures:
        for name, held in vars(structure).items():
            word = held.peek() if isinstance(held, Cell) else held
            if (
                name not in SHOWN_ALREADY
                and isinstance(word, int)
                and not isinstance(held, Sharex | SharexHp)
            ):
                facts[name.strip("_")] = value(None, word)
    return facts
