"""Pairs in other settings: rules hold, shutdowns are the known ones, and what a setting is there for is seen."""

from dataclasses import replace

import pytest

from sim import Kernel
from tdx.module.invariants import AT_REST
from tdx.module.l2 import aliases_agree
from tdx.module.leaves import tdh_mem_page_remove as remove_file
from tests.pairwise import page, settings_page
from tests.pairwise.__main__ import main
from tests.pairwise.settings import SHUTDOWN, line_of, search_setting
from tests.pairwise.settings_page import SETTINGS
from tests.pairwise.world import World

BY_NAME = {setting.name: setting for setting in SETTINGS}
SHARED = BY_NAME["a shared page, blocked and tracked"]
SLICE = (
    ("a shared page, pending", "PAGE.ACCEPT", SHUTDOWN),
    ("a shared page, pending and write-blocked", "PAGE.ATTR.WR (change VM 1's)", "SUCCESS"),
    ("the second L2 VM has no table there", "PAGE.ATTR.WR (give to VM 2)", "L2_SEPT_WALK_FAILED|131073"),
    (
        "the second L2 VM has no table there, and the host is told",
        "PAGE.ATTR.WR (give to VM 2)",
        "TDEXIT(2)",
    ),
    ("an empty table that L2 VMs have too, blocked and tracked", "SEPT.ADD (v1)", "SUCCESS"),
    ("a large page that one of two L2 VMs shares, blocked and tracked", "PAGE.ATTR.RD", SHUTDOWN),
    (
        "512 pages of which an L2 VM shares one otherwise",
        "PAGE.PROMOTE (v1)",
        "EPT_INVALID_PROMOTE_CONDITIONS|RCX",
    ),
    ("somebody may want the tree while pages of L2 VMs are merged", "PAGE.PROMOTE (v1)", "INTERRUPTED_BUSY"),
    (
        "an interrupt waits for the guest that accepts a large page",
        "PAGE.ACCEPT (2M)",
        "INTERRUPTED, then SUCCESS",
    ),
    (
        "an interrupt waits while a list is write-blocked",
        "EXPORT.BLOCKW",
        "INTERRUPTED_RESUMABLE, then SUCCESS",
    ),
    (
        "an interrupt waits while caches are written back",
        "PHYMEM.CACHE.WB",
        "INTERRUPTED_RESUMABLE, then SUCCESS",
    ),
)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_setting_is_a_world_at_rest(setting):
    """All rules that hold between calls hold where a search begins, the agreement of aliases among them."""
    kernel = Kernel()
    world = World(kernel, setting.state, setting.profile)
    setting.dress(world)

    for text, rule in AT_REST.items():
        assert rule(world.module)() is True, text


@pytest.mark.parametrize(("name", "label", "answer"), SLICE, ids=str)
def test_a_setting_breaks_no_rule_and_shows_what_it_is_there_for(name, label, answer):
    """To the end; a shutdown only where it is known, and there it is seen for every pair that is said to bring one."""
    setting = BY_NAME[name]
    result = search_setting(setting)

    assert result.exhausted
    assert result.findings == {}
    assert answer in result.news[label]
    searched = {frozenset((one.key, other.key)): f"{one.key} x {other.key}" for one, other in setting.pairs}
    assert set(result.known) == {searched[pair] for pair in setting.known if pair in searched}


def test_a_shutdown_that_is_not_known_is_a_finding():
    """The same pair, in a setting that does not speak of it."""
    setting = BY_NAME["a shared page, pending"]
    calls = tuple(call for call in setting.calls if call.label in ("PAGE.ACCEPT", "RANGE.BLOCK (parent)"))
    result = search_setting(replace(setting, calls=calls, known={}))

    assert list(result.findings) == ["the module shuts down"]
    assert "FINDING the module shuts down: PAGE.ACCEPT at entry x" in line_of(result)


def test_an_alias_that_is_left_behind_is_a_finding(monkeypatch):
    """PAGE.REMOVE that forgets the aliases: the rule about them is broken at rest."""
    monkeypatch.setattr(remove_file, "free_aliases", lambda *_args: iter(()))
    calls = tuple(call for call in SHARED.calls if call.label in ("PAGE.REMOVE", "SEPT.RD"))
    result = search_setting(replace(SHARED, calls=calls))

    text = next(text for text, rule in AT_REST.items() if rule is aliases_agree)
    assert any(text in finding for finding in result.findings)


def test_the_section_shows_what_is_new():
    """A row for each setting; what is the same without it is not shown; shutdowns with their reason."""
    pending, merged = (
        search_setting(BY_NAME[name])
        for name in ("a shared page, pending", "an interrupt waits while pages of L2 VMs are merged")
    )
    text = settings_page.section([pending, merged])

    assert f"| {merged.setting} | {merged.state} | 1 | {merged.executions} |" in text
    assert "PAGE.PROMOTE (v1): `INTERRUPTED_RESTARTABLE` |" in text
    assert "- PAGE.ACCEPT at entry x RANGE.BLOCK (parent) at parent. ACCEPT walks" in text
    assert text in page.page([], [], "the command", [text])


def test_a_page_cannot_be_made_of_settings_alone(capsys):
    """Status 2 and why."""
    assert main(["--settings-only", "--write", "x.md"]) == 2
    assert "--settings-only" in capsys.readouterr().err
