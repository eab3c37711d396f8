"""A hunt: verdicts, findings, files, messages, exit status."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
from click.testing import CliRunner

import scenarios
from scenarios import hunt
from scenarios.campaign.hunt import hunt_scenario
from scenarios.campaign.shares import Progress
from scenarios.cli import tdsim
from scenarios.commands.hunt import progress_text
from scenarios.errors import ScenarioError
from scenarios.loading import load
from tests.scenarios.helpers import write
from tests.scenarios.hunted import PLANT, TINY, tiny

FAILING_PATCH = """\
from mmu import fault
from sim import replaces

@replaces(fault.is_page_fault_stale)
def stale(kvm, vcpu, fault):
    yield from ()
    return 1 // 0
"""


def invoke(*args):
    """The command line, in this process."""
    return CliRunner().invoke(tdsim, ["hunt", *map(str, args)])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The hunt of the planted bug, with its folder."""
    folder = tmp_path_factory.mktemp("found")
    return hunt(tiny(folder), patches=[PLANT], strategy="surw", executions=80, out_dir=folder / "out")


def test_a_hunt_as_a_plain_test_passes_on_the_correct_model(tmp_path):
    """`assert hunt(...).clean`, as README shows it."""
    assert hunt(tiny(tmp_path), executions=70).clean


def test_a_planted_bug_fails_the_plain_test_and_says_how_to_see_it(found):
    """The repr is what pytest prints."""
    assert not found.clean
    assert "FAILING" in repr(found)
    assert "tdsim replay" in repr(found)


def test_one_bug_by_many_schedules_is_one_finding_with_a_count(found):
    """Counts add up over shares, and fingerprints are told once."""
    prints = [finding["fingerprint"] for finding in found.findings]

    assert len(set(prints)) == len(prints)
    assert sum(finding["count"] for finding in found.findings) >= found.report.failed > 1


def test_a_finding_is_by_a_short_schedule_and_names_the_race_that_decides(found):
    """Far fewer switches than a random walk makes; the text says what decides, and what it takes in time."""
    finding = found.findings[0]
    text = (found.out_dir / "findings" / f"{finding['fingerprint']}.txt").read_text()

    assert len(finding["schedule"].split()) < 12
    assert finding["nearest"]["schedule"]
    assert "The race: it fails because" in text
    assert "In a timing run: " in text


def test_the_folder_has_summary_findings_and_schedules(found):
    """What DESIGN.md section 9 lists, and nothing half-written."""
    summary = json.loads((found.out_dir / "summary.json").read_text())
    names = sorted(path.name for path in (found.out_dir / "findings").iterdir())
    stems = sorted(finding["fingerprint"] for finding in found.findings)

    assert summary["verdict"] == "failing"
    assert summary["wall_s"] is None
    assert summary["coverage"]["pairs"]["seen"]
    assert names == sorted(f"{stem}.{end}" for stem in stems for end in ("json", "txt"))
    assert found.findings[0]["schedule"] in (found.out_dir / "schedule.txt").read_text()
    assert not list(found.out_dir.parent.glob(".tdsim-*"))


def test_the_same_hunt_gives_the_same_files(found, tmp_path):
    """Byte for byte."""
    again = hunt(tiny(tmp_path), patches=[PLANT], strategy="surw", executions=80, out_dir=tmp_path / "out")

    assert files(again.out_dir) == files(found.out_dir)


def files(folder):
    """Contents by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_an_expected_finding_is_good_news(tmp_path):
    """`expect: {findings: [stale-spte]}` is met by the plant, and missed without it."""
    file = write(tmp_path, TINY.replace("findings: none", "findings: [stale-spte]"), "tiny")
    with_plant = hunt(file, patches=[PLANT], strategy="surw", executions=20)
    without = hunt(file, strategy="surw", executions=20)

    assert with_plant.clean
    assert with_plant.status == 0
    assert "as expected" in with_plant.claim
    assert without.verdict == "failing"


def test_what_must_happen_sometimes_and_never_did_is_a_finding(tmp_path):
    """It fails, and cannot be replayed."""
    text = TINY.replace("findings: none", "findings: none, sometimes: [guest_ve]")
    result = hunt(write(tmp_path, text, "tiny"), executions=10)

    assert [finding["kind"] for finding in result.findings] == ["unmet"]
    assert result.status == 1
    assert "guest_ve" in result.claim


def test_stopping_at_the_first_finding_judges_nothing_else(tmp_path):
    """What was not met so far may still have been met."""
    text = TINY.replace("findings: none", "findings: none, sometimes: [guest_ve]")
    file = write(tmp_path, text, "tiny")
    result = hunt(file, patches=[PLANT], strategy="surw", executions=80, stop_at_first=True)

    assert result.report.failed == 1
    assert result.expectations == []


def test_a_limit_of_time_makes_it_inconclusive(tmp_path):
    """No execution is never "ok"."""
    result = hunt(tiny(tmp_path), executions=100_000, time_limit_s=1e-9)

    assert result.verdict == "inconclusive"
    assert result.status == 3


def test_a_limit_of_time_before_all_executions_is_never_ok(tmp_path):
    """What was asked for was not done; what was not met so far is not held against it."""
    file = write(tmp_path, TINY.replace("findings: none", "findings: none, sometimes: [guest_ve]"), "tiny")
    result = hunt(file, executions=1_000_000, time_limit_s=0.2)

    assert 0 < result.executions < 1_000_000
    assert result.verdict == "inconclusive"
    assert "the time limit ended the search" in result.claim


def test_a_hunt_that_only_time_ends_is_what_was_asked_for(tmp_path):
    """No number of executions was given; the claim is of those there were."""
    result = hunt(tiny(tmp_path), time_limit_s=0.2)

    assert result.executions > 0
    assert result.verdict == "none found"


def test_an_exhaustive_strategy_goes_on_to_its_end(tmp_path):
    """The scenario's default number is for strategies that never end; what fits no world is wrong input."""
    text = TINY.replace("executions: 150", "").replace("random, ", "random")
    alone = text[: text.index("  host0:")] + text[text.index("expect:") :]
    result = hunt(write(tmp_path, alone, "tiny"), strategy="dfs:0")

    assert result.report.exhausted
    with pytest.raises(ScenarioError, match="cannot search this world"):
        hunt(tiny(tmp_path), strategy="states", executions=10)


def test_an_interrupt_ends_the_hunt_and_keeps_what_there_is(tmp_path):
    """Ctrl-C after the tenth execution: ten are told, the files are written."""

    def interrupt(progress):
        if progress.executions == 10 and not sent:
            sent.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    sent = []
    result = hunt_scenario(load(tiny(tmp_path)), executions=1000, out_dir=tmp_path / "out", tick=interrupt)

    assert result.interrupted
    assert result.status == 130
    assert result.executions == 10
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["executions"] == 10


def test_the_python_call_raises_the_interrupt(tmp_path, monkeypatch):
    """A test suite that is interrupted must end."""
    from scenarios.campaign import hunt as module

    monkeypatch.setattr(module, "run_here", lambda *_, limit, **__: (limit.expire(), [])[1])
    with pytest.raises(KeyboardInterrupt):
        hunt(tiny(tmp_path), executions=10)


def test_exit_status_and_json(tmp_path):
    """0 and the summary as JSON, nothing else on stdout; `--quiet` prints nothing."""
    clean = invoke(tiny(tmp_path), "--executions", 10, "--out", tmp_path / "o", "--json")
    quiet = invoke(tiny(tmp_path), "--executions", 10, "--out", tmp_path / "o", "--quiet")

    assert (clean.exit_code, quiet.exit_code) == (0, 0)
    assert json.loads(clean.stdout)["verdict"] == "none found"
    assert quiet.output == ""


def test_format_text_is_fit_for_a_mail(tmp_path):
    """At most 75 columns, the title first, the replay command last; status 1."""
    args = ("--patch", PLANT, "--strategy", "surw", "--executions", 40, "--stop-at-first", "--format", "text")
    result = invoke(tiny(tmp_path), *args, "--out", tmp_path / "o")
    lines = result.stdout.splitlines()

    assert result.exit_code == 1
    assert lines[0].startswith("stale-spte: ")
    assert max(map(len, lines)) <= 75
    assert [line for line in lines if line][-1].startswith("Replay: tdsim replay ")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--strategy", "pct"), "no strategy 'pct'"),
        (("--strategy", "replay:v0*"), "'v0*' is no pick"),
        (("--patch", "absent.py"), "no file 'absent.py'"),
        (("--set", "memory_model=tso"), "memory_model"),
        (("--set", "tds.vcpus=2"), "did you mean td?"),
        (("--executions", "0"), "0 is not in the range"),
        (("--jobs", "0"), "0 is not in the range"),
    ],
)
def test_wrong_input_is_told_in_one_message(tmp_path, args, message):
    """Status 2, no traceback, no folder."""
    result = invoke(tiny(tmp_path), *args, "--out", tmp_path / "o")

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "replaces nothing"),
        ("x = \n", "SyntaxError"),
        (
            FAILING_PATCH,
            "patch.py:7:1: stale: ZeroDivisionError",
        ),
    ],
)
def test_a_patch_that_cannot_be_used_is_wrong_input(tmp_path, source, message):
    """Also where it fails while it runs; the place is in the user's file."""
    (tmp_path / "patch.py").write_text(source)
    result = invoke(
        tiny(tmp_path), "--patch", tmp_path / "patch.py", "--executions", 5, "--out", tmp_path / "o"
    )

    assert result.exit_code == 2
    assert message in result.stderr


def test_a_folder_that_cannot_be_written_is_told_before_the_hunt(tmp_path):
    """Nothing is lost because nothing was done."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ScenarioError, match="choose another --out"):
        hunt(tiny(tmp_path), executions=10**9, out_dir=tmp_path / "file" / "out")


def test_a_sweep_is_hunted_in_every_combination_by_the_command_only(tmp_path):
    """The command makes a folder for each; the call wants one world."""
    file = write(tmp_path, TINY + "sweep: {machine.pcpus: [1, 2]}\n", "tiny")
    result = invoke(file, "--executions", 3, "--out", tmp_path / "o", "--json")

    assert len(json.loads(result.stdout)) == 2
    assert len(list((tmp_path / "o").iterdir())) == 2
    with pytest.raises(ScenarioError, match="sweep"):
        hunt(file)


def test_the_progress_line_tells_what_the_issue_asks_for():
    """Rate, depth, classes, coverage, findings."""
    text = progress_text("tiny", Progress(100, 350, 40, 30, 25, 2), 2.0)

    assert text == (
        "tiny: 100 executions (50/s), longest 350 steps, 40 classes, 30 step ids, 25 conflicting pairs, 2 findings"
    )


def test_the_package_has_no_other_lazy_names():
    """A misspelt import fails as it should."""
    with pytest.raises(AttributeError, match="hunted"):
        _ = scenarios.hunted


def test_a_result_without_files_shows_the_schedule(found):
    """So that a failing test can be replayed."""
    assert found.findings[0]["schedule"] in repr(replace(found, out_dir=None))
