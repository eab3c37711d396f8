"""Page pairs and calls that meet: every order keeps the rules, and a planted error breaks them."""

import pytest

from sim import Kernel
from tdx.module.dynamic_pamt import DynamicPamt
from tests.pairwise.dpamt_settings import (
    ADD_SPARE,
    FREE,
    IMPLICIT,
    LINE,
    LOSES_PAIR,
    PROFILES,
    REMOVE_HOME,
    REMOVE_SPARE,
    TRACKED,
    DpamtWorld,
    Meeting,
    after_shutdown,
    meetings,
    pairs_agree,
)

NEWER, OLDER = PROFILES
PAIRS = [
    meeting
    for profile in PROFILES
    for meeting in meetings(profile)
    if len(meeting.calls) == 2 and (profile is NEWER or meeting.loses_pair)
]


@pytest.mark.parametrize("meeting", PAIRS, ids=lambda meeting: meeting.exploration.name)
def test_no_order_breaks_a_rule_but_the_known_ones(meeting):
    """To the end; REMOVE takes an entry away from who reached it implicitly, in some order, and from nobody else."""
    found = meeting.exploration.run()

    assert found.alarms == ()
    assert found.exhausted
    assert set(found.expected) == (LOSES_PAIR if meeting.loses_pair else set())


def test_three_at_once():
    """A call, and a pair that comes and goes: a page is only ever given where a pair is."""
    aug = LINE["PAGE.AUG at entry"]
    found = Meeting((aug, ADD_SPARE, REMOVE_SPARE), FREE, NEWER, paired=False).exploration.run()

    assert (found.alarms, found.exhausted) == ((), True)
    given = [outcome for outcome in found.outcomes if outcome.startswith("SUCCESS")]
    assert given
    for outcome in given:
        _, add, remove = outcome.split(" / ")
        assert (add, remove) in {
            ("SUCCESS", "PAMT_PAGE_NOT_EMPTY|0"),
            ("SUCCESS", "NO_PAMT_PAGE_PAIR|RCX"),
            ("SUCCESS", "OPERAND_BUSY|RCX"),
        }


def test_who_loses_its_pair_is_found_by_search_not_by_name():
    """An explicit call on the very page that PAGE.REMOVE reaches implicitly is safe: RECLAIM, RDMD, WBINVD."""
    explicit = [m for m in PAIRS if m.calls[1] is REMOVE_HOME and m.calls[0].name not in IMPLICIT]

    assert {"RECLAIM", "RDMD", "WBINVD"} <= {m.calls[0].label for m in explicit}


def _no_count(monkeypatch):
    def count_in(_self, _page):
        yield from ()

    monkeypatch.setattr(DynamicPamt, "count_in", count_in)


def _no_bitmap(monkeypatch):
    def set_bit(_self, _pfn):
        yield from ()
        return True

    monkeypatch.setattr(DynamicPamt, "_set_bit", set_bit)


@pytest.mark.parametrize(
    ("plant", "call"), [(_no_count, LINE["PAGE.AUG at entry"]), (_no_bitmap, ADD_SPARE)], ids=["count", "bit"]
)
def test_a_planted_error_is_found(plant, call, monkeypatch):
    """A page that is not counted, a page that is lent and not marked: both break the rule about pairs."""
    meeting = Meeting((call, REMOVE_SPARE), FREE, NEWER, paired=call is not ADD_SPARE)
    assert meeting.exploration.run().alarms == ()
    plant(monkeypatch)

    assert any("page pairs agree" in alarm for alarm in meeting.exploration.run().alarms)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_module_that_shut_down_says_so(profile):
    """One order by hand, where the search stops at the finding."""
    found = after_shutdown(profile)

    assert found.expected == ("td-dead",)
    assert found.outcomes == ("SUCCESS / SYS_SHUTDOWN, then SYS_SHUTDOWN",)


@pytest.mark.parametrize("state", [FREE, TRACKED], ids=str)
def test_the_world_begins_with_pairs_that_agree(state):
    """As the rule demands; and it notices a count that is wrong."""
    world = DpamtWorld(Kernel(), state, NEWER, paired=True)
    holds = pairs_agree(world.module)
    assert holds() is True
    world.pamt.pair_of(world.spare).count.v += 1

    assert holds() is not True
