"""The command line: output, exit status, start-up."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from scenarios.cli import COMMANDS, tdsim
from scenarios.errors import ScenarioError
from tests.scenarios.helpers import GOOD, write


@dataclass
class Result:
    """A run's result, as the renderer needs it."""

    scenario: str = "good"
    design: str = "upstream"
    seed: int = 0
    model_digest: str = "0" * 16
    now_ns: int = 12_345
    steps: int = 67
    wall_s: float = 0.01
    counters: dict[str, int] = field(default_factory=lambda: {"fault.fixed": 3})
    latency: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"fault.private": {"count": 3, "p50": 8000}}
    )
    findings: list[dict[str, Any]] = field(default_factory=list)
    expectations: list[dict[str, Any]] = field(
        default_factory=lambda: [{"text": "findings: none", "met": True, "detail": ""}]
    )
    out_dir: Path | None = None
    inconclusive: str = ""


def invoke(*args: str):
    return CliRunner().invoke(tdsim, list(args))


@pytest.fixture
def run_with(monkeypatch, tmp_path):
    """Run the good scenario with a stand-in for the simulator."""

    def run(outcome: Any, *args: str):
        def run_scenario(scenario, *, seed, out_dir, events, patches):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        module = types.ModuleType("scenarios.run")
        module.run_scenario = run_scenario
        monkeypatch.setitem(sys.modules, "scenarios.run", module)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        return invoke("run", str(write(tmp_path, GOOD)), "--out", str(tmp_path / "out"), *args)

    return run


FOUND = {"kind": "stale-tlb", "title": "t", "replay": "tdsim replay x"}


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Result(), 0),
        (Result(findings=[FOUND]), 1),
        (Result(expectations=[{"text": "e", "met": False, "detail": "d"}]), 1),
        (ScenarioError("unknown cost"), 2),
        (Result(inconclusive="100000 steps"), 3),
        (AssertionError("a lock was not held"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_status_tells_how_a_run_ended(run_with, outcome, status):
    """0 good, 1 found, 2 wrong input, 3 inconclusive, 4 defect, 130 interrupted."""
    assert run_with(outcome).exit_code == status


def test_a_defect_is_told_without_a_traceback_and_keeps_one(run_with, tmp_path):
    """The evidence is in a file, the message on stderr."""
    result = run_with(AssertionError("a lock was not held"))

    assert "tdsim has a defect: AssertionError: a lock was not held" in result.stderr
    assert "Traceback" not in result.output
    (kept,) = tmp_path.glob("tdsim-defect-*.txt")
    assert "Traceback" in kept.read_text()


def test_a_piped_result_is_aligned_text(run_with):
    """Columns line up, and every part of the result is there."""
    lines = run_with(Result(findings=[FOUND])).stdout.splitlines()

    assert lines[0].startswith("good  design upstream  seed 0  virtual time 12.35 us")
    assert lines[2].index("p50") + 3 == lines[3].index("8000") + 4
    assert "met    findings: none" in lines
    assert "FINDING  stale-tlb: t" in lines


def test_json_is_all_there_is_on_stdout(run_with):
    """`--json` parses; `--quiet` prints nothing."""
    assert json.loads(run_with(Result(), "--json").stdout)["counters"] == {"fault.fixed": 3}
    assert run_with(Result(), "--quiet").stdout == ""


def test_an_output_folder_that_cannot_be_is_wrong_input(tmp_path):
    """It is told before the run."""
    (tmp_path / "file").write_text("")
    result = invoke("run", str(write(tmp_path, GOOD)), "--out", str(tmp_path / "file" / "out"))

    assert result.exit_code == 2
    assert "choose another --out" in result.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("nonsense",),
        ("check",),
        ("check", "no-such-scenario"),
        ("check", "fault-vs-convert", "--design", "upstraem"),
        ("check", "fault-vs-convert", "--set", "td.vcpus"),
        ("check", "fault-vs-convert", "--sed", "1"),
        ("run", "fault-vs-convert", "--seed", "x"),
        ("run", "fault-vs-convert", "--patch", "absent.py"),
    ],
)
def test_wrong_usage_is_status_2_with_one_message(args):
    """No traceback, something on stderr."""
    result = invoke(*args)

    assert result.exit_code == 2
    assert result.stderr
    assert "Traceback" not in result.output


def test_a_library_name_is_a_scenario_and_a_near_one_is_proposed():
    """Names need no path."""
    assert invoke("check", "fault-vs-convert").exit_code == 0
    assert "did you mean fault-vs-convert?" in invoke("check", "fault-vs-convrt").stderr


def test_check_tells_every_file_and_json_lists_places(tmp_path):
    """A good file beside a bad one is still reported."""
    bad = write(tmp_path, GOOD.replace("touch", "tuch"), "bad")
    result = invoke("check", str(bad), "fault-vs-convert", "--json")

    told = json.loads(result.stdout)
    assert result.exit_code == 2
    assert told["ok"][0]["scenario"] == "fault-vs-convert"
    assert told["errors"][0]["line"] == 7


def test_list_and_schema_print_what_they_say():
    """Both also for programs."""
    assert any(
        entry["scenario"] == "big-first-touch" for entry in json.loads(invoke("list", "--json").stdout)
    )
    assert "fault-vs-convert" in invoke("list").stdout
    assert "properties" in json.loads(invoke("schema").stdout)


def test_help_imports_no_subcommand_and_no_heavy_library():
    """`tdsim --help` stays quick because it loads click and nothing else."""
    heavy = ("pydantic", "yaml", "rich", "simpy", "structlog", "trio", "scenarios.commands")
    code = f"""
import sys
from click.testing import CliRunner
from scenarios.cli import tdsim
out = CliRunner().invoke(tdsim, ["--help"]).output
assert "check" in out and "schema" in out, out
print([name for name in {heavy!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_short_helps_agree_with_the_commands():
    """The table is written twice so that help needs no import; it must not drift."""
    for name, text in COMMANDS.items():
        command = tdsim.get_command(None, name)  # type: ignore[arg-type]
        assert command.short_help == text
