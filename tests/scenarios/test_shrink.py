"""Shrinking a finding: a smaller scenario and schedule that fail in the same way."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from scenarios import hunt
from scenarios.campaign.case import Case
from scenarios.cli import tdsim
from scenarios.shrink import NotShown, shrink, smaller
from tests.scenarios.helpers import write
from tests.scenarios.hunted import PLANT

WIDE = """\
scenario: wide
question: Is a fault that was overtaken by a hole punched into its page found stale, with others about?
machine: {pcpus: 3}
td: {vcpus: 2}
memory:
  - {slot: 0, base: 0x1000000, size: 2M, backing: 4K, initially: private}
  - {slot: 1, base: 0x2000000, size: 2M, backing: 4K, initially: shared}
threads:
  vcpu0: [{accept: {at: 0x1000000, size: 8K, order: 4K}}, {compute: {for: 1us}}]
  vcpu1: [{touch: {at: 0x2000000, alias: shared}}]
  host0:
    - repeat: {times: 4, do: [{punch_hole: {at: 0x1000000, size: 8K}}]}
expect: {findings: none}
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A finding in a world with more in it than the bug needs."""
    file = write(tmp_path_factory.mktemp("wide"), WIDE, "wide")
    result = hunt(file, patches=[PLANT], strategy="surw", executions=120, stop_at_first=True)
    (finding,) = result.findings
    return finding


@pytest.fixture(scope="module")
def small(found):
    """What is left of it."""
    told = []
    shrunk = shrink(
        Case.from_json(found["case"], "wide"), found, executions=300, progress=lambda *step: told.append(step)
    )
    return shrunk, told


def test_what_the_bug_does_not_need_is_left_out(found, small):
    """The idle vCPU and the second slot go; the patch and the kind of failure stay."""
    shrunk, told = small

    assert "vcpu1" not in shrunk.case.data["threads"]
    assert set(shrunk.case.data["threads"]) == {"vcpu0", "host0"}
    assert shrunk.case.patches == Case.from_json(found["case"], "wide").patches
    assert (shrunk.finding.kind, shrunk.finding.title) == (found["kind"], found["title"])
    assert [what for what, _ in told]
    assert shrunk.made


def test_the_smaller_finding_replays(small):
    """Its schedule makes it in its scenario."""
    shrunk, _ = small
    with shrunk.case.opened() as opened:
        kernel = opened.record(shrunk.finding.schedule, seed=shrunk.finding.seed).kernel

    assert shrunk.finding.fingerprint in [finding.fingerprint for finding in kernel.findings]


def test_the_work_is_capped(found):
    """Twenty executions are twenty."""
    shrunk = shrink(Case.from_json(found["case"], "wide"), found, executions=20)

    assert shrunk.capped
    assert shrunk.executions <= 20


def test_what_does_not_show_is_not_shrunk(found):
    """Without its patch there is no finding."""
    case = Case.from_json(found["case"], "wide").with_patches(())
    with pytest.raises(NotShown):
        shrink(case, found, executions=20)


def test_every_smaller_scenario_is_smaller():
    """Each candidate says what was done, differs, and leaves the original alone."""
    data = {
        "td": {"vcpus": 2},
        "memory": [{"slot": 0, "size": "2M"}],
        "threads": {"host0": [{"repeat": {"times": 4, "do": [{"punch_hole": {"size": "8K"}}]}}]},
    }
    before = json.dumps(data)
    made = list(smaller(data))

    assert json.dumps(data) == before
    assert all(candidate != data for _, candidate in made)
    assert [what for what, _ in made] == [
        "without thread host0",
        "without threads.host0[0] repeat",
        "without threads.host0.0.repeat.do[0] punch_hole",
        "threads.host0.0.repeat 1 times",
        "threads.host0.0.repeat 2 times",
        "1 vCPUs",
        "without slot 0",
        "threads.host0.0.repeat.do.0.punch_hole of 4K",
        "memory.0 of 4K",
        "memory.0 of 8K",
    ]


def test_the_command_writes_a_new_file_that_replays(found, tmp_path):
    """The old one stays; `--json` says where the new one is."""
    file = tmp_path / "finding.json"
    file.write_text(json.dumps(found))
    args = ["replay", str(file), "--shrink", "--executions", "20", "--json"]
    told = json.loads(CliRunner().invoke(tdsim, args).stdout)
    again = CliRunner().invoke(tdsim, ["replay", told["written"], "--json"])

    assert told["written"] == str(tmp_path / "finding.shrunk.json")
    assert json.loads(again.stdout)["reproduced"]
    assert json.loads(file.read_text()) == found


def test_a_finding_that_does_not_show_is_not_shrunk_and_told(found, tmp_path):
    """Status 2 and what to do."""
    file = tmp_path / "finding.json"
    file.write_text(json.dumps(found | {"case": found["case"] | {"patches": []}}))
    result = CliRunner().invoke(tdsim, ["replay", str(file), "--shrink"])

    assert result.exit_code == 2
    assert "without --shrink" in result.stderr


def test_a_folder_that_is_not_there_is_told_before_the_work(found, tmp_path, monkeypatch):
    """One message, and not a single execution."""
    monkeypatch.setattr("scenarios.replay.make_smaller", None)
    file = tmp_path / "finding.json"
    file.write_text(json.dumps(found), encoding="utf-8")

    result = CliRunner().invoke(
        tdsim, ["replay", str(file), "--shrink", "--out", str(tmp_path / "no" / "x.json")]
    )

    assert result.exit_code == 2
    assert "cannot be written; choose another --out" in result.stderr
