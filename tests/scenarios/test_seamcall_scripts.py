"""`tdsim seamcall` from outside: scripts, sessions, exit status, completion."""

from __future__ import annotations

import builtins
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from scenarios.cli import tdsim
from scenarios.seamcall.completion import completions
from scenarios.seamcall.explain import LOCKS_TABLE
from scenarios.seamcall.repl import Repl
from scenarios.seamcall.script import load_script, run_script, script_entries, script_names
from scenarios.seamcall.session import Session

CONFORMANCE = Path(__file__).resolve().parents[1] / "conformance" / "tables"
WANTED = {
    "accept-2m-interrupted",
    "block-track-remove",
    "build",
    "busy-and-host-priority",
    "demote-promote",
    "interrupted-demote",
    "zero-step",
}

GOOD = """\
seamcall: good
about: A page is blocked.
steps:
  - say: A page.
  - build 0x40000000 2M
  - {do: block 0x40000000 2M, expect: TDX_SUCCESS, entry: BLOCKED}
"""


def invoke(*args: str, said: str = ""):
    return CliRunner().invoke(tdsim, ["seamcall", *args], input=said)


def write(folder, text, name="good"):
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


# The library.


def test_the_textbook_is_there():
    """The pages that were asked for, each with a subject."""
    assert set(script_names()) >= WANTED
    assert all(entry["about"] for entry in script_entries())
    assert all(name in invoke("--list").stdout for name in script_names())
    assert json.loads(invoke("--list", "--json").stdout) == script_entries()


@pytest.mark.parametrize("name", script_names())
def test_every_page_of_the_textbook_comes_out_as_it_says(name):
    """All expectations are met, there are some, and every page has text."""
    result = invoke(name)

    assert result.exit_code == 0, result.output
    assert "expectations met" in result.stdout.splitlines()[-1]
    script = load_script(Path("scenarios/seamcall/library").resolve() / f"{name}.yaml")
    assert any(step.say for step in script.steps)
    assert sum(bool(step.expect) for step in script.steps) >= 3


def test_the_same_script_prints_the_same_bytes():
    """In another process, with another hash seed."""
    outputs = [
        subprocess.run(
            [Path(sys.executable).with_name("tdsim"), "seamcall", "accept-2m-interrupted", *options],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed, options in (("1", ()), ("2", ()), ("1", ("--json",)), ("2", ("--json",)))
    ]

    assert outputs[0] == outputs[1]
    assert outputs[2] == outputs[3]


# Scripts.


def test_a_good_script_is_told_step_by_step(tmp_path):
    """The text, each line as it was said, and the verdict."""
    lines = invoke(write(tmp_path, GOOD)).stdout.splitlines()

    assert lines[0] == "good: A page is blocked."
    assert "A page." in lines
    assert "> block 0x40000000 2M" in lines
    assert lines[-1] == "all 2 expectations met"


def test_an_unmet_expectation_is_status_1(tmp_path):
    """Both kinds are told with what came instead; the script goes on."""
    text = GOOD.replace("expect: TDX_SUCCESS, entry: BLOCKED", "expect: TDX_OPERAND_BUSY, entry: MAPPED")
    result = invoke(write(tmp_path, text))

    assert result.exit_code == 1
    assert "NOT MET expect TDX_OPERAND_BUSY, got TDX_SUCCESS" in result.stdout
    assert "NOT MET entry MAPPED, got BLOCKED" in result.stdout
    assert result.stdout.splitlines()[-1] == "2 of 2 expectations not met"
    assert invoke(write(tmp_path, text), "--quiet").stdout == ""


def test_an_operand_is_compared_where_it_is_given(tmp_path):
    """`TDX_OPERAND_INVALID` is met by any operand, `|R8` by that one only."""
    steps = "  - {do: block 0x1 level=1G rcx=0x801, expect: TDX_OPERAND_INVALID%s}\n"
    for operand, status in (("", 0), ("|RCX", 0), ("|R8", 1)):
        assert invoke(write(tmp_path, GOOD + steps % operand)).exit_code == status


@pytest.mark.parametrize(
    ("old", "new", "place", "told"),
    [
        ("seamcall: good", "seamcall: bad", "bad", "write good"),
        ("about: A page is blocked.\n", "", "seamcall", "write about: ..."),
        ("about:", "abuot:", "abuot", "did you mean about?"),
        ("steps:", "module: 1.5.02\nsteps:", "1.5.02", "did you mean 1.5."),
        ("steps:", "vcpus: 9\nsteps:", "9", "expected 0 to 4, or none (got 9)"),
        ("  - say: A page.", "  - said: A page.", "said", "expected a line, or a mapping with do or say"),
        ("do: block 0x", "do: blok 0x", "blok", "did you mean block?"),
        ("do: block 0x40000000 2M", "do: 'blok 0x40000000 2M'", "blok", "did you mean block?"),
        ("2M, expect", "gap=1 2M, expect", "gap", "did you mean gpa?"),
        ("TDX_SUCCESS", "TDX_SUCESS", "TDX_SUCESS", "did you mean TDX_SUCCESS?"),
        ("entry: BLOCKED", "entry: BLOKED", "BLOKED", "did you mean BLOCKED?"),
        ("entry: BLOCKED", "entyr: BLOCKED", "entyr", "did you mean entry?"),
        ("  - build 0x40000000 2M", "  - buidl 0x40000000 2M", "buidl", "did you mean build?"),
    ],
)
def test_a_mistake_in_a_script_is_told_with_its_place_before_anything_runs(tmp_path, old, new, place, told):
    """File, line and column of the word, and a remedy; status 2."""
    assert old in GOOD
    text = GOOD.replace(old, new)
    file = write(tmp_path, text)
    result = invoke(file)
    before = text[: text.index(place)]
    line, column = before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1

    assert result.exit_code == 2
    assert result.stdout == ""
    assert any(
        wrong.startswith(f"{file}:{line}:{column}: ") and told in wrong
        for wrong in result.stderr.splitlines()
    ), result.stderr


def test_all_mistakes_of_a_script_are_told(tmp_path):
    """Not only the first."""
    text = GOOD.replace("build", "buidl").replace("do: block", "do: blok")

    assert len(invoke(write(tmp_path, text)).stderr.splitlines()) == 2


def test_a_name_that_nobody_has_by_then_is_told_with_its_place(tmp_path):
    """What came before has been done and told."""
    file = write(tmp_path, GOOD + "  - enter vcpu3\n")
    result = invoke(file)

    assert result.exit_code == 2
    assert "> block 0x40000000 2M" in result.stdout
    assert result.stderr == f"{file}:7:11: no vCPU 'vcpu3'; did you mean vcpu1?\n"


def test_each_step_of_a_script_is_one_object_in_json(tmp_path):
    """For programs: nothing else on stdout."""
    say, build, block = map(json.loads, invoke(write(tmp_path, GOOD), "--json").stdout.splitlines())

    assert say == {"say": "A page."}
    assert "TDH.MEM.PAGE.AUG" in build["text"][0]
    assert block["status"] == "TDX_SUCCESS"
    assert block["registers"]["rax"] == "0x7"
    assert block["entry"] == {
        "place": "0x40000000 2M",
        "before": "MAPPED, page 0x80000000",
        "after": "BLOCKED, page 0x80000000",
    }
    assert [expectation["met"] for expectation in block["expectations"]] == [True, True]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("demote-promot",), "did you mean demote-promote?"),
        (("--profile", "1.5.02"), "1.5.02"),
        (("build", "--profile", "2.0"), "a script names its module itself"),
        (("--json",), "are for scripts"),
    ],
)
def test_wrong_usage_is_status_2(args, told):
    """One message, no traceback."""
    result = invoke(*args)

    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.output


def test_run_script_stops_where_the_reader_stops():
    """Steps are done when they are asked for: a long script can be looked at page by page."""
    script = load_script(Path("scenarios/seamcall/library").resolve() / "demote-promote.yaml")
    told = run_script(script)

    assert next(told).step is script.steps[0]
    told.close()


# Sessions.


def test_a_piped_session_echoes_its_lines_and_goes_on_after_a_mistake():
    """The mark is under the word; the status tells that there was one."""
    result = invoke(said="build 0x40000000 2M\n\nblock 0x40000000 leevl=2M\nshow tree\nquit\nshow td\n")
    lines = result.stdout.splitlines()

    assert result.exit_code == 2
    at = lines.index("seamcall> block 0x40000000 leevl=2M")
    assert lines[at + 1].index("^") == lines[at].index("leevl")
    assert "did you mean level?" in lines[at + 1]
    assert lines[-3].strip() == "0x40000000 2M: MAPPED, page 0x80000000"
    assert lines[-1] == "seamcall> quit"
    assert invoke(said="track\n").exit_code == 0


def test_a_session_begins_with_the_release_that_is_asked_for():
    """`profile` changes it, and begins anew."""
    result = invoke("--profile", "2.0", said="profile\nprofile 1.0\nprofile\n")

    assert result.exit_code == 0
    assert "TDX module 2.0:" in result.stdout
    assert "the module is 2.0; there are 1.0," in result.stdout
    assert "the module is 1.0;" in result.stdout


def test_ctrl_c_keeps_the_session_and_the_end_of_input_ends_it(monkeypatch, capsys):
    """At the prompt of a terminal."""
    said = iter(["build 0x40000000 2M", KeyboardInterrupt(), "", "show tree", EOFError()])

    def answer(_prompt):
        text = next(said)
        if isinstance(text, BaseException):
            raise text
        return text

    monkeypatch.setattr(builtins, "input", answer)
    Repl(Session()).run()

    printed = capsys.readouterr().out
    assert "`quit` ends the session" in printed
    assert "0x40000000 2M: MAPPED" in printed


def test_an_empty_line_repeats_nothing():
    """Unlike `cmd`'s own way."""
    session = Session()
    Repl(session, source=io.StringIO("track\n\n\n")).run()

    assert session.world.tdr("td0").tdcs.epoch.peek().epoch == 2


@pytest.mark.parametrize(
    ("before", "text", "some", "never"),
    [
        ("", "dem", {"demote"}, {"promote"}),
        ("", "TDH.MEM.PAGE.D", {"tdh.mem.page.demote"}, set()),
        ("", "vc", {"vcpu0", "vcpu1"}, set()),
        ("vcpu0 ", "a", {"accept", "attr.rd"}, {"aug"}),
        ("lp4 ", "a", {"aug"}, {"accept"}),
        ("begin vcpu1 ", "acc", {"accept"}, set()),
        ("demote ", "", {"gpa=", "level=", "page=", "td0"}, {"attributes="}),
        ("mng.init ", "", {"attributes="}, {"gpa="}),
        ("demote level=", "", {"4K", "2M"}, {"td0"}),
        ("demote page=", "", {"auto", "none"}, set()),
        ("show ", "", {"tree", "locks"}, {"demote"}),
        ("help ", "pend", {"PENDING"}, set()),
        ("profile ", "1.5", {"1.5.01", "1.5.28+dpamt"}, set()),
        ("nonsense ", "", {"td0"}, set()),
    ],
)
def test_tab_offers_what_may_stand_there(before, text, some, never):
    """And nothing that may not."""
    offered = set(completions(Session(), before, text))

    assert some <= offered
    assert not never & offered


def test_the_locks_of_help_are_the_published_table():
    """The table that the conformance run holds the module to."""
    assert LOCKS_TABLE.read_bytes() == (CONFORMANCE / "seamcall_locks.csv").read_bytes()
