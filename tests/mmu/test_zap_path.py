"""Removal against the reference's lists: one leaf (4.4), a hole in guest_memfd (4.8), a deleted memslot (4.9)."""

from __future__ import annotations

import json

import pytest

from scenarios.run import run_scenario
from tests.tdx.kvm.worlds import BASE, GFN, INSIDE, in_order, run, scenario

TOUCH = f"vcpu0: [{{touch: {{at: {BASE:#x}, size: 8K}}}}, {{compute: {{for: 1ms}}}}]"
BLOCK, TRACK, REMOVE, WBINVD = (
    "TDH.MEM.RANGE.BLOCK",
    "TDH.MEM.TRACK",
    "TDH.MEM.PAGE.REMOVE",
    "TDH.PHYMEM.PAGE.WBINVD",
)
VERBS = {
    "convert": f"set_memory_attributes: {{at: {BASE:#x}, size: 4K, to: shared}}",
    "punch": f"punch_hole: {{at: {BASE:#x}, size: 4K}}",
    "delete": "memslot_delete: {slot: 0}",
}


@pytest.fixture
def removed(tmp_path):
    """Run one of the verbs against a vCPU that is in the guest; host0's steps."""

    def go(verb):
        done = run(scenario(tmp_path, TOUCH, f"host0: [{{{VERBS[verb]}}}]"), INSIDE)
        assert not done.kernel.findings
        return done, [step.what for step in done.steps if step.thread == "host0"]

    return go


@pytest.mark.parametrize("verb", VERBS)
def test_one_leaf_goes_by_block_track_kick_remove_wbinvd(removed, verb):
    """Z2 to Z5 in order: the mirror is empty before BLOCK, and the kick is acknowledged before REMOVE looks."""
    _, steps = removed(verb)

    in_order(
        steps,
        f"write spte[mirror 4K gfn {GFN:#x}]",  # 4.1: first the mirror
        f"write sept[{GFN:#x},4K]",  # Z2
        "next epoch",  # Z3
        "cmpxchg vcpu0.mode",
        "ipi to cpu0",
        "resume ipi.ack",
        "td[0x200].epoch",  # Z4: the tracking check
        f"write sept[{GFN:#x},4K]",
        "rcu leave rcu",
        "unlock mmu_lock",
    )


@pytest.mark.parametrize("verb", VERBS)
def test_the_seamcalls_of_a_removal_are_made_once_each_and_in_order(tmp_path, verb):
    """By the event log: no retry on a quiet machine, WBINVD last; for each of the leafs that go."""
    loaded = scenario(
        tmp_path,
        f"vcpu0: [{{touch: {{at: {BASE:#x}}}}}]",
        f"host0: [{{wait: {{for: 10ms}}}}, {{{VERBS[verb]}}}]",
    )
    run_scenario(loaded, seed=0, out_dir=tmp_path / "out")
    log = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    calls = [line["fn"] for line in log if line["event"] == "tdx_seamcall" and line["thread"] == "host0"]
    changed = [n for n, line in enumerate(log) if line["event"] == "kvm_tdp_mmu_spte_changed"]

    assert calls == [BLOCK, TRACK, REMOVE, WBINVD]
    assert changed[-1] < next(n for n, line in enumerate(log) if line.get("fn") == BLOCK)


def test_the_page_is_written_back_before_it_is_given_back(removed):
    """A frame of a hole leaves the file only when REMOVE and WBINVD are done (4.8)."""
    done, steps = removed("punch")

    in_order(
        steps,
        "write-lock gmem.invalidate_lock",
        "write-lock mmu_lock",
        "plain write mmu_invalidate_in_progress",
        f"write sept[{GFN:#x},4K]",
        f"write sept[{GFN:#x},4K]",
        "try shared pamt",  # TDH.PHYMEM.PAGE.WBINVD
        "unlock shared pamt",
        "fetch_or vcpu0.requests",  # flushed before mmu_lock goes
        "unlock mmu_lock",
        "write-lock gmem.folio[0x0].lock",
        "write gmem.pages[0x0]",
        "unlock gmem.folio[0x0].lock",
        "mmu_lock",
        "plain write mmu_invalidate_seq",
        "plain write mmu_invalidate_in_progress",
        "unlock mmu_lock",
        "unlock gmem.invalidate_lock",
    )
    assert done.kernel.counters["punch_hole.done"] == 1


def test_truncation_is_inside_the_window(tmp_path):
    """While a page leaves the file, in_progress is 1 and nobody of ours holds mmu_lock."""
    states = []

    def watch(world):
        def check(kernel, thread, access):
            if repr(access) == "write gmem.pages[0x0]":
                kvm = world.kvm
                states.append((kvm.mmu_invalidate_in_progress.peek(), kvm.mmu_lock.held_by(thread)))

        world.kernel.check(check)

    run(scenario(tmp_path, TOUCH, f"host0: [{{{VERBS['punch']}}}]"), INSIDE, watch)

    assert states == [(1, None)]


def test_a_slot_is_published_invalid_before_its_zap_and_gone_after_it(removed):
    """4.9: INVALID copy, SRCU, zap under the write lock without a window, second publish, SRCU again."""
    _, steps = removed("delete")

    in_order(
        steps,
        "write-lock slots_lock",
        "read mn_active_invalidate_count",
        "store-release kvm.memslots",
        "kvm.srcu",
        "write-lock mmu_lock",
        f"write spte[mirror 4K gfn {GFN:#x}]",
        "unlock mmu_lock",
        "read mn_active_invalidate_count",
        "store-release kvm.memslots",
        "kvm.srcu",
        "unlock slots_lock",
    )
    assert sum("store-release kvm.memslots" in what for what in steps) == 2
    assert not any("plain write mmu_invalidate" in what for what in steps)


def test_what_is_published_in_between_is_the_invalid_slot(tmp_path):
    """Between the two publications readers find the slot, flagged; afterwards none."""
    seen = []

    def watch(world):
        def check(kernel, thread, access):
            if repr(access) == "store-release kvm.memslots":
                slot = world.kvm.slot_of(GFN)
                seen.append(None if slot is None else slot.invalid)

        world.kernel.check(check)

    run(scenario(tmp_path, TOUCH, f"host0: [{{{VERBS['delete']}}}]"), INSIDE, watch)

    assert seen == [True, None]


def test_a_hole_that_maps_nothing_makes_no_seamcall(tmp_path):
    """No leaf, no BLOCK, no kick."""
    done = run(scenario(tmp_path, f"host0: [{{{VERBS['punch']}}}]"))

    assert done.kernel.counters["punch_hole.done"] == 1
    assert f"seamcall.{BLOCK}" not in done.kernel.counters
    assert "remote_tlb_flush" not in done.kernel.counters
