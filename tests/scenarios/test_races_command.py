"""`tdsim races`: the same answer from a log as beside the execution, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from scenarios import output
from scenarios.build import build
from scenarios.cli import tdsim
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from scenarios.race_log import races_of_log
from sim import EventLog, Kernel
from sim.kernel import INFINITY
from sim.patches import applied, read
from sim.races import attach
from tests.scenarios.helpers import GOOD, write

PLANTS = Path(__file__).resolve().parents[1] / "plants"
WORLDS = PLANTS / "scenarios"
PLAIN_STORE = (WORLDS / "races-two-touch-one.yaml", "races_plain_spte_store")


def invoke(*args):
    return CliRunner().invoke(tdsim, [str(arg) for arg in args])


def run(folder, scenario, *options):
    """Record a timing run; returns its log."""
    result = invoke("run", scenario, "--events", "accesses", "--out", folder / "out", *options)
    assert result.exit_code in {0, 1}, result.stderr
    return folder / "out" / "events.jsonl"


def recorded(folder, scenario, plant, seed):
    """A random walk with the detector and the log beside each other: what was found, and the log."""
    log = folder / "events.jsonl"
    with applied(read(PLANTS / f"{plant}.py") if plant else []), log.open("wb") as file:
        kernel = Kernel(0, window_ns=INFINITY, stop_at_finding=False, max_steps=4_000)
        kernel.events = EventLog(file)
        build(kernel, load(scenario))
        detector = attach(kernel)
        output.log_accesses(kernel)
        random = Random(seed)
        kernel.execute(lambda _kernel, ready: random.randrange(len(ready)))
        kernel.events.close()
    return detector.findings, log


@pytest.mark.parametrize(
    ("scenario", "plant"),
    [
        PLAIN_STORE,
        (WORLDS / "r95-convert-vs-punch-hole.yaml", "r95_window_closed_after_unlock"),
        (WORLDS / "r11-roots-got-and-put.yaml", "r11_root_count_read_then_written"),
        (WORLDS / "races-accepts-vs-converts.yaml", "races_conversion_under_read_lock"),
        (LIBRARY / "vcpus-vs-one-page.yaml", "races_uptodate_after_unlock"),
    ],
    ids=lambda part: part.stem if isinstance(part, Path) else part,
)
def test_a_log_gives_the_answer_of_the_execution(tmp_path, scenario, plant):
    """Finding by finding and field by field, on the full model with a plant; some of the walks do race."""
    raced = False
    for seed in range(5):
        found, log = recorded(tmp_path, scenario, plant, seed)
        raced |= bool(found)

        assert races_of_log(log) == found
    assert raced


def test_a_correct_run_has_no_races(tmp_path):
    """Exit status 0 and one line; a conversion beside faults, whose accepted races stay accepted in a log."""
    result = invoke("races", run(tmp_path, LIBRARY / "fault-vs-convert.yaml"))

    assert (result.exit_code, result.stdout, result.stderr) == (0, "no data races\n", "")


def test_a_race_is_told_with_both_sides(tmp_path):
    """Exit status 1."""
    scenario, plant = PLAIN_STORE
    result = invoke("races", run(tmp_path, scenario, "--patch", PLANTS / f"{plant}.py"))
    lines = result.stdout.splitlines()

    assert result.exit_code == 1
    assert lines[0].startswith("FINDING  data-race: spte: ")
    assert [line.split(": ")[0].strip() for line in lines[1:5]] == [
        "cell",
        "one",
        "other",
        "last common sync",
    ]
    assert any("plants/races_plain_spte_store.py:" in line for line in lines[2:4])


def test_json_is_the_findings_and_nothing_else(tmp_path):
    """As in findings/*.json; an empty list when there is none; --quiet prints nothing."""
    scenario, plant = PLAIN_STORE
    log = run(tmp_path, scenario, "--patch", PLANTS / f"{plant}.py")
    told = json.loads(invoke("races", log, "--json").stdout)
    clean = run(tmp_path, write(tmp_path, GOOD))
    quiet = invoke("races", clean, "--quiet")

    assert {finding["kind"] for finding in told["findings"]} == {"data-race"}
    assert json.loads(invoke("races", clean, "--json").stdout) == {"findings": []}
    assert (quiet.exit_code, quiet.stdout) == (0, "")


STEP = {
    "now_ns": 0, "step": 0, "thread": "a", "event": "step", "verb": "read", "cell": "x", "value": "0", "op": "read", "word": 1,
    "tid": 0, "done": True, "at": "f.py:1 f", "syncs": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no accesses"),
        ('{"event": "kvm_exit", "now_ns": 1}\n', "holds no accesses"),
        ("version: 1\n", "not a line of an event log"),
        ("[1, 2]\n", "not a line of an event log"),
        ("\x00\xff\n", "not a line of an event log"),
        (json.dumps(STEP) + "\n" + json.dumps(STEP)[:40], "not a line of an event log"),
        (json.dumps({name: STEP[name] for name in ("event", "step", "verb", "cell", "value")}), "lacks what races"),
        (json.dumps(STEP | {"op": "fly"}), "lacks what races"),
        (json.dumps(STEP | {"tid": 1 << 40}), "lacks what races"),
        (json.dumps(STEP | {"op": "join", "word": -1}), "lacks what races"),
        (json.dumps(STEP | {"syncs": [[0, "wakes", 0, -7, "b"]]}), "lacks what races"),
        (json.dumps(STEP | {"syncs": [[9, "gives", 0, 1, "s"]]}), "lacks what races"),
        (json.dumps(STEP | {"syncs": [[0, "hums", 0, 1, "s"]]}), "lacks what races"),
    ],
)  # fmt: skip
def test_another_file_is_refused_with_a_remedy(tmp_path, text, complaint):
    """Exit status 2, the file's name, what to do, and no traceback."""
    log = tmp_path / "events.jsonl"
    log.write_text(text, encoding="latin-1")
    result = invoke("races", log)

    assert result.exit_code == 2
    assert complaint in result.stderr
    assert str(log) in result.stderr
    assert "--events accesses" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_is_not_there_is_refused(tmp_path):
    """So is a folder."""
    for path in (tmp_path / "none.jsonl", tmp_path):
        result = invoke("races", path)

        assert result.exit_code == 2
        assert str(path) in result.stderr
        assert "cannot read" in result.stderr
