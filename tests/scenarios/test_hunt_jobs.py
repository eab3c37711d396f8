"""Worker processes: the same result for any number of them, killed or not, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scenarios import hunt
from scenarios.campaign.supervisor import CampaignFailure
from scenarios.errors import ScenarioError
from tests.scenarios.hunted import PLANT, ROOT, tiny
from tests.scenarios.test_hunt import files

MARKING = """\
import os, signal
from pathlib import Path
from mmu import fault, invalidate
from sim import replaces

@replaces(fault.is_page_fault_stale)
def is_page_fault_stale(kvm, vcpu, page_fault):
    mark = Path({mark!r})
    if not mark.exists():
        mark.touch()
        {what}
    return False
    yield
"""
"""The plant, which also does something once: where the mark is not there yet."""


def marking(folder: Path, what: str) -> tuple[Path, Path]:
    """The patch, and its mark."""
    patch, mark = folder / "marking.py", folder / "mark"
    patch.write_text(MARKING.format(mark=str(mark), what=what))
    return patch, mark


EXECUTIONS = 130
"""Three shares."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The scenario, a patch that kills its process where the mark is not there, and the mark."""
    folder = tmp_path_factory.mktemp("world")
    return tiny(folder), *marking(folder, "os.kill(os.getpid(), signal.SIGKILL)")


@pytest.fixture(scope="module")
def alone(world, tmp_path_factory):
    """The files of the hunt in one process, undisturbed."""
    scenario, patch, mark = world
    mark.touch()
    out = tmp_path_factory.mktemp("alone") / "out"
    return files(hunt(scenario, patches=[patch], strategy="pos", executions=EXECUTIONS, out_dir=out).out_dir)


@pytest.mark.parametrize(("jobs", "killed"), [(2, False), (3, True)])
def test_any_number_of_jobs_gives_the_same_files_also_if_one_is_killed(world, alone, tmp_path, jobs, killed):
    """Findings, statistics, coverage, texts: byte for byte; a share whose worker got SIGKILL is done again."""
    scenario, patch, mark = world
    if killed:
        mark.unlink()
    result = hunt(
        scenario,
        patches=[patch],
        strategy="pos",
        executions=EXECUTIONS,
        jobs=jobs,
        out_dir=tmp_path / "out",
    )

    assert mark.exists()
    assert result.report.failed
    assert files(result.out_dir) == alone


def test_stopping_at_the_first_finding_is_the_same_for_any_number_of_jobs(tmp_path):
    """The first by share and execution, not by the clock."""
    folders = []
    for jobs in (1, 2):
        folder = tmp_path / str(jobs)
        hunt(
            tiny(tmp_path),
            patches=[PLANT],
            strategy="pos",
            executions=640,
            jobs=jobs,
            stop_at_first=True,
            out_dir=folder,
        )
        folders.append(files(folder))

    assert folders[0] == folders[1]


def test_a_share_that_kills_every_worker_is_told(tmp_path):
    """And does not go on for ever."""
    patch, mark = marking(tmp_path, "mark.unlink(missing_ok=True); os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(CampaignFailure, match="killed 3 workers"):
        hunt(tiny(tmp_path), patches=[patch], strategy="pos", executions=128, jobs=2)
    assert not mark.exists()


def test_a_patch_that_fails_in_a_worker_is_wrong_input(tmp_path):
    """With its place, as in one process."""
    patch, _ = marking(tmp_path, "raise RuntimeError('mine')")
    with pytest.raises(ScenarioError, match=r"marking.py:11:1: is_page_fault_stale: RuntimeError: mine"):
        hunt(tiny(tmp_path), patches=[patch], strategy="pos", executions=128, jobs=2)


def test_ctrl_c_writes_what_was_found_and_leaves_no_process(tmp_path):
    """The whole process group gets the signal, as on a terminal."""
    patch, mark = marking(tmp_path, "pass")
    out = tmp_path / "out"
    args = [str(tiny(tmp_path)), "--patch", str(patch), "--executions", "10000000", "--jobs", "2"]
    hunting = subprocess.Popen(
        [sys.executable, "-m", "scenarios", "hunt", *args, "--out", str(out), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(mark.exists)
    os.killpg(hunting.pid, signal.SIGINT)
    stdout, _ = hunting.communicate(timeout=60)
    summary = json.loads((out / "summary.json").read_text())

    assert hunting.returncode == 130
    assert json.loads(stdout)["interrupted"]
    assert summary["interrupted"]
    assert summary["executions"] > 0
    assert of_session(hunting.pid) == []


def wait_for(condition) -> None:
    """Until it holds; a minute is too long."""
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def of_session(session: int) -> list[int]:
    """Its processes that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found
