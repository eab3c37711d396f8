"""`tdsim run` with the real simulator: what it leaves behind, and how it fails."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from scenarios.build import build
from scenarios.cli import tdsim
from scenarios.loading import load
from sim import Kernel
from tests.scenarios.helpers import GOOD, edited, write

FILES = ["events.jsonl", "findings", "latency.hlog", "schedule.txt", "summary.json"]


def invoke(*args):
    return CliRunner().invoke(tdsim, [str(arg) for arg in args])


def go(tmp_path, *options, text=GOOD):
    """Run this text into the folder `out`."""
    return invoke("run", write(tmp_path, text), "--out", tmp_path / "out", *options)


def left(folder):
    """What is in a folder besides scenario files, hidden files included."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".yaml")


def test_the_output_folder_is_complete(tmp_path):
    """Each latency has its .hgrm; the summary tells what --json tells; nothing else is left, staging included."""
    result = go(tmp_path, "--json")
    told = json.loads(result.stdout)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())

    assert result.exit_code == 0, result.stderr
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == sorted(
        [*FILES, *(f"latency.{name}.hgrm" for name in summary["latency"])]
    )
    assert summary["latency"]
    same = set(told) - {"wall_s", "out_dir"}
    assert {name: told[name] for name in same} == {name: summary[name] for name in same}
    assert told["out_dir"] == str(tmp_path / "out")
    assert summary["wall_s"] is None


def test_a_finding_has_a_file_and_the_next_run_removes_it(tmp_path):
    """findings/ holds what this run found; a rerun into the same folder leaves nothing old."""
    host = "host0: [{wait: {for: 10ms}}, {punch_hole: {at: 0x1000000, size: 4K}}]"
    head = GOOD[: GOOD.index("  host0:")] + f"  {host}\n"
    bad = head + "inject: [{fault: seamcall_busy, leaf: TDH.MEM.RANGE.BLOCK, times: 2}]\n"
    first = go(tmp_path, text=bad)
    kept = list((tmp_path / "out" / "findings").iterdir())

    assert first.exit_code == 1
    assert [json.loads(path.read_text())["kind"] for path in kept] == ["kvm-bug"]
    assert go(tmp_path, text=head).exit_code == 0
    assert list((tmp_path / "out" / "findings").iterdir()) == []


def test_an_unknown_cost_is_one_message_with_its_line(tmp_path):
    """Known only when the costs are read: still file, line and the nearest name, and nothing is written."""
    result = go(tmp_path, text=GOOD + "costs:\n  tdh_mem_page_agu: 1us\n")

    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert f"good.yaml:{GOOD.count(chr(10)) + 2}:" in line
    assert "tdh_mem_page_agu" in line
    assert "tdh_mem_page_aug" in line
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "import nowhere\n",
        "def broken(:\n",
        "x = 1\n",
        "from sim import replaces\n@replaces(3)\ndef f(): ...\n",
    ],
    ids=["raises", "no Python", "replaces nothing", "no function"],
)
def test_a_bad_patch_is_one_message(tmp_path, tmp_path_factory, monkeypatch, text):
    """Exit status 2, the patch's name, no traceback, no folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("evidence")))
    patch = tmp_path / "patch.py"
    patch.write_text(text)
    result = go(tmp_path, "--patch", patch)

    assert result.exit_code == 2, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert "patch.py" in result.stderr
    assert left(tmp_path) == ["patch.py"]


def test_a_patch_changes_the_run_and_its_model_digest(tmp_path):
    """A planted retry shows in the counters; without the patch it is gone again."""
    patch = tmp_path / "patch.py"
    patch.write_text(
        "from mmu import invalidate\nfrom sim import replaces\n\n"
        "seen = []\n\n"
        "@replaces(invalidate.mmu_invalidate_retry_gfn)\n"
        "def once(kvm, mmu_seq, gfn):\n"
        "    yield kvm.mmu_invalidate_seq.read()\n"
        "    seen.append(gfn)\n"
        "    return len(seen) == 1\n"
    )
    plain, patched, again = (
        json.loads(go(tmp_path, "--json", *options).stdout) for options in ([], ["--patch", patch], [])
    )

    assert patched["counters"]["fault_found_stale"] == 1
    assert "fault_found_stale" not in plain["counters"]
    assert patched["model_digest"] != plain["model_digest"]
    assert again["counters"] == plain["counters"]
    assert again["model_digest"] == plain["model_digest"]


def test_an_output_folder_that_cannot_be_is_told_before_the_run(tmp_path, monkeypatch):
    """A file where the folder should be: exit status 2, and not a step was simulated."""
    monkeypatch.setattr(Kernel, "execute", lambda *_: pytest.fail("it ran"))
    (tmp_path / "out").write_text("a file")
    result = go(tmp_path)

    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert (tmp_path / "out").read_text() == "a file"


def test_an_output_folder_without_write_permission_is_told_before_the_run(tmp_path, monkeypatch):
    """As root every folder is writable, so the question is answered for the test."""
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(Kernel, "execute", lambda *_: pytest.fail("it ran"))
    result = go(tmp_path)

    assert result.exit_code == 2
    assert "not writable" in result.stderr
    assert left(tmp_path) == []


def test_an_interrupted_run_leaves_no_folder(tmp_path, monkeypatch):
    """Ctrl-C in the middle: 130, and neither a folder nor its staging."""

    def interrupted(self, pick=None):
        self.run(until=5_000)
        raise KeyboardInterrupt

    monkeypatch.setattr(Kernel, "execute", interrupted)
    result = go(tmp_path)

    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert left(tmp_path) == []


def test_a_sweep_makes_a_folder_for_each_scenario(tmp_path):
    """Each combination by name, each complete; --json is a list of them."""
    result = go(tmp_path, "--json", text=GOOD + "sweep:\n  td.vcpus: [1, 2, 3]\n")
    told = json.loads(result.stdout)
    folders = sorted((tmp_path / "out").iterdir())

    assert result.exit_code == 0, result.stderr
    assert len(told) == len(folders) == 3
    assert sorted(one["out_dir"] for one in told) == [str(folder) for folder in folders]
    assert len({one["scenario"] for one in told}) == 3
    assert all(set(FILES) <= set(left(folder)) for folder in folders)


def test_set_reaches_the_world(tmp_path):
    """`--set` changes a touch's size: so many AUGs more."""
    counters = [
        json.loads(go(tmp_path, "--json", "--set", f"threads.vcpu0.0.touch.size={size}").stdout)["counters"]
        for size in ("4K", "32K")
    ]

    assert [one["seamcall.TDH.MEM.PAGE.AUG"] for one in counters] == [1, 8]


@pytest.mark.parametrize(("events", "names"), [("events", False), ("accesses", True)])
def test_accesses_log_every_step(tmp_path, events, names):
    """Only `accesses` has steps: as many as the summary counts, with verb and cell."""
    assert go(tmp_path, "--events", events).exit_code == 0
    log = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    steps = [line for line in log if line["event"] == "step"]

    assert log
    assert bool(steps) is names
    if names:
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        assert len(steps) == summary["steps"]
        assert {"verb": "write-lock", "cell": "mmu_lock"}.items() <= next(
            line.items() for line in steps if line["cell"] == "mmu_lock" and line["thread"] == "host0"
        )


@pytest.mark.parametrize("written", ["1.5.01", "1.5.28", "2.0", "nbr"])
def test_the_module_s_release_is_the_scenario_s(tmp_path, written):
    """Also 2.0, which YAML takes for a number."""
    scenario = load(write(tmp_path, edited(("vcpus: 2", f"vcpus: 2, module: {written}"))))

    assert build(Kernel(), scenario).tdx.module.profile.name == written
