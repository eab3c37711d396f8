"""Every mistake is told with its exact place, the key's path and what to write instead."""

from __future__ import annotations

import pytest

from scenarios.errors import ScenarioError, ScenarioErrors
from scenarios.loading import load, load_all
from tests.scenarios.helpers import GOOD, complaints, edited, write

SLOT = "  - {slot: 0, base: 0x1000000, size: 2M}"


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([("question", "qestion")], ["good.yaml:2:1: qestion: unknown key; did you mean question?",
                                     "missing key question"]),
        ([("vcpus: 2", "vcpus: two")], ["good.yaml:3:13: td.vcpus: expected a whole number (got 'two')"]),
        ([("vcpus: 2", "vcpus: 2, kind: tdy")],
         ["good.yaml:3:22: td.kind: expected 'tdx', 'snp' or 'plain' (got 'tdy'); did you mean tdx?"]),
        ([("vcpus: 2", "vcpus: 2, module: 1.5")],
         ["good.yaml:3:24: td.module: expected '1.5.01', '1.5.28', '2.0' or 'nbr' (got 1.5)"]),
        ([("td:", "design: upstram\ntd:")],
         ["good.yaml:3:9: design: expected 'upstream' (got 'upstram'); did you mean upstream?"]),
        ([("scenario: good", "scenario: god")],
         ["good.yaml:1:11: scenario: expected the file's name without .yaml (got 'god'); write scenario: good"]),
        ([("{touch:", "{tuch:")], ["good.yaml:7:12: threads.vcpu0.0.tuch: unknown verb; did you mean touch?"]),
        ([("{touch:", "{punch_hole:")],
         ["good.yaml:7:12: threads.vcpu0.0.punch_hole: a host verb; give it to a host thread"]),
        ([("vcpu0:", "vpcu0:")], ["good.yaml:7:3: threads.vpcu0: unknown thread name; write vcpu0"]),
        ([("vcpu0:", "vcpu2:")],
         ["good.yaml:7:3: threads.vcpu2: no vcpu2: td.vcpus is 2; use vcpu0 to vcpu1 or raise td.vcpus"]),
        ([("vcpu0:", "'vcpu[0-7]':")], ["good.yaml:7:3: threads.vcpu[0-7]: no vcpu7: td.vcpus is 2"]),
        ([("size: 2M", "size: 5000")],
         ["good.yaml:5:38: memory.0.size: expected a multiple of 4K (got 5000); nearest: 0x1000 or 0x2000"]),
        ([("size: 2M", "size: 2M, backing: 1G")],
         ["memory.0.base: expected a multiple of 1G, as backing 1G needs", "good.yaml:5:38: memory.0.size"]),
        ([(SLOT, SLOT + "\n  - {slot: 1, base: 0x1100000, size: 2M}")],
         [("good.yaml:6:21: memory.1.base: overlaps memory.0, which is 0x1000000 to 0x1200000 (got 17825792); "
          "the first free address is 0x1300000")]),
        ([(SLOT, SLOT + "\n  - {slot: 0, base: 0x2000000, size: 2M}")],
         ["good.yaml:6:12: memory.1.slot: slot 0 is already memory.0; 1 is free"]),
        ([(SLOT, SLOT + "\n  - {slot: 1, base: 0x7fffffe00000, size: 4M}")],
         ["good.yaml:6:21: memory.1.base: 0x7fffffe00000 to 0x800000200000 reaches the shared bit, 47"]),
        ([("td:", "machine: {host_memory: 1M}\ntd:")],
         ["good.yaml:6:38: memory.0.size: slots need 2M, the host has 1M"]),
        ([("vcpus: 2", "vcpus: 2, initial_memory: 4M")],
         ["good.yaml:3:32: td.initial_memory: more than the 2M of slot 0, the first private one (got '4M'); at most 2M"]),
        ([("{touch: {at: 0x1000000}}", "{touch: {at: 0x1200000}}")],
         [("good.yaml:7:24: threads.vcpu0.0.touch.at: 0x1200000 to 0x1201000 is not inside the slots; "
          "slots cover 0x1000000 to 0x1200000")]),
        ([("{touch: {at: 0x1000000}}", "{touch: {at: 0x1000000, size: 4M}}")],
         [("good.yaml:7:41: threads.vcpu0.0.touch.size: 0x1000000 to 0x1400000 is not inside the slots; "
          "at most 2M from there")]),
        ([("vcpus: 2", "vcpus: 2, kind: plain")],
         ["good.yaml:9:7: threads.host0.0.set_memory_attributes: a plain VM has no private memory"]),
        ([("    - set_memory_attributes: {at: 0x1000000, size: 4K, to: shared}", "    - memslot_delete: {slot: 4}")],
         ["good.yaml:9:30: threads.host0.0.memslot_delete.slot: no slot 4; slots: 0"]),
        ([("    - set_memory_attributes: {at: 0x1000000, size: 4K, to: shared}", "    - finalize: {}")],
         ["good.yaml:9:7: threads.host0.0.finalize: the TD is built before the threads start; set td.build: manual"]),
        ([("td:", "inject: [{fault: interrupt, thread: vcpu9}]\ntd:")],
         ["good.yaml:3:37: inject.0.thread: no thread 'vcpu9'; did you mean vcpu"]),
        ([("td:", "patches: [nothing.py]\ntd:")], ["good.yaml:3:11: patches.0: no file 'nothing.py'"]),
        ([("td:", "hunt: {strategy: pct3}\ntd:")],
         ["good.yaml:3:18: hunt.strategy: unknown strategy (got 'pct3'); did you mean pct:3?"]),
        ([("td:", "costs: {x: 5}\ntd:")], ["good.yaml:3:12: costs.x: expected a time with its unit"]),
    ],
)  # fmt: skip
def test_a_mistake_names_place_path_and_remedy(tmp_path, edits, expected):
    """The message is what an editor can jump to and a person can act on."""
    told = complaints(tmp_path, edited(*edits))

    assert len(told) == len(expected), told
    for part in expected:
        assert any(part in line for line in told), told


def test_all_mistakes_come_at_once_in_the_files_order(tmp_path):
    """One run of `check` is enough."""
    told = complaints(
        tmp_path, edited(("vcpus: 2", "vcpus: 0"), ("size: 2M", "size: big"), ("touch", "tuch"))
    )

    assert [line.split(": ")[0] for line in told] == ["good.yaml:3:13", "good.yaml:5:38", "good.yaml:7:12"]


def test_an_override_is_checked_like_the_file_and_told_by_its_text(tmp_path):
    """A mistake on the command line points there."""
    told = complaints(tmp_path, GOOD, "td.vcpu=4")

    assert told == ["--set td.vcpu=4:1:15: td.vcpu: unknown key; did you mean vcpus?"]
    assert load(write(tmp_path, GOOD), ["td.vcpus=4", "seed=7"]).td.vcpus == 4


def test_groups_resolve_with_the_particular_name_first(tmp_path):
    """`vcpu*` means the vCPUs that nothing else names; shares divide whole pages."""
    text = edited(("vcpus: 2", "vcpus: 4"), ("  vcpu0: [{touch: {at: 0x1000000}}]",
        "  vcpu*: [{touch: {at: 0x1000000, size: 40K, share: true}}]\n  vcpu1: [{halt: {}}]"))  # fmt: skip
    programs = load(write(tmp_path, text)).programs()

    assert list(programs) == ["vcpu0", "vcpu1", "vcpu2", "vcpu3", "host0"]
    assert [programs[f"vcpu{i}"].selector for i in range(4)] == ["vcpu*", "vcpu1", "vcpu*", "vcpu*"]
    shares = [programs[f"vcpu{i}"].part_of(programs[f"vcpu{i}"].steps[0].args) for i in (0, 2, 3)]
    assert shares == [(0x1000000, 0x1003000), (0x1003000, 0x1006000), (0x1006000, 0x100A000)]


def test_a_sweep_expands_into_named_scenarios(tmp_path):
    """Each combination is a scenario, checked by itself."""
    file = write(tmp_path, GOOD + "sweep: {td.vcpus: [1, 2], machine.clock_ghz: [2.0, 3.0]}\n")
    names = [scenario.name for scenario in load_all(file)]

    assert names[0] == "good[td.vcpus=1,machine.clock_ghz=2.0]"
    assert len(names) == 4
    with pytest.raises(ScenarioError, match=r"good.yaml:10:20: td.vcpus: expected greater"):
        load_all(write(tmp_path, GOOD + "sweep: {td.vcpus: [0]}\n"))


def test_errors_survive_being_rebuilt_from_their_arguments():
    """SimPy rebuilds a failed process's exception as `type(e)(*e.args)`."""
    one = ScenarioError("bad", "f.yaml", 1, 2, "a.b", "do this")
    many = ScenarioErrors([one, one])

    assert str(type(one)(*one.args)) == "f.yaml:1:2: a.b: bad; do this"
    assert str(type(many)(*many.args)) == str(many)


def test_a_later_layer_can_place_its_own_complaint(tmp_path):
    """The composition root tells an unknown cost name with the file's line."""
    scenario = load(write(tmp_path, GOOD + "costs: {sloth: 5us}\n"))

    assert "good.yaml:10:9: costs.sloth: unknown cost" in str(
        scenario.error(("costs", "sloth"), "unknown cost", key=True)
    )
