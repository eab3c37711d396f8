"""The module's rules (`watch`, `AT_REST`): a planted error breaks the one that speaks of it, and the module breaks none.

Each plant changes one function; each is searched in one state by one pair of calls, in every order.
"""

from typing import NamedTuple

import pytest

from sim import Kernel
from sim.access import Cell, Update
from tdx.module import SeptState
from tdx.module import locks as locks_file
from tdx.module import tracking as tracking_file
from tdx.module.invariants import AT_REST
from tdx.module.leaves import tdh_mem_page_promote as promote_file
from tdx.module.leaves import tdh_mem_track as track_file
from tdx.module.leaves import tdh_vp_enter as enter_file
from tdx.module.locks import Held
from tdx.module.pamt import PamtEntry
from tdx.module.septe import TDEL, TDHP, Septe
from tdx.module.sharex import SharexHp
from tests.pairwise.calls import CALLS
from tests.pairwise.search import search_state
from tests.pairwise.states import Age, Guest, State
from tests.pairwise.world import World
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K

S = SeptState
OF_L2 = "an alias bit speaks of an L2 entry"
"""There are no L2 VMs here: test_l2_aliases.py is about it."""
LINE = {call.key: call for call in CALLS}
FREE = State(PG_LEVEL_4K, "RUNNABLE", S.NL_MAPPED, entry=S.FREE, rest=S.FREE)
MAPPED = FREE._replace(entry=S.MAPPED)
NEWLY_BLOCKED = FREE._replace(entry=S.BLOCKED, entry_age=Age.NEW)
TRACKED = FREE._replace(entry=S.BLOCKED, entry_age=Age.PREVIOUS)
MERGEABLE = State(PG_LEVEL_4K, "RUNNABLE", S.NL_BLOCKED, Age.NEW, S.MAPPED, rest=S.MAPPED)
LARGE = State(PG_LEVEL_4K, "RUNNABLE", S.BLOCKED, Age.NEW)
GUEST_BEHIND = FREE._replace(guest=Guest.PREVIOUS)
PENDING = FREE._replace(entry=S.PENDING, guest=Guest.CURRENT)


class Plant(NamedTuple):
    """An error, where it shows, and in the words of which rule."""

    plant: object
    pair: tuple[str, str]
    state: State
    rule: str


def page_type_unchecked(patch):
    def page(self, pfn, level, kind, operand, *, exclusive, any_size=False):
        return self.walk(pfn, level, operand, exclusive=exclusive)

    patch.setattr(Held, "page", page)


def new_page_only_shared(patch):
    page = Held.page

    def shared(self, pfn, level, kind, operand, *, exclusive, any_size=False):
        return page(self, pfn, level, kind, operand, exclusive=False)

    patch.setattr(Held, "page", shared)


def tracking_unchecked(patch):
    def nothing(*_args, **_options):
        yield from ()

    patch.setattr(tracking_file, "check_tracked", nothing)


def no_count(patch):
    def fetch_add(self, n):
        return Update(self, lambda old: old if self.name.endswith("chldcnt") else old + n, "fetch_add")

    patch.setattr(Cell, "fetch_add", fetch_add)


def stays_locked(patch):
    patch.setattr(locks_file, "unlocks", lambda word: word)


def loser_unlocks(patch):
    patch.setattr(locks_file, "asks_priority", lambda word: word & ~TDEL | TDHP)


def entry_not_locked(patch):
    def entry(_self, walk):
        return Septe((yield walk.septe.read_once()) & ~TDEL)

    patch.setattr(Held, "entry", entry)


def epoch_never_waits(patch):
    patch.setattr(track_file, "require", lambda *_args: None)


def parity_mixed_up(patch):
    patch.setattr(enter_file, "leave_even", enter_file.leave_odd)
    patch.setattr(enter_file, "leave_odd", lambda unit: unit.counted(0, -1))


def count_kept(patch):
    patch.setattr(enter_file, "leave_even", lambda unit: unit)
    patch.setattr(enter_file, "leave_odd", lambda unit: unit)


def owner_forgotten(patch):
    assign = PamtEntry.assign
    patch.setattr(PamtEntry, "assign", lambda self, kind, _owner, holds=None: assign(self, kind, None, holds))


def page_not_freed(patch):
    patch.setattr(PamtEntry, "free", lambda _entry: None)


def page_stays_locked(patch):
    patch.setattr(SharexHp, "release_exclusive", lambda self: Update(self, lambda word: word, "keeps"))


def merged_table_kept(patch):
    def nothing(*_args):
        yield from ()

    patch.setattr(promote_file, "_free", nothing)


AUGS = ("PAGE.AUG at entry", "PAGE.AUG at neighbour")
REMOVE = ("PAGE.REMOVE at entry", "SEPT.RD at entry")
PLANTS = {
    "a new page may be in use": Plant(page_type_unchecked, AUGS, FREE, "two S-EPT entries name one page"),
    "AUG locks its page only shared": Plant(
        new_page_only_shared,
        ("PAGE.AUG at entry", "SEPT.RD at parent"),
        FREE,
        "names a page that is not its TD's",
    ),
    "AUG forgets the owner": Plant(
        owner_forgotten, ("PAGE.AUG at entry", "SEPT.RD at parent"), FREE, "names a page that is not its TD's"
    ),
    "REMOVE does not ask for tracking": Plant(
        tracking_unchecked, REMOVE, NEWLY_BLOCKED, "may be cached is taken away"
    ),
    "DEMOTE does not ask for tracking": Plant(
        tracking_unchecked,
        ("PAGE.DEMOTE at parent", "SEPT.RD at entry"),
        LARGE,
        "may be cached is taken away",
    ),
    "PROMOTE does not ask for tracking": Plant(
        tracking_unchecked,
        ("PAGE.PROMOTE at parent", "TRACK at TD"),
        MERGEABLE,
        "may be cached is taken away",
    ),
    "an entry stays locked": Plant(
        stays_locked, ("SEPT.RD at entry", "TRACK at TD"), MAPPED, "no S-EPT entry stays locked"
    ),
    "a loser unlocks": Plant(
        loser_unlocks, ("PAGE.REMOVE at entry", "SEPT.RD at entry"), TRACKED, "under somebody else's lock"
    ),
    "the host does not lock the entry": Plant(
        entry_not_locked, ("PAGE.AUG at entry", "SEPT.RD at entry"), FREE, "without its lock"
    ),
    "TRACK does not wait for the epoch before": Plant(
        epoch_never_waits, ("TRACK at TD", "SEPT.RD at entry"), GUEST_BEHIND, "begins with vCPUs counted"
    ),
    "an exit counts in the wrong parity": Plant(
        parity_mixed_up, ("VP.ENTER at vCPU", "SEPT.RD at entry"), FREE, "REFCOUNT is negative"
    ),
    "an exit is not counted": Plant(
        count_kept, ("VP.ENTER at vCPU", "SEPT.RD at entry"), FREE, "a REFCOUNT counts the vCPUs inside"
    ),
    "REMOVE leaves the page with its TD": Plant(
        page_not_freed, REMOVE, TRACKED, "a TDR counts the pages it owns"
    ),
    "PROMOTE keeps the S-EPT page": Plant(
        merged_table_kept,
        ("PAGE.PROMOTE at parent", "SEPT.RD at parent"),
        MERGEABLE._replace(parent_age=Age.PREVIOUS),
        "a page of a TD has an S-EPT entry",
    ),
    "pages are not counted": Plant(no_count, REMOVE, TRACKED, "a TDR counts the pages it owns"),
    "a page stays locked": Plant(page_stays_locked, REMOVE, TRACKED, "no lock stays taken"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_error_breaks_the_rule_that_speaks_of_it(name, monkeypatch):
    """Without the plant every order of the same pair in the same state keeps all rules."""
    plant, pair, state, rule = PLANTS[name]
    calls = [LINE[key] for key in pair]
    assert search_state(*calls, state).findings == ()
    plant(monkeypatch)
    found = search_state(*calls, state)

    assert any(rule in finding for finding in found.findings), found.findings


def test_every_rule_has_its_plant():
    """Those at rest by their text; those of single steps, by what the plants above look for."""
    looked_for = {plant.rule for plant in PLANTS.values()}
    steps_break_them_first = {"an S-EPT entry names a page of its TD", "a page has at most one S-EPT entry"}

    assert set(AT_REST) - looked_for - {OF_L2} == steps_break_them_first


@pytest.mark.parametrize("text", sorted(set(AT_REST) - {OF_L2}))
def test_a_rule_at_rest_notices_what_it_is_for(text):
    """Break by hand what it speaks of, and it says so."""
    world = World(Kernel(), MAPPED)
    module, tdcs = world.module, world.tdcs
    holds = AT_REST[text](module)
    assert holds() is True
    septe = module.sept_pages[max(module.sept_pages)].septe(world.gfn)
    breaks = {
        "a REFCOUNT counts the vCPUs inside": lambda: setattr(tdcs.epoch, "v", tdcs.epoch.v.counted(0, 1)),
        "a TDR counts the pages it owns": lambda: setattr(world.tdr.chldcnt, "v", 1),
        "an S-EPT entry names a page of its TD": lambda: module.pamt.entry(world.home, PG_LEVEL_4K).free(),
        "no S-EPT entry stays locked": lambda: setattr(septe, "v", septe.v | TDEL),
        "a page has at most one S-EPT entry": lambda: setattr(
            module.sept_pages[max(module.sept_pages)].septe(world.gfn + 1), "v", septe.v
        ),
        "a page of a TD has an S-EPT entry": lambda: setattr(septe, "v", septe.v & ~(0xFFFF << 12)),
        "no lock stays taken": lambda: setattr(module.pamt.entry(world.home, PG_LEVEL_2M).lock, "v", 4),
    }
    breaks[text]()

    assert holds() is not True
