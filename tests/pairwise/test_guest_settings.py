"""The guest's side and the ends of a TD's life: every order keeps the rules; what must be seen is seen."""

import pytest

from sim import Kernel
from tdx.module.invariants import cached_pages_are_owned
from tdx.module.leaves import tdh_mem_page_remove as remove_file
from tdx.module.profile import TDX_1_0, TDX_1_5_01, TDX_1_5_28
from tests.pairwise import guest_settings, life_settings, scenes
from tests.pairwise.explored import Exploration, Explored
from tests.pairwise.guest_settings import (
    FREE,
    MAPPED,
    PENDING,
    TAKE_AWAY,
    TRACKED,
    beside,
    priority,
    stepping_in_place,
    touching,
)
from tests.pairwise.guests import Guests, careless, killer, reader
from tests.pairwise.world import World
from vcpu.addresses import PG_LEVEL_4K, Pfn

QUICK = "1.5.28: "
"""Of the guest's scenes, one release; all others do not depend on it."""
SCENES = [
    exploration
    for exploration in (*guest_settings.explorations(), *life_settings.explorations())
    if exploration.name.startswith(QUICK) or not exploration.name.startswith(("1.", "2."))
]


@pytest.mark.parametrize("exploration", SCENES, ids=lambda exploration: exploration.name)
def test_no_order_breaks_a_rule(exploration):
    """To the end."""
    found = exploration.run()

    assert found.alarms == ()
    assert found.exhausted
    assert found.outcomes


def outcomes(fill):
    """Of one scene."""
    found = Exploration("scene", fill).run()
    assert (found.alarms, found.exhausted) == ((), True)
    return found.outcomes


@pytest.mark.parametrize("profile", [TDX_1_0, TDX_1_5_01], ids=lambda profile: profile.name)
def test_a_second_ve_is_a_double_fault_only_where_the_module_delivers_it(profile):
    """The CPU of 1.0 sees that the first is not fetched, and leaves; the module of 1.5 makes #DF of it (quirk 9)."""
    seen = outcomes(touching(profile, PENDING, careless, ve=True, host=("RANGE.BLOCK at entry",)))

    assert any("#DF" in outcome for outcome in seen) is (profile is TDX_1_5_01)


def test_no_ve_where_it_is_disabled():
    """SEPT_VE_DISABLE: every touch of a page that is pending leaves."""
    seen = outcomes(touching(TDX_1_5_01, PENDING, reader, ve=False, host=("RANGE.BLOCK at entry",)))

    assert seen
    assert not any("#VE" in outcome for outcome in seen)


def test_a_suspect_gets_out_when_its_page_is_back():
    """Emulated violations until the host has unblocked; who wants to know is told, in some order and never without asking."""
    for notify in (True, False):
        seen = outcomes(stepping_in_place(TDX_1_5_28, TRACKED, ("RANGE.UNBLOCK at entry",), notify=notify))

        assert any(outcome.count("EPT_VIOLATION") == 3 for outcome in seen)
        assert any(outcome.count("read") == 2 and "EPT_VIOLATION" in outcome for outcome in seen)
        assert any("told by #VE" in outcome for outcome in seen) is notify


def test_host_priority_ends_with_an_exit_only_after_its_time():
    """At once if no time is allowed; then the guest's RAX has the host's hint, if the host gave one."""
    for hint, rax in ((True, "0x9"), (False, "0x8")):
        seen = outcomes(priority(TDX_1_5_01, 0, hint=hint))
        assert any("HOST_PRIORITY_BUSY_TIMEOUT" in outcome and f"RAX {rax}" in outcome for outcome in seen)
    assert not any("TIMEOUT" in outcome for outcome in outcomes(priority(TDX_1_5_01, 10**9, hint=False)))


def test_a_dead_td_turns_every_exit():
    """The vCPU inside learns it at whatever leaves next, and nobody enters again."""
    seen = outcomes(beside(killer, reader, FREE))

    assert any("NON_ACCESSIBLE:EPT_VIOLATION" in outcome for outcome in seen)
    assert all("TD_FATAL" in outcome for outcome in seen)


def test_a_page_that_goes_untracked_is_found(monkeypatch):
    """The plant: PAGE.REMOVE does not ask for TRACK."""
    fill = touching(TDX_1_5_01, MAPPED, reader, ve=True, host=(TAKE_AWAY[0], TAKE_AWAY[2]))
    assert Exploration("as it is", fill).run().alarms == ()

    def nothing(*_args, **_options):
        yield from ()

    monkeypatch.setattr(remove_file, "check_blocked_and_tracked", nothing)
    assert any("stale-tlb" in alarm for alarm in Exploration("planted", fill).run().alarms)


def test_a_guest_may_only_use_what_is_its_tds():
    """A translation to its page, to nobody's, and to a page that a call has in hand."""
    world = World(Kernel(), MAPPED)
    translations = [(world.td, world.mapped(), PG_LEVEL_4K)]
    holds = cached_pages_are_owned(world.module, lambda: translations)
    assert holds() is True
    translations[:] = [(world.td, world.spare, PG_LEVEL_4K)]
    assert holds() is not True
    world.module.pamt.entry(world.spare, PG_LEVEL_4K).lock.v = 1
    assert holds() is True


def test_using_a_page_of_nobody_is_a_finding():
    """What a guest keeps is judged when it is used."""

    def fill(kernel):
        scene = Guests(kernel, TDX_1_5_01, MAPPED)
        scene.world.lps["guest"].last_tdvpr = scene.vcpu(
            "guest"
        ).pfn  # entered here before: nothing is flushed
        scene.cached["guest"].append((scene.world.td, Pfn(scene.world.spare), PG_LEVEL_4K))
        scene.runs("guest", reader)
        return scene.fill

    assert any("not its TD's" in alarm for alarm in Exploration("stale", fill).run().alarms)


@pytest.mark.parametrize(
    "draws", [guest_settings.held_back, guest_settings.let_out, guest_settings.not_by_mtf]
)
def test_interrupts_right_after_entry(draws):
    """All numbers of instructions occur, and no other; who was not stepped is let out at once."""
    found = draws()

    assert found.alarms == ()
    assert found.outcomes


def test_the_page_has_a_row_for_each_world():
    """Releases share one where they come to the same; alarms and known findings are said."""
    same = Explored("1.5.01: a world", 3, True, ("A|RCX", "B"), ("td-dead",), ())
    found = [same, same._replace(name="1.5.28: a world", executions=4), same._replace(name="another")]
    text = scenes.section(found)

    assert "| a world (1.5.01, 1.5.28) | 7 | `A\\|RCX`<br>`B` | td-dead |" in text
    assert "| another | 3 |" in text
    assert "10 executions, all of them to the end. Alarms: none." in text
    assert "Alarms: oops" in scenes.section([same._replace(alarms=("oops",))])
    assert "FINDING oops" in scenes.line_of(same._replace(alarms=("oops",)))


def test_worlds_have_names_of_their_own():
    """So that a finding says where it was made."""
    names = [scene.name for scene in (*guest_settings.explorations(), *life_settings.explorations())]

    assert len(names) == len(set(names))
