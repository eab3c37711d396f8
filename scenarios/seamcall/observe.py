"""Everything of the module's state that can be observed, and the LPs' TLBs, as facts; and what two observations differ in.

"Nothing changed" is said of a call only after all of this was compared: TDs and vCPUs, the S-EPT, the PAMT, keys, lock words,
contents of pages. Left out: where a guest stands, trees of L2 VMs, migration streams. A fact is a text, and for one of many pages that
change alike also their first frame, so that the 512 children of a split are one line and not 512.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias, TypeVar

from scenarios.seamcall import words
from scenarios.seamcall.running import is_entry
from scenarios.seamcall.world import World
from sim import Cell
from tdx.module.objects import Tdr
from vcpu.addresses import LEVELS, PAGE_SHIFT, PgLevel


class Fact(NamedTuple):
    """What is known of one thing. `pfn` is the frame that it names, if it is one of a kind that comes in runs."""

    text: str
    pfn: int | None = None


Row = TypeVar("Row")
NOTHING = {"entry": "none", "pamt": "NDA", "lock": "free"}
"""What a thing is of which there is no fact, by group."""
Key: TypeAlias = tuple[str, str, int, int]
"""Group (what it is called in the printed line), subject, number (a frame, or 0), level (or 0)."""
State: TypeAlias = dict[Key, Fact]


DULL = {"-", "0", "0x0"}
"""What a thing holds that nobody has touched: not worth a line when it comes into being."""


class Change(NamedTuple):
    """One difference, or so many neighbours that differ `alike`."""

    what: str
    subject: str
    before: str
    after: str
    alike: int = 1


def observe(world: World) -> State:
    """All facts of this moment."""
    state: State = {}
    for name, tdr in world.living_tds():
        state.update(_td(world, name, tdr))
    for name, vcpu in world.living_vcpus():
        for what, value in words.vcpu_facts(vcpu).items():
            state["vcpu", f"{name} {what}", 0, 0] = Fact(value)
        for what, value in words.other_facts(vcpu).items():
            state["more", f"{name} {what}", 0, 0] = Fact(value)
    for page in world.module.pamt.assigned():
        state["pamt", "", page.pfn, page.level] = Fact(words.page_use(world, page), page.pfn)
    for hpa, qword in sorted(world.module.memory._qwords.items()):
        state["memory", f"{hpa:#x}", 0, 0] = Fact(f"{qword.peek():#x}")
    for pfn, number in sorted(world.module.overwritten.items()):
        state["memory", f"page {words.address(pfn)}", 0, 0] = Fact(
            f"written with hkid {number}, yet nobody's"
        )
    for lpid, tlb in enumerate(world.tlbs):
        for space, known in tlb.entries():
            state["tlb", f"lp{lpid} {space}", known.gfn, known.level] = Fact(
                f"page {words.address(known.pfn)}"
            )
    for number, hkid in world.module.kot.hkids.items():
        if hkid.state.name != "FREE":
            state["key", f"hkid {number}", 0, 0] = Fact(hkid.state.name)
    for cell in lock_words(world):
        if not is_entry(cell):
            state["lock", words.cell_name(world, cell), 0, 0] = Fact(words.value(cell, cell.peek()))
    return state


def _td(world: World, name: str, tdr: Tdr) -> Iterator[tuple[Key, Fact]]:
    for what, value in words.td_facts(tdr).items():
        yield ("td", f"{name} {what}", 0, 0), Fact(value)
    for what, value in words.other_facts(tdr, tdr.tdcs, tdr.tdcs.migration).items():
        yield ("more", f"{name} {what}", 0, 0), Fact(value)
    whose = name if len(world.td_pages) > 1 else ""
    for gfn, level, entry in world.module.entries(tdr.tdcs):
        pfn = entry.pfn_at(level) if entry.is_leaf else None
        yield ("entry", whose, gfn, level), Fact(words.entry(entry, level, place=pfn is None), pfn)


def lock_words(world: World) -> Iterator[Cell[int]]:
    """Every lock word that is not plainly free."""
    module = world.module
    found: list[Cell[int]] = [module.kot.lock, *module.ket_locks, *module.wbt_locks]
    found += [page.lock for page in sorted(module.pamt.known(), key=lambda page: (-page.level, page.pfn))]
    for _, tdr in world.living_tds():
        found += [tdr.tdcs.op_state_lock, tdr.tdcs.sept_tree_lock, tdr.tdcs.epoch_lock]
    return (lock for lock in found if lock.peek())


def differences(before: State, after: State) -> list[Change]:
    """What has changed, neighbours that changed alike taken together."""
    changed = [
        key for key in before.keys() | after.keys() if _matters(key[0], before.get(key), after.get(key))
    ]
    changed.sort(key=lambda key: (ORDER.index(key[0]), key[1], -key[3], key[2]))
    return [
        _told(run, before, after)
        for run in runs(changed, lambda last, key: _follows(last, key, before, after))
    ]


def runs(rows: Iterable[Row], follows: Callable[[Row, Row], bool]) -> Iterator[list[Row]]:
    """Rows in their order, those taken together of which each one follows the one before."""
    run: list[Row] = []
    for row in rows:
        if run and not follows(run[-1], row):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


ORDER = ("entry", "pamt", "td", "vcpu", "more", "memory", "tlb", "key", "lock")
"""Groups, in the order in which they are told."""


def _matters(what: str, before: Fact | None, after: Fact | None) -> bool:
    """Whether two facts differ, and not only in that a thing came or went of which nothing is to be said."""
    if before is None or after is None:
        return what != "more" and any(fact is not None and fact.text not in DULL for fact in (before, after))
    return before != after


def _follows(last: Key, key: Key, before: State, after: State) -> bool:
    """Whether `key` is the next of a run: the same change, of the next page, naming the next frame."""
    if last[0] != key[0] or last[1] != key[1] or last[3] != key[3] or not key[3]:
        return False
    pages = LEVELS[key[3]].pages
    if last[2] + pages != key[2]:
        return False
    for state in (before, after):
        one, other = _fact(state, last), _fact(state, key)
        if one.text != other.text:
            return False
        if one.pfn is not None and other.pfn is not None and one.pfn + pages != other.pfn:
            return False
    return True


def _told(run: list[Key], before: State, after: State) -> Change:
    what, subject, number, level = run[0]
    if level:
        place = f"{number << PAGE_SHIFT:#x} {PgLevel(level).short}"
        subject = f"{subject} {place}" if subject else place
    texts = []
    for state in (before, after):
        fact = _fact(state, run[0])
        text = fact.text
        if what == "entry" and fact.pfn is not None:
            text += f", {'pages from' if len(run) > 1 else 'page'} {fact.pfn << PAGE_SHIFT:#x}"
        texts.append(text)
    return Change(what, subject, texts[0], texts[1], len(run))


def _fact(state: State, key: Key) -> Fact:
    return state.get(key) or Fact(NOTHING.get(key[0], "-"))
