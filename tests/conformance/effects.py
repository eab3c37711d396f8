"""What a row's note says that the call does beside its status: checked where the note uses one of these phrases.

Notes are prose, so this is no vocabulary that must be complete: an unknown phrase is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tdx.module import Operand, OpState, SeptState, Status
from tdx.module.pamt import PageType, PamtEntry
from tdx.module.sept import SeptPage
from tdx.module.septe import TDHP, Septe, make
from tdx.module.sharex import EXCLUSIVE, HP, Sharex, SharexHp
from tests.conformance.situation import NEW
from tests.conformance.world import World
from vcpu.addresses import ENTRIES, LEVELS, PG_LEVEL_4K

LOW32 = (1 << 32) - 1
COUNTER = ((1 << 9) - 1) << 12


def _locks(world: World) -> Iterator[tuple[str, Sharex | SharexHp]]:
    """Every lock word there is but the entries' own."""
    tdcs = world.tdcs
    yield tdcs.op_state_lock.name, tdcs.op_state_lock
    yield tdcs.sept_tree_lock.name, tdcs.sept_tree_lock
    yield tdcs.epoch_lock.name, tdcs.epoch_lock
    yield tdcs.migration.lock.name, tdcs.migration.lock
    yield "kot.lock", world.module.kot.lock
    for array in world.module.pamt._arrays:
        for entry in array.values():
            yield entry.lock.name, entry.lock


@dataclass
class Before:
    """What stood where before the call."""

    entry: Septe
    page: PamtEntry | None
    chldcnt: int
    bepoch: int
    mig_count: int
    dirty_count: int
    lock_words: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, world: World) -> Before:
        """Now."""
        migration = world.tdcs.migration
        page = _named_page(world)
        return cls(
            Septe(world.entry.peek()),
            world.page,
            world.tdr.chldcnt.peek(),
            -1 if page is None else page.bepoch.peek(),
            migration.mig_count.peek(),
            migration.dirty_count.peek(),
            {name: lock.peek() for name, lock in _locks(world)},
        )

    def locks_now(self, world: World) -> Iterator[tuple[str, int]]:
        """Locks that are less free than they were. Host priority may stay; a failed reader is counted where somebody is exclusive."""
        for name, lock in _locks(world):
            word, was = lock.peek() & ~HP, self.lock_words.get(name, 0) & ~HP
            if isinstance(lock, Sharex):
                word, was = lock.peek(), self.lock_words.get(name, 0)
            if word != was and not was & EXCLUSIVE:
                yield name, word


def _named_page(world: World) -> PamtEntry | None:
    """The PAMT entry of the page that the entry names: what it maps, or the S-EPT page below."""
    if world.page is not None:
        return world.page
    return None if world.below is None else world.pamt(world.below.pfn)


def unmet_effects(note: str, world: World, before: Before, rax: int | None) -> Iterator[str]:
    """What the note says and is not so. Args: rax: what the call returned, if it did."""
    for pattern, met in EFFECTS:
        for match in pattern.finditer(note):
            if not met(world, before, match):
                yield f"{match[0]!r}, but it is not so"
    told = RAX.search(note)
    name = "" if told is None else f"TDX_{told[1].removeprefix('TDX_')}"
    if told is not None and name in Status.__members__ and world.want.op_state in IN_ORDER_IMPORT:
        expected = Status[name] + Operand.__members__.get(told[2], 0) | FATAL
        said = rax if told[2] or rax is None else rax & ~LOW32  # a note may leave the operand out
        if said != expected:
            yield f"{told[0]!r} ({expected:#x}), but it is {rax if rax is None else hex(rax)}"


RAX = re.compile(r"RAX=(\w+)(?:\|(\w+))?")
"""What a list call returns beside the status in the list: it ends an import that is in order."""
FATAL = 1 << 61
"""Bit of a status: the TD can only be torn down."""
IN_ORDER_IMPORT = (OpState.MEMORY_IMPORT, OpState.STATE_IMPORT)


def _session_aborts(world: World, _before: Before, match: re.Match[str]) -> bool:
    """The import has failed; one that was committed is over, and the TD runs on."""
    if world.want.op_state not in IN_ORDER_IMPORT and "in-order" in match.string:
        return True
    return world.tdcs.op_state in (OpState.FAILED_IMPORT, OpState.RUNNABLE)


Met = Callable[[World, Before, "re.Match[str]"], bool]


def _counted(world: World, before: Before, match: re.Match[str]) -> bool:
    return world.tdr.chldcnt.peek() - before.chldcnt == int(match[1])


def _page_uncounted(world: World, before: Before, _match: re.Match[str]) -> bool:
    return before.page is None or before.chldcnt - world.tdr.chldcnt.peek() == before.page.level.pages


def _new_bepoch(world: World, _before: Before, _match: re.Match[str]) -> bool:
    level = world.want.level if world.pamt(NEW, world.want.level).kind is not PageType.PT_NDA else PG_LEVEL_4K
    return world.pamt(NEW, level).bepoch.peek() == 0


def _bepoch_is_now(world: World, _before: Before, _match: re.Match[str]) -> bool:
    page = _named_page(world)
    return page is None or page.bepoch.peek() == world.tdcs.epoch.peek().epoch


def _bepoch_stays(world: World, before: Before, _match: re.Match[str]) -> bool:
    page = _named_page(world)
    return page is None or page.bepoch.peek() == before.bepoch


def _table_below(world: World) -> SeptPage | None:
    """The S-EPT page that the entry names now."""
    return world.module.sept_pages.get(Septe(world.entry.peek()).pfn_at(0))


def _children_are(world: World, _before: Before, match: re.Match[str]) -> bool:
    below = _table_below(world)
    if below is None:
        return False
    states = {Septe(below.septe(below.gfn(n)).peek()).state for n in range(ENTRIES)}
    return states == {SeptState[match[1]]} and below.level.short == match[2]


def _page_is_free(world: World, before: Before, _match: re.Match[str]) -> bool:
    if before.page is not None:
        return before.page.kind is PageType.PT_NDA
    return world.below is None or world.pamt(world.below.pfn).kind is PageType.PT_NDA


def _moved_by(count: str) -> Met:
    def met(world: World, before: Before, match: re.Match[str]) -> bool:
        now = getattr(world.tdcs.migration, count).peek()
        return bool(now - getattr(before, count) == int(match[1]))

    return met


def _filled_with_free(world: World, _before: Before, _match: re.Match[str]) -> bool:
    below = _table_below(world)
    free = int(make(SeptState.FREE))
    return below is not None and all(below.septe(below.gfn(n)).peek() == free for n in (0, 1, ENTRIES - 1))


def _unblocked(world: World, _before: Before, _match: re.Match[str]) -> bool:
    return not Septe(world.entry.peek()).state.is_blocked


EFFECTS: tuple[tuple[re.Pattern[str], Met], ...] = (
    (re.compile(r"child count ([+-]\d+)"), _counted),
    (re.compile(r"child count minus number of 4K pages"), _page_uncounted),
    (re.compile(r"(?<!L2 )BEPOCH=0"), _new_bepoch),
    (re.compile(r"BEPOCH=TD_EPOCH"), _bepoch_is_now),
    (re.compile(r"BEPOCH is NOT refreshed"), _bepoch_stays),
    (re.compile(r"512 children (MAPPED|PENDING) at (4K|2M)"), _children_are),
    (re.compile(r"(?<=; )(?:old page )?PAMT NDA|PAMT of SEPT page becomes NDA"), _page_is_free),
    (re.compile(r"sets TDHP on the entry"), lambda world, _before, _match: bool(world.entry.peek() & TDHP)),
    (re.compile(r"MIG_COUNT ([+-]\d+)"), _moved_by("mig_count")),
    (re.compile(r"DIRTY_COUNT ([+-]\d+)"), _moved_by("dirty_count")),
    (re.compile(r"new page filled with FREE entries"), _filled_with_free),
    (re.compile(r"result is unblocked"), _unblocked),
    (re.compile(r"session aborts"), _session_aborts),
    (
        re.compile(r"the log has its registers"),
        lambda world, _before, _match: getattr(world.kernel.events, "agrees", False),
    ),
    (
        re.compile(r"contents go along"),
        lambda world, _before, _match: world.module.memory.contents(NEW) == {16: 0x77},
    ),
    (
        re.compile(r"accept counter cleared"),
        lambda world, _before, _match: (
            world.table.level != LEVELS[2]
            or not Septe(world.entry.peek()).is_leaf
            or not world.entry.peek() & COUNTER
        ),
    ),
    (
        re.compile(r"accept counter saved"),
        lambda world, _before, _match: bool(world.entry.peek() & COUNTER),
    ),
)
"""Phrase, and whether what it says is so."""
