"""Replaying a finding: on another machine, from its file alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from scenarios import hunt
from scenarios.cli import tdsim
from tests.scenarios.hunted import PLANT, ROOT, tiny


def invoke(*args):
    """The command line, in this process."""
    return CliRunner().invoke(tdsim, ["replay", *map(str, args)])


@pytest.fixture(scope="module")
def hunted(tmp_path_factory):
    """A hunt by two workers; its scenario and patch are gone afterwards."""
    folder = tmp_path_factory.mktemp("hunted")
    patch = shutil.copy(PLANT, folder / "plant.py")
    result = hunt(
        tiny(folder), patches=[patch], strategy="surw", executions=70, jobs=2, out_dir=folder / "out"
    )
    (folder / "tiny.yaml").unlink()
    (folder / "plant.py").unlink()
    return result


@pytest.fixture
def finding(hunted, tmp_path):
    """The file of a finding, alone in a folder."""
    return Path(
        shutil.copy(hunted.out_dir / "findings" / f"{hunted.findings[0]['fingerprint']}.json", tmp_path)
    )


def test_a_finding_replays_from_its_file_alone_in_another_folder(finding, tmp_path):
    """In a process of its own, with nothing of the hunt left."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "scenarios", "replay", str(finding), "--json"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = json.loads(done.stdout)

    assert done.returncode == 1
    assert told["reproduced"]
    assert told["misfits"] == []
    assert told["fingerprint"] == json.loads(finding.read_text())["fingerprint"]


def test_the_columns_of_a_replay_are_those_of_the_hunt(hunted, finding):
    """`--format text` gives what the hunt wrote beside the JSON."""
    fingerprint = hunted.findings[0]["fingerprint"]

    assert (
        invoke(finding, "--format", "text").stdout
        == (hunted.out_dir / "findings" / f"{fingerprint}.txt").read_text()
    )


def test_a_patch_that_mends_it_is_seen_to(finding, tmp_path):
    """The finding does not show, status 0."""
    mend = tmp_path / "mend.py"
    mend.write_text(
        "from mmu import fault, invalidate\nfrom sim import replaces\n\n"
        "@replaces(fault.is_page_fault_stale)\ndef is_page_fault_stale(kvm, vcpu, page_fault):\n"
        "    kvm.mmu_lock.assert_held()\n"
        "    return (yield from invalidate.mmu_invalidate_retry_gfn(kvm, page_fault.mmu_seq, page_fault.gfn))\n"
    )
    result = invoke(finding, "--patch", mend)

    assert result.exit_code == 0
    assert "does not show: nothing found" in result.stdout
    assert "the model or its patches are not those" in result.stdout


def test_a_schedule_that_no_longer_fits_says_where(finding, tmp_path):
    """A thread that is not there any more is told with its step."""
    told = json.loads(finding.read_text())
    told["schedule"] = "vcpu0*3 gone " + told["schedule"]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(told))

    assert json.loads(invoke(other, "--json").stdout)["misfits"][0] == {"step": 3, "thread": "gone"}
    assert "step 3: gone cannot go here" in invoke(other).stdout


def test_a_schedule_file_replays_with_its_scenario(hunted, tmp_path):
    """Comments are left out; without the plant nothing is found."""
    file = tmp_path / "schedule.txt"
    file.write_text(f"# a comment\n{hunted.findings[0]['schedule']}\n")
    args = (file, "--scenario", tiny(tmp_path), "--seed", hunted.findings[0]["seed"])

    assert invoke(*args).exit_code == 0
    assert invoke(*args, "--patch", PLANT).exit_code == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("{}", "no finding of this version"),
        ("vcpu0*", "is no pick"),
        ("vcpu0\nvcpu1\n", "holds 2 schedules"),
        ("vcpu0*4", "say of which scenario"),
    ],
)
def test_a_file_that_is_no_finding_is_wrong_input(tmp_path, text, message):
    """One message, status 2."""
    file = tmp_path / "file"
    file.write_text(text)
    result = invoke(file)

    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"case": {"format": 99}}, "another version of tdsim"),
        ({"case": 3}, "does not hold its scenario"),
        ({"kind": "nonsense"}, "no such kind"),
        ({"schedule": "v0*"}, "is no pick"),
        ({"kind": "unmet", "schedule": ""}, "nothing to replay"),
    ],
)
def test_a_finding_of_another_version_is_told(finding, tmp_path, change, message):
    """What is wrong with it, in one line."""
    told = json.loads(finding.read_text()) | change
    other = tmp_path / "other.json"
    other.write_text(json.dumps(told))
    result = invoke(other)

    assert result.exit_code == 2
    assert message in result.stderr


def test_options_that_belong_to_a_schedule_are_refused_for_a_finding(finding):
    """Its scenario is in it."""
    assert "holds its own scenario" in invoke(finding, "--seed", 3).stderr
    assert "cannot be read" in invoke("absent.json").stderr
