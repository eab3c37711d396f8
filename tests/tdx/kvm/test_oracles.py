"""Every oracle of `scenarios.oracles` catches its plant, and accuses neither the library nor the negative controls."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios import oracles
from scenarios.build import build
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from sim import explore
from sim.patches import applied, read
from tests.tdx.kvm.worlds import BASE, scenario

PLANTS = Path(__file__).resolve().parents[2] / "plants"
SHARED = 0x2000000
PLAIN = {"td": "vcpus: 2, kind: plain", "memory": f"{{slot: 0, base: {SHARED:#x}, size: 2M, backing: 4K}}"}
SLOTS = {
    "memory": f"{{slot: 0, base: {BASE:#x}, size: 2M}}, "
    f"{{slot: 1, base: {SHARED:#x}, size: 2M, backing: 2M, initially: shared}}"
}
TD2 = {"td": "vcpus: 2"}
READ_ONLY = PLAIN | {"extra": f"patches: [{PLANTS / 'environment' / 'read_faults_find_read_only.py'}]"}
FATAL_AUG = {
    "extra": "inject: [{fault: seamcall_busy, leaf: TDH.MEM.PAGE.AUG, times: 1000000}]\n"
    f"patches: [{PLANTS / 'environment' / 'busy_aug_kills_the_vm.py'}]"
}
VE = {"td": "vcpus: 1, pending_ve_disable: false"}

USE = f"vcpu*: [{{repeat: {{times: 6, do: [{{touch: {{at: {SHARED:#x}, size: 8K, access: read}}}}]}}}}]"
ALIAS = f"vcpu0: [{{touch: {{at: {SHARED:#x}, access: read, alias: shared}}}}]"
ONE = f"vcpu0: [{{touch: {{at: {SHARED:#x}, size: 32K, access: read}}}}]"
WRITE = f"vcpu1: [{{touch: {{at: {SHARED:#x}, access: write}}}}]"
READ = f"vcpu0: [{{touch: {{at: {SHARED:#x}, access: read}}}}]"
ACCEPT = f"vcpu0: [{{accept: {{at: {BASE:#x}, size: 16K, order: 4K, policy: lazy}}}}]"
NOTIFY = f"host0: [{{notifier_invalidate: {{at: {SHARED:#x}, size: 8K}}}}]"
DELETE = "host0: [{memslot_delete: {slot: 0}}]"
FAST = "host0: [{zap_all_fast: {}}]"
CONVERT = f"host0: [{{set_memory_attributes: {{at: {BASE:#x}, size: 8K, to: shared}}}}]"
PUNCH = f"host0: [{{punch_hole: {{at: {BASE:#x}, size: 16K}}}}]"
PUNCHES = f"host0: [{{repeat: {{times: 8, do: [{{punch_hole: {{at: {BASE:#x}, size: 16K}}}}]}}}}]"
BACK = f"{{map_gpa: {{at: {BASE:#x}, size: 4K, to: private}}}}"
TWICE = (
    f"vcpu0: [{{touch: {{at: {BASE:#x}, size: 8K}}}}, {{map_gpa: {{at: {BASE:#x}, size: 4K, to: shared}}}}"
)
BOTH = f"vcpu*: [{{accept: {{at: {BASE:#x}, size: 8K, order: 4K}}}}]"
PREFAULT = f"host0: [{{prefault: {{vcpu: 0, at: {BASE:#x}, size: 4K}}}}]"
CREATE = "host1: [{memslot_create: {slot: 1, base: 0x4000000, size: 2M, backing: 4K}}]"
LIFE = "host0: [{init_mem_region: {at: 0x1000000, size: 8K}}, {finalize: {}}, {td_teardown: {}}]"

CASES = [
    ("oracle_flush_request_not_served", "stale-tlb", [USE, NOTIFY], PLAIN),
    ("oracle_ipi_without_ack", "stale-tlb", [USE, NOTIFY], PLAIN),
    ("r25_flush_result_discarded", "lock-rule", [USE, NOTIFY], PLAIN),
    ("r15_fast_zap_left_to_last_user", "stale-spte", [USE, DELETE], PLAIN),
    ("oracle_r19_iterator_forgets_the_yield", "stale-spte", [USE, NOTIFY], PLAIN),
    ("drop_is_page_fault_stale", "stale-spte", [ACCEPT, PUNCHES], {}),
    ("oracle_zap_all_fast_without_kick", "uaf-table", [ONE, FAST], PLAIN),
    (
        "oracle_r65_sept_page_not_reclaimed",
        "uaf-table",
        [LIFE],
        {"td": "vcpus: 1, build: manual"},
    ),
    ("oracle_unmap_before_zap", "uaf-page", [USE, NOTIFY], PLAIN),
    ("oracle_mirror_forgets_a_removal", "uaf-page", [ACCEPT, PUNCH], {}),
    (
        "oracle_r43_slots_freed_without_srcu",
        "uaf-object",
        [ALIAS, "host0: [{memslot_delete: {slot: 1}}]"],
        SLOTS,
    ),
    ("oracle_frozen_spte_overwritten", "overwrite", [BOTH], TD2),
    ("r09_read_fault_takes_write_away", "overwrite", [READ, WRITE], READ_ONLY),
    ("oracle_mirror_forgets_a_removal", "diverged", [ACCEPT, CONVERT], {}),
    ("no_kick_after_track", "kvm-bug", [ACCEPT, PUNCH], {}),
    ("oracle_zap_takes_the_neighbour", "td-dead", [TWICE + f", {{touch: {{at: {BASE + 4096:#x}}}}}]"], {}),
    (
        "oracle_zap_takes_the_neighbour",
        "content-lost",
        [TWICE + f", {{touch: {{at: {BASE + 4096:#x}, access: read}}}}]"],
        VE,
    ),
    ("oracle_page_not_reset", "content-lost", [TWICE + "]"], {}),
    ("oracle_fault_keeps_its_page", "refcount", [ACCEPT], {}),
    ("oracle_lost_table_is_leaked", "leak", [BOTH], TD2),
    ("oracle_mutex_under_mmu_lock", "lock-rule", [USE, NOTIFY], PLAIN),
    ("r43_slots_outside_srcu", "lock-rule", [PREFAULT], {}),
    ("oracle_r49_lock_inversion", "lock-rule", [PUNCH, CREATE], {}),
    (
        "oracle_r41_prefault_waits_in_srcu",
        "livelock",
        [PREFAULT, "host1: [{memslot_delete: {slot: 0}}]"],
        {},
    ),
    (
        "r35_truncated_sequence",
        "livelock",
        [
            f"vcpu0: [{{map_gpa: {{at: {BASE:#x}, size: 4K, to: shared}}}}, {BACK}]",
        ],
        {},
    ),
    ("r61_no_vm_dead_check", "livelock", [ACCEPT], FATAL_AUG),
]


def hunt(loaded, kind, plant=None, *, executions, strategies=("pct:3", "random")):
    """The findings of a search of the scenario's world, which ends when it has found the kind."""
    found = {}

    def note(kernel):
        found.update(((finding.kind, finding.title), finding.details) for finding in kernel.findings)

    files = [*loaded.patch_files, *([PLANTS / f"{plant}.py"] if plant else [])]
    with applied([replacement for file in files for replacement in read(file)]):
        for strategy in strategies:
            explore(
                lambda k: build(k, loaded),
                strategy=strategy,
                executions=executions,
                after=note,
                stop=lambda: kind in {known for known, _ in found},
            )
    return found


@pytest.mark.parametrize(
    ("plant", "kind", "threads", "world"), CASES, ids=[f"{case[0]}-{case[1]}" for case in CASES]
)
def test_an_oracle_catches_its_plant_and_not_the_model(tmp_path, plant, kind, threads, world):
    """Within 400 executions, under the kind that the table promises; the same world without the plant is clean."""
    loaded = scenario(tmp_path, *threads, **world)

    assert kind in {known for known, _ in hunt(loaded, kind, plant, executions=200)}
    assert hunt(loaded, kind, executions=3) == {}


def test_every_plant_has_its_case_and_the_table_names_it():
    """None is forgotten, and the table of `scenarios.oracles` is what this file proves."""
    plants = {path.stem for path in PLANTS.glob("oracle_*.py")}

    assert plants <= {case[0] for case in CASES}
    assert {case[0] for case in CASES if case[0] not in str(oracles.__doc__)} == set()


CONTROLS = {
    "N2, N4: two faults on one page, the loser meets BUSY, a frozen SPTE or a spurious fault": ([BOTH], TD2),
    "N3, N10: removal beside ACCEPT and running vCPUs": ([BOTH, PUNCHES], TD2),
    "N5: the lockless pre-check": ([ACCEPT, CONVERT], {}),
    "N6: an invalid root that is being emptied beside a notifier": (
        [USE, FAST, NOTIFY.replace("0:", "1:", 1)],
        PLAIN,
    ),
}


@pytest.mark.parametrize(("threads", "world"), CONTROLS.values(), ids=CONTROLS)
def test_a_negative_control_is_not_accused(tmp_path, threads, world):
    """What looks racy and is right, under two strategies."""
    assert hunt(scenario(tmp_path, *threads, **world), "", executions=25) == {}


SLOW = {"big-first-touch", "eager-accept-vs-region", "lazy-accept-vs-region", "convert-vs-convert"}
"""Timing scenarios of 200,000 steps and more an execution: tests/litmus/test_library.py runs them once, with the oracles."""


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in LIBRARY.glob("*.yaml") if path.stem not in SLOW)
)
def test_the_library_is_not_accused(name):
    """One long random execution of each."""
    loaded = load(LIBRARY / f"{name}.yaml")

    assert hunt(loaded, "", executions=1, strategies=("random",)) == {}
