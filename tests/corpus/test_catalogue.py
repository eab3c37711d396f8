"""The catalogue agrees with the files, and the tables say what the searches found."""

from __future__ import annotations

import re

import pytest

from scenarios.loading import load
from sim.findings import KINDS
from sim.patches import read
from tests.corpus import scoreboard
from tests.corpus.__main__ import main
from tests.corpus.catalogue import ABSENT, CONTROLS, ENTRIES, PLANTS, STRATEGIES
from tests.corpus.search import Attempt, Budget

BUDGET = Budget(100, 10.0)


def test_every_id_is_used_once():
    """An id names one entry, one absent entry or one control."""
    ids = [part.id for part in (*ENTRIES, *ABSENT, *CONTROLS)]

    assert sorted(set(ids)) == sorted(ids)


def test_every_race_of_the_reference_is_an_entry_or_is_said_to_be_absent():
    """R01 to R97, the odd ones, and N1 to N10."""
    ids = {re.sub("[a-z]$", "", part.id) for part in (*ENTRIES, *ABSENT, *CONTROLS)}

    assert {f"R{n:02}" for n in range(1, 98, 2)} | {f"N{n}" for n in range(1, 11)} <= ids


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
def test_an_entry_has_its_plant_and_its_scenario(entry):
    """Both can be read; the plant says which race it is; the oracles exist."""
    assert read(entry.plant_file)
    assert load(entry.scenario_file).name == entry.scenario
    assert set(entry.expected) <= KINDS
    assert entry.best in STRATEGIES


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.id)
def test_a_control_has_its_files(control):
    """Scenario and patch can be read."""
    assert load(control.scenario_file).name == control.scenario
    assert all(read(file) for file in control.patch_files)


def test_no_scenario_is_left_over():
    """What is in the folder is in the catalogue, or in a test."""
    tests = "".join(file.read_text(encoding="utf-8") for file in PLANTS.parent.rglob("test_*.py"))
    used = {part.scenario for part in (*ENTRIES, *CONTROLS)}

    assert [
        file.stem
        for file in sorted((PLANTS / "scenarios").glob("*.yaml"))
        if file.stem not in used and file.stem not in tests
    ] == []


def test_a_miss_counts_as_infinitely_many_executions():
    """The median of two hits and three misses is no number."""
    hit, miss = Attempt(7, 0.1, ("deadlock",), ("stuck",)), Attempt(100, 1.0)

    assert scoreboard.median_executions([hit, miss, hit]) == 7
    assert scoreboard.median_executions([hit, miss, miss]) is None
    assert scoreboard.cell([hit, miss, hit], BUDGET, seconds=False) == "7 (2/3)"
    assert scoreboard.cell([hit, miss, miss], BUDGET, seconds=False) == "- (1/3)"


def test_a_search_that_time_ended_is_marked():
    """Such a cell may differ on another machine."""
    assert scoreboard.cell([Attempt(60, 10.0)], BUDGET, seconds=False) == "-*"
    assert scoreboard.cell([Attempt(100, 9.0)], BUDGET, seconds=False) == "-"


def test_the_page_has_no_seconds():
    """The same searches on a slower machine give the same page."""
    pages = []
    for slow in (1.0, 2.0):
        attempts = {strategy: [Attempt(3, slow, ("deadlock",), ("stuck",))] for strategy in STRATEGIES}
        row = scoreboard.Row(ENTRIES[0], attempts)
        controls = [(CONTROLS[0], [Attempt(1000, slow)])]
        pages.append(scoreboard.page([row], controls, BUDGET, 1, "make corpus"))

    assert pages[0] == pages[1]
    assert f"| {ENTRIES[0].id} |" in pages[0]


def test_a_false_alarm_is_told():
    """Kind and title of what the checker said about a control."""
    table = scoreboard.controls_table([(CONTROLS[0], [Attempt(5, 0.1, ("kvm-bug",), ("no",))])])

    assert table[1][3] == "kvm-bug: no"


def test_an_unknown_id_is_refused(capsys):
    """One message, with what there is."""
    assert main(["--only", "R98"]) == 2
    assert "--only: no entry R98: there are R07" in capsys.readouterr().err


def test_any_number_of_jobs_gives_the_same_page(tmp_path):
    """Results are put in the order of the catalogue."""
    pages = []
    for jobs in ("1", "2"):
        file = tmp_path / jobs
        options = ["--seeds", "1", "--executions", "5", "--controls", "1", "--only", "R37,R21"]
        assert main([*options, "--jobs", jobs, "--write", str(file)]) == 0
        pages.append(file.read_text(encoding="utf-8"))

    assert pages[0] == pages[1]


def test_the_page_names_the_command_that_made_it(tmp_path):
    """With the options that matter, without those that do not."""
    file = tmp_path / "page.md"

    main(["--quick", "--only", "R21", "--jobs", "1", "--write", str(file)])

    assert "`python -m tests.corpus --quick --only R21`" in file.read_text(encoding="utf-8")
