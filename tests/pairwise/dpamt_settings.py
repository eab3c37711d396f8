"""Dynamic PAMT: page pairs come and go while other calls give and take pages of the same 2M range.

The worlds are those of the pairs, on a module with Dynamic PAMT: ranges where the TD has 4K pages have a page pair, with a count
that agrees. Each call that takes a new page meets TDH.PHYMEM.PAMT.ADD and REMOVE of that page's range; each call that gives one back
meets them on the range where it was the last. A third rule beside those of `tdx.module.watch` is held at rest: a count is the number
of pages in use, and a bit of the bitmap is set exactly for a page that a pair lies in.

REMOVE is not ordered with calls that reach the page only by its own entry (`tdx.module.dynamic_pamt`): they are expected to lose it
under their hands (`uaf-object`) or to shut the module down (`td-dead`), and nothing else is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

from sim import Broken, Kernel, Steps
from sim.thread import Thread
from tdx.module import LEAVES, Registers, Td, TdxModule, dispatch
from tdx.module.dynamic_pamt import DynamicPamt, PagePair
from tdx.module.objects import VcpuState
from tdx.module.pamt import PageType
from tdx.module.profile import TDX_1_5_01, TDX_1_5_28, Profile
from tdx.module.septe import SeptState
from tests.pairwise import world as worlds
from tests.pairwise.calls import CALLS, ENTRY, PAGE, PARENT, RESIZED, TD, Call, Operands, text_of
from tests.pairwise.explored import Exploration, Explored, Outcome
from tests.pairwise.states import TEARDOWN, Age, State
from tests.pairwise.world import World
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Pfn

S = SeptState
PROFILES = (TDX_1_5_28.with_dynamic_pamt(), TDX_1_5_01.with_dynamic_pamt())
RANGE = PG_LEVEL_2M.pages
LENT = 0x30000
"""Pages that lie in no contested range: the host lends them from here, two for each range."""
UNUSED = Pfn(0x50000)
"""A range that nobody uses, without a pair."""
LINE = {call.key: call for call in CALLS}


class DpamtWorld(World):
    """The world of pairs with a page pair in every range where the TD has 4K pages, and in that of the spare frame if `paired`."""

    def __init__(self, kernel: Kernel, state: State, profile: Profile, *, paired: bool) -> None:
        # REMOVE and PROMOTE free entries for good: no other world may use them again.
        worlds._pamt_entry.cache_clear()
        worlds._run.cache_clear()
        super().__init__(kernel, state, profile)
        worlds._pamt_entry.cache_clear()
        worlds._run.cache_clear()
        pamt = self.module.pamt
        assert isinstance(pamt, DynamicPamt)
        self.pamt = pamt
        self._lent = LENT
        used = Counter(page.pfn & -RANGE for page in pamt.assigned() if page.level == PG_LEVEL_4K)
        for first, count in {self.spare: 0, **used}.items() if paired else used.items():
            self._install(first, count)
        kernel.at_end("page pairs agree with the PAMT", pairs_agree(self.module))

    def _install(self, first: int, count: int) -> None:
        entry = self.pamt.entry(first, PG_LEVEL_2M)
        pfns = (self.lend(), self.lend())
        for pfn in pfns:
            self.pamt.bitmap_word(pfn).v |= 1 << pfn % 64
        entry.assign(PageType.PT_PAMT, None, PagePair(entry, pfns, count))

    def lend(self) -> Pfn:
        """A page that has not been lent."""
        self._lent += 1
        return Pfn(self._lent)


def pairs_agree(module: TdxModule) -> Callable[[], bool | Broken]:
    """At rest: counts are numbers of pages in use, and the bitmap's bits are the pages of the pairs there are."""

    def holds() -> bool | Broken:
        pamt = module.pamt
        if module.in_flight or not isinstance(pamt, DynamicPamt):
            return True
        pairs = {page.pfn: page.holds for page in pamt.assigned() if isinstance(page.holds, PagePair)}
        used = Counter(page.pfn & -RANGE for page in pamt.assigned() if page.level == PG_LEVEL_4K)
        counted = {first: pair.count.peek() for first, pair in pairs.items() if pair.count.peek()}
        lent = {pfn for pair in pairs.values() for pfn in pair.pfns}
        marked = {
            number * 64 + bit
            for number, word in pamt._bitmap.items()
            for bit in range(64)
            if word.peek() >> bit & 1
        }
        if counted != used or lent != marked:
            return Broken(used=used, counted=counted, lent=sorted(lent), marked=sorted(marked))
        return True

    return holds


# The calls.


def _add(range_of: Callable[[World], int], pair: Callable[[DpamtWorld], tuple[Pfn, Pfn]]) -> Operands:
    def needs(world: World, _who: str) -> Mapping[str, Any]:
        assert isinstance(world, DpamtWorld)
        one, other = pair(world)
        return {
            "pfn": Pfn(range_of(world) & -RANGE),
            "level": PG_LEVEL_2M,
            "pamt_pfn0": one,
            "pamt_pfn1": other,
        }

    return needs


def _range(range_of: Callable[[World], int]) -> Operands:
    return lambda world, _who: {"pfn": Pfn(range_of(world) & -RANGE), "level": PG_LEVEL_2M}


def _spare_range(world: World) -> int:
    return world.spare


def _home_range(world: World) -> int:
    return world.home


def _fresh(world: DpamtWorld) -> tuple[Pfn, Pfn]:
    return world.lend(), world.lend()


def _shared(_world: DpamtWorld) -> tuple[Pfn, Pfn]:
    """Two pages that every call is given."""
    return Pfn(LENT + 100), Pfn(LENT + 101)


def _crossed(_world: DpamtWorld) -> tuple[Pfn, Pfn]:
    return Pfn(LENT + 101), Pfn(LENT + 100)


def _own(world: DpamtWorld) -> tuple[Pfn, Pfn]:
    """Two pages of the range itself, one of them the spare frame."""
    return world.spare, Pfn(world.spare + 1)


ADD = "TDH.PHYMEM.PAMT.ADD"
REMOVE = "TDH.PHYMEM.PAMT.REMOVE"


def _page(pfn: Callable[[World], int], **operands: Any) -> Operands:
    return lambda world, _who: {"pfn": Pfn(pfn(world)), **operands}


def _demote(pair: Callable[[DpamtWorld], tuple[Pfn | None, Pfn | None]]) -> Operands:
    def needs(world: World, _who: str) -> Mapping[str, Any]:
        assert isinstance(world, DpamtWorld)
        one, other = pair(world)
        return {"pfn": world.spare, "pamt_pfn0": one, "pamt_pfn1": other}

    return needs


ADDS = (
    Call(ADD, PAGE, "P", _add(_spare_range, _shared)),
    Call(ADD, PAGE, "P", _add(_spare_range, _fresh), variant="another pair"),
    Call(ADD, PAGE, "P", _add(_spare_range, _own), variant="pages of its own"),
    Call(ADD, PAGE, "P", _add(lambda _world: UNUSED, _crossed), variant="another range, the same pair"),
    Call(ADD, PAGE, "P", _add(lambda _world: UNUSED, _own), variant="another range, the new page"),
)
ADD_SPARE, ADD_ANOTHER, ADD_OWN, ADD_SAME_PAIR, ADD_NEW_PAGE = ADDS
ADD_HOME = Call(ADD, PAGE, "P", _add(_home_range, _fresh), variant="range of the mapped page")
REMOVE_SPARE = Call(REMOVE, PAGE, "P", _range(_spare_range))
REMOVE_HOME = Call(REMOVE, PAGE, "P", _range(_home_range), variant="range of the mapped page")


def _with_table(world: World, who: str) -> None:
    """The table below the parent is the spare frame, the only page in its range."""
    _done(world, LINE["SEPT.ADD at parent"].steps(world, who))


def _split(world: World, who: str) -> None:
    """The large page is demoted: its table is the spare frame, and its range has a pair."""
    _done(world, DEMOTE.steps(world, who))


def _done(world: World, steps: Steps[str]) -> None:
    returned = world.kernel.prepare(steps)
    assert returned == "SUCCESS", returned


def _new_vcpu(world: World, _who: str) -> None:
    """vCPU `b` is not initialised, and lacks its last page: the page is nobody's."""
    vcpu = world.vcpus["b"]
    vcpu.state.v = VcpuState.UNINITIALIZED
    page = world.module.pamt.entry(vcpu.tdcx.pop(), PG_LEVEL_4K)
    page.free()
    world.tdr.chldcnt.v -= 1
    holder = world.module.pamt.entry(page.pfn, PG_LEVEL_2M).holds
    assert isinstance(holder, PagePair)
    holder.count.v -= 1


DEMOTE = Call("TDH.MEM.PAGE.DEMOTE", PARENT, "S", _demote(_shared), RESIZED, variant="good pair")
CREATE = Call("TDH.MNG.CREATE", TD, "", lambda w, _who: {"td": Td(w.spare, "td1"), "hkid": 33})
CREATE_INSIDE = Call(
    "TDH.MNG.CREATE",
    TD,
    "",
    lambda w, _who: {"td": Td(Pfn(w.home + 5), "td1"), "hkid": 33},
    variant="inside the large page",
)
PROMOTE_1G = LINE["PAGE.PROMOTE at parent"]
VP_CREATE = Call("TDH.VP.CREATE", TD, "", lambda w, _who: {"tdvpr_pfn": w.spare})
VP_ADDCX = Call(
    "TDH.VP.ADDCX",
    TD,
    "",
    lambda w, _who: {"tdvpr_pfn": w.vcpus["b"].pfn, "pfn": w.spare},
    prepare=_new_vcpu,
)
AUG_2M = Call("TDH.MEM.PAGE.AUG", PARENT, "S", _page(_spare_range), RESIZED)
RDMD_2M = Call(
    "TDH.PHYMEM.PAGE.RDMD", PAGE, "P", _page(_spare_range, level=PG_LEVEL_2M), variant="2M, new page"
)
RDMD_LENT = Call(
    "TDH.PHYMEM.PAGE.RDMD", PAGE, "P", _page(lambda _world: LENT + 100), variant="page of the pair"
)
RDMD_SPARE = Call("TDH.PHYMEM.PAGE.RDMD", PAGE, "P", _page(_spare_range), variant="new page")
RDMD_1G = Call("TDH.PHYMEM.PAGE.RDMD", PAGE, "P", _page(lambda _world: 0, level=PG_LEVEL_1G), variant="1G")
WBINVD_SPARE = LINE["WBINVD (new page) at page"]
WBINVD_LENT = Call(
    "TDH.PHYMEM.PAGE.WBINVD", PAGE, "P", _page(lambda _world: LENT + 100, hkid=0), variant="page of the pair"
)
RECLAIM_SPARE = Call("TDH.PHYMEM.PAGE.RECLAIM", PAGE, "P", _page(_spare_range), variant="new page")
SEPT_REMOVE = Call("TDH.MEM.SEPT.REMOVE", PARENT, "X", levels=RESIZED, prepare=_with_table)
PROMOTE_BACK = Call("TDH.MEM.PAGE.PROMOTE", PARENT, "S", levels=RESIZED, prepare=_split)


def _demote_with(name: str, pair: tuple[Pfn | None, Pfn | None]) -> Call:
    return Call("TDH.MEM.PAGE.DEMOTE", PARENT, "S", _demote(lambda _world: pair), RESIZED, variant=name)


BUILDING = State(PG_LEVEL_4K, "INITIALIZED", S.NL_MAPPED, entry=S.FREE, rest=S.FREE)
NO_TABLE = State(PG_LEVEL_4K, "INITIALIZED", S.FREE)
FREE = BUILDING._replace(phase="RUNNABLE")
TRACKED = FREE._replace(entry=S.BLOCKED, entry_age=Age.PREVIOUS)
LARGE = State(PG_LEVEL_4K, "RUNNABLE", S.BLOCKED, Age.PREVIOUS)
LARGE_BUILDING = State(PG_LEVEL_4K, "INITIALIZED", S.MAPPED)
MERGED = State(PG_LEVEL_2M, "INITIALIZED", S.NL_MAPPED, entry=S.MAPPED, rest=S.MAPPED)
TORN_DOWN = TRACKED._replace(phase=TEARDOWN)
LARGE_TORN_DOWN = LARGE._replace(phase=TEARDOWN)
IMPORTING = BUILDING._replace(phase="MEMORY_IMPORT")

TAKERS: tuple[tuple[State, Call], ...] = (
    (FREE, LINE["PAGE.AUG at entry"]),
    (NO_TABLE._replace(phase="RUNNABLE"), AUG_2M),
    (BUILDING, LINE["PAGE.ADD at entry"]),
    (NO_TABLE, LINE["SEPT.ADD at parent"]),
    (TRACKED, LINE["PAGE.RELOCATE at entry"]),
    (LARGE, DEMOTE),
    (IMPORTING, LINE["IMPORT.MEM at entry"]),
    (BUILDING, CREATE),
    (BUILDING, VP_CREATE),
    (BUILDING, VP_ADDCX),
    (FREE, RDMD_SPARE),
    (FREE, RDMD_2M),
    (FREE, RDMD_LENT),
    (FREE, WBINVD_SPARE),
    (FREE, WBINVD_LENT),
    (TORN_DOWN, RECLAIM_SPARE),
)
"""Calls on the new page, or on its range."""
GIVERS: tuple[tuple[State, Call], ...] = (
    (TRACKED, LINE["PAGE.REMOVE at entry"]),
    (TRACKED, LINE["PAGE.RELOCATE at entry"]),
    (TORN_DOWN, LINE["RECLAIM at page"]),
    (LARGE_TORN_DOWN, LINE["RECLAIM at page"]),
    (LARGE, LINE["PAGE.REMOVE at parent"]),
    (LARGE, DEMOTE),
    (LARGE_BUILDING, PROMOTE_BACK),
    (TRACKED, LINE["RDMD at page"]),
    (TRACKED, LINE["WBINVD at page"]),
)
"""Calls on the mapped page, the only one of its range, or all of it."""
TABLE_GIVERS: tuple[tuple[State, Call], ...] = ((NO_TABLE, SEPT_REMOVE), (LARGE_BUILDING, PROMOTE_BACK))
"""Calls that give an S-EPT page back, the only one of its range."""
BAD_PAIRS: tuple[tuple[str, tuple[Pfn | None, Pfn | None]], ...] = (
    ("no pair", (None, None)),
    ("one page", (Pfn(LENT + 100), None)),
    ("twice one page", (Pfn(LENT + 100), Pfn(LENT + 100))),
    ("a page that is lent", (Pfn(LENT + 1), Pfn(LENT + 100))),
    ("a TD's page", (Pfn(LENT + 100), worlds.TD.tdr_pfn)),
    ("in no TDMR", (Pfn(0), Pfn(LENT + 100))),
)


@dataclass(frozen=True, slots=True)
class Meeting:
    """Calls that meet in a state, each on a thread of its own."""

    calls: tuple[Call, ...]
    state: State
    profile: Profile
    paired: bool = True
    """Whether the new page's range has a pair at the beginning."""
    loses_pair: bool = False
    """Whether a pair can be taken away from under one of the calls."""

    @property
    def exploration(self) -> Exploration:
        """As a world."""
        labels = ", ".join(call.label for call in self.calls)
        pair = "with" if self.paired else "without"
        name = f"{self.profile.name}: {labels}; range {pair} a pair; {self.state}"
        return Exploration(name, self._fill, LOSES_PAIR if self.loses_pair else frozenset())

    def _fill(self, kernel: Kernel) -> tuple[TdxModule, Outcome]:
        world = DpamtWorld(kernel, self.state, self.profile, paired=self.paired)
        returned: dict[str, str] = {}
        for who, call in zip(worlds.TDVPRS, self.calls, strict=False):
            call.prepare(world, who)
            kernel.thread(who, _noted(call.steps(world, who), who, returned))

        def outcome() -> str | None:
            ended = len(returned) == len(self.calls)
            return " / ".join(returned[who] for who in sorted(returned)) if ended else None

        return world.module, outcome


def _noted(steps: Steps[str], who: str, returned: dict[str, str]) -> Steps[None]:
    returned[who] = yield from steps


def meetings(profile: Profile) -> Iterator[Meeting]:
    """All that is searched in one release."""
    for state, call in TAKERS:
        yield Meeting((call, ADD_SPARE), state, profile, paired=False)
        yield Meeting((call, REMOVE_SPARE), state, profile)
        yield Meeting((call, ADD_SPARE, REMOVE_SPARE), state, profile, paired=False)
        yield Meeting((call, ADD_SPARE, REMOVE_SPARE), state, profile)
    for state, call in GIVERS:
        yield Meeting((call, ADD_HOME), state, profile)
        loses = call.name in IMPLICIT and call.at == ENTRY
        yield Meeting((call, REMOVE_HOME), state, profile, loses_pair=loses)
    for state, call in TABLE_GIVERS:
        yield Meeting((call, REMOVE_SPARE), state, profile, loses_pair=True)
    for one, other in combinations_with_replacement(ADDS, 2):
        yield Meeting((one, other), FREE, profile, paired=False)
    yield Meeting((REMOVE_SPARE, REMOVE_SPARE), FREE, profile)
    yield Meeting((RDMD_1G, ADD_SPARE), FREE, profile, paired=False)
    yield Meeting((PROMOTE_1G, ADD_SPARE), MERGED, profile, paired=False)
    yield Meeting((CREATE_INSIDE, DEMOTE), LARGE, profile)
    for name, pair in BAD_PAIRS:
        yield Meeting((_demote_with(name, pair), REMOVE_SPARE), LARGE, profile)
    yield Meeting((DEMOTE, ADD_SAME_PAIR), LARGE, profile)


IMPLICIT = frozenset(("TDH.MEM.PAGE.REMOVE", "TDH.MEM.PAGE.RELOCATE"))
"""Calls that lock a 4K page's entry without the 2M entry above it."""
LOSES_PAIR = frozenset(("td-dead", "uaf-object"))
"""What becomes of a call whose page's entry goes while it has it: it counts too late, or lets go of a lock that is gone."""


def after_shutdown(profile: Profile) -> Explored:
    """PAMT.REMOVE between a PAGE.REMOVE's last change and its count: the module is down, and every later call is told so."""
    kernel = Kernel(stop_at_finding=False)
    world = DpamtWorld(kernel, TRACKED, profile, paired=True)
    count = world.pamt.pair_of(world.home).count
    returned: dict[str, str] = {}

    def pick(_kernel: Kernel, candidates: Sequence[Thread]) -> int:
        """The remover until it is about to count its page out; then the other one."""
        by_name = {thread.name: number for number, thread in enumerate(candidates)}
        remover = candidates[by_name.get("a", 0)]
        counts_out = remover.pending is not None and remover.pending.target is count
        first = "b" if counts_out and "b" in by_name else "a"
        return by_name.get(first, 0)

    kernel.thread("a", _noted(LINE["PAGE.REMOVE at entry"].steps(world, "a"), "a", returned))
    kernel.thread("b", _noted(REMOVE_HOME.steps(world, "b"), "b", returned))
    kernel.execute(pick)
    later = kernel.prepare(dispatch(world.module, Registers(LEAVES["TDH.PHYMEM.PAGE.RDMD"].number)))
    outcome = f"{returned['a']} / {returned['b']}, then {text_of(later)}"
    kinds = {finding.kind for finding in kernel.findings}
    return Explored(f"{profile.name}: after a shutdown", 1, True, (outcome,), tuple(sorted(kinds)), ())


def explored(profiles: tuple[Profile, ...] = PROFILES) -> list[Explored]:
    """All of it."""
    found = [meeting.exploration.run() for profile in profiles for meeting in meetings(profile)]
    return found + [after_shutdown(profile) for profile in profiles]
