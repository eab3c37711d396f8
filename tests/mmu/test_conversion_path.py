"""KVM_SET_MEMORY_ATTRIBUTES against steps C1 to C11 of the reference (4.7)."""

from __future__ import annotations

import pytest

from mmu.conversion import kvm_vm_set_mem_attributes
from scenarios.build import build
from sim import explore
from tests.tdx.kvm.worlds import BASE, GFN, INSIDE, fault, in_order, run, scenario
from vcpu.addresses import Gfn, GfnRange

TOUCH = f"vcpu0: [{{touch: {{at: {BASE:#x}, size: 8K}}}}, {{compute: {{for: 1ms}}}}]"
CONVERT = f"host0: [{{set_memory_attributes: {{at: {BASE:#x}, size: 8K, to: shared}}}}]"
WINDOW = ("mmu_invalidate", "mmu_lock", "slots_lock", "mem_attr", "spte[mirror 4K", "disallow_lpage")


@pytest.fixture
def converted(tmp_path):
    """Two mapped pages turned shared while their vCPU is in the guest."""
    return run(scenario(tmp_path, TOUCH, CONVERT), INSIDE)


def test_a_conversion_takes_the_references_steps(converted):
    """C2 under slots_lock, C4 before C5 before C7; C9 without mmu_lock; C10 seq before in_progress; C11 last."""
    assert not converted.kernel.findings
    in_order(
        converted.of("host0", *WINDOW),
        "write-lock slots_lock",
        "xas_load mem_attr_array",  # C2
        "write-lock mmu_lock",
        "plain write mmu_invalidate_in_progress",  # C4
        "plain write mmu_invalidate_range_start",  # C5
        "plain read disallow_lpage[slot 0 2M",  # C6
        f"write spte[mirror 4K gfn {GFN:#x}]",  # C7
        f"write spte[mirror 4K gfn {GFN + 1:#x}]",
        "unlock mmu_lock",  # C8
        f"write mem_attr[gfn {GFN:#x}]",  # C9
        f"write mem_attr[gfn {GFN + 1:#x}]",
        "write-lock mmu_lock",
        "plain write mmu_invalidate_seq",  # C10
        "plain write mmu_invalidate_in_progress",
        "plain write disallow_lpage[slot 0 2M",  # C11
        "unlock mmu_lock",
        "unlock slots_lock",
    )


def test_seq_is_written_once_and_before_in_progress(converted):
    """C10: whoever sees no window open sees that one was; no other write of either between."""
    writes = converted.of("host0", "plain write mmu_invalidate_seq", "plain write mmu_invalidate_in_")

    assert writes == [
        "plain write mmu_invalidate_in_progress",
        "plain write mmu_invalidate_seq",
        "plain write mmu_invalidate_in_progress",
    ]


def watched(tmp_path, wanted, look, *threads):
    """What `look(world, thread)` returns after each access whose text begins with `wanted`."""
    seen = []

    def watch(world):
        def check(kernel, thread, access):
            if thread.name == "host0" and access.processed and repr(access).startswith(wanted):
                seen.append(look(world.kvm, thread))

        world.kernel.check(check)

    run(scenario(tmp_path, *(threads or (TOUCH, CONVERT))), INSIDE, watch)
    return seen


def test_attributes_are_stored_inside_the_window_and_outside_of_mmu_lock(tmp_path):
    """C9: in_progress is up, slots_lock held, mmu_lock not, and seq is still the old one."""

    def look(kvm, thread):
        return (
            kvm.mmu_invalidate_in_progress.peek(),
            kvm.mmu_invalidate_seq.peek(),
            kvm.mmu_lock.held_by(thread),
            kvm.slots_lock.held_by(thread),
        )

    assert watched(tmp_path, "write mem_attr", look) == [(1, 0, None, "write")] * 2


def test_the_window_is_open_and_covers_the_range_before_the_zap(tmp_path):
    """C4 and C5 before C7; C6 widens it to the whole 2M page, which is not mixed yet."""

    def look(kvm, thread):
        low, high = kvm.mmu_invalidate_range_start.peek(), kvm.mmu_invalidate_range_end.peek()
        return kvm.mmu_invalidate_in_progress.peek(), low, high, kvm.mmu_lock.held_by(thread)

    assert watched(tmp_path, "write spte[mirror 4K", look) == [(1, GFN, GFN + 512, "write")] * 2


def test_a_mixed_huge_page_does_not_widen_the_window(tmp_path):
    """C6 the second time: the 2M page is MIXED already, so the window is the range itself."""
    again = f"{{set_memory_attributes: {{at: {BASE + 0x4000:#x}, size: 4K, to: shared}}}}"
    host = f"host0: [{{set_memory_attributes: {{at: {BASE:#x}, size: 4K, to: shared}}}}, {again}]"

    def look(kvm, thread):
        return kvm.mmu_invalidate_range_start.peek(), kvm.mmu_invalidate_range_end.peek()

    seen = watched(tmp_path, "write mem_attr", look, TOUCH, host)

    assert seen == [(GFN, GFN + 512), (GFN + 4, GFN + 5)]


def test_nothing_to_change_opens_no_window(tmp_path):
    """C2: the range has the attributes already."""
    host = f"host0: [{{set_memory_attributes: {{at: {BASE:#x}, size: 8K, to: private}}}}]"
    done = run(scenario(tmp_path, host))

    assert done.of("host0", "slots_lock") == ["write-lock slots_lock", "unlock slots_lock"]
    assert done.of("host0", "mmu_lock", "mmu_invalidate") == []


def test_going_private_zaps_nothing_in_the_mirror(tmp_path):
    """C7 by type: only shared mappings go; the other way round the S-EPT is left alone."""
    memory = f"{{slot: 0, base: {BASE:#x}, size: 2M, initially: shared}}"
    touch = f"vcpu0: [{{touch: {{at: {BASE:#x}, alias: shared}}}}, {{compute: {{for: 1ms}}}}]"
    host = f"host0: [{{set_memory_attributes: {{at: {BASE:#x}, size: 4K, to: private}}}}]"
    done = run(scenario(tmp_path, touch, host, memory=memory), INSIDE)

    assert done.kernel.counters["mmu.leafs_zapped"] == 1
    assert not [what for what in done.of("host0", "spte[mirror") if not what.startswith("read")]
    assert "seamcall.TDH.MEM.RANGE.BLOCK" not in done.kernel.counters
    assert "seamcall.TDH.MEM.TRACK" not in done.kernel.counters


def test_a_fault_beside_a_conversion_never_installs_what_was_zapped(tmp_path):
    """Random interleavings: the judged end is clean, and the fault's window check was needed."""
    loaded = scenario(tmp_path, f"vcpu0: [{{touch: {{at: {BASE:#x}}}}}]", CONVERT, td="vcpus: 1")

    report = explore(lambda kernel: build(kernel, loaded), executions=150)

    assert not report.findings
    assert report.complete == 150
    assert report.met & {"fault_met_invalidation", "fault_memory_fault_exit", "fault_found_stale"}


def test_converting_frames_without_a_slot_disturbs_no_fault(tmp_path):
    """C4 is "for each overlapping slot: first one takes mmu_lock and begins": without a slot there is no window."""
    hole = GfnRange(Gfn(0x9000), Gfn(0x9001))
    reached = []

    def more(world):
        kvm = world.kvm

        def host():
            yield from kvm_vm_set_mem_attributes(kvm, hole, private=True)

        def other():
            reached.append((yield from fault(world)))

        world.kernel.thread("host1", host())
        world.kernel.thread("t", other())

    done = run(scenario(tmp_path), "host1*9 t*500 host1*100", more)

    assert [finding.title for finding in done.kernel.findings] == []
    assert reached
