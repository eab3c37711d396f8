"""More vCPUs than pCPUs: turns, and moves to idle pCPUs."""

from __future__ import annotations

import pytest

from tests.tdx.kvm.worlds import run, scenario
from vcpu.addresses import PG_LEVEL_4K, Gfn, Pfn
from vcpu.tlb import Translation
from vcpu.vcpu import TIME_SLICE_NS

BUSY = "[{repeat: {times: 12, do: [{compute: {for: 1ms}}]}}]"
MARK = Gfn(0xBEEF)


def scheduled(done):
    """Who got which pCPU, in order."""
    return [
        (step.thread, step.what.rpartition(" ")[2])
        for step in done.steps
        if step.what.startswith(("schedule on", "resume cpu"))
    ]


@pytest.mark.parametrize("kind", ["plain", "tdx"])
def test_vcpus_take_turns_on_one_pcpu(tmp_path, kind):
    """Two busy vCPUs and one pCPU: nobody gets it twice in a row while the other waits."""
    loaded = scenario(
        tmp_path, f"vcpu*: {BUSY}", td=f"vcpus: 2, kind: {kind}", machine="pcpus: 1", extra="jitter: false"
    )
    done = run(loaded)
    turns = [thread for thread, _ in scheduled(done)]

    assert not done.kernel.findings
    assert len(turns) >= 6
    assert all(one != other for one, other in zip(turns[:-1], [*turns[1:-1], None], strict=True))
    assert done.kernel.now >= 24_000_000


def three_on_two(tmp_path, kind):
    """vcpu0 and vcpu2 share cpu0; vcpu1 leaves cpu1 early, and somebody must move there."""
    loaded = scenario(
        tmp_path,
        f"vcpu0: {BUSY}",
        "vcpu1: [{compute: {for: 1ms}}]",
        f"vcpu2: {BUSY}",
        td=f"vcpus: 3, kind: {kind}",
        machine="pcpus: 2",
        extra="jitter: false",
    )

    def spoil(world):
        """Whoever comes to cpu1 second finds there what an earlier stay may have left."""
        tlb = world.kvm.pcpus[1].tlb

        def check(kernel, thread, access):
            if access.verb == "schedule on" and str(access.target) == "cpu1" and thread.name != "vcpu1":
                ops = world.kvm.vcpus[0].ops
                for space in {ops.space_name, getattr(ops, "private_space", ops.space_name)}:
                    tlb.fill(space, Translation(MARK, Pfn(1), PG_LEVEL_4K, writable=True, executable=True))

        world.kernel.check(check)

    return run(loaded, more=spoil)


@pytest.mark.parametrize("kind", ["plain", "tdx"])
def test_a_vcpu_migrates_to_an_idle_pcpu_and_starts_with_an_empty_tlb(tmp_path, kind):
    """It leaves its queue for the pCPU that is free; what was cached there is gone."""
    done = three_on_two(tmp_path, kind)
    moved = {thread for thread, pcpu in scheduled(done) if pcpu == "cpu1"} - {"vcpu1"}

    assert not done.kernel.findings
    assert moved
    assert done.kernel.counters["vcpu.migrated"] >= 1
    assert [t for _, t in done.world.kvm.pcpus[1].tlb.entries() if t.gfn == MARK] == []
    assert done.kernel.now < 24_000_000


@pytest.mark.parametrize("kind", ["plain", "tdx"])
def test_a_migration_is_counted_once(tmp_path, kind):
    """`vcpu.migrated` is the number of times that a vCPU got another pCPU than before."""
    done = three_on_two(tmp_path, kind)
    last: dict[str, str] = {}
    moves = 0
    for thread, pcpu in scheduled(done):
        moves += last.get(thread, pcpu) != pcpu
        last[thread] = pcpu

    assert done.kernel.counters["vcpu.migrated"] == moves


def test_a_time_slice_ends_inside_a_long_compute(tmp_path):
    """A vCPU that computes for long gives way after its slice, as to any other interrupt."""
    loaded = scenario(
        tmp_path,
        "vcpu0: [{compute: {for: 30ms}}]",
        "vcpu1: [{compute: {for: 1ms}}]",
        td="vcpus: 2, kind: plain",
        machine="pcpus: 1",
    )
    ends = {}

    def watch(world):
        def check(kernel, thread, access):
            ends[thread.name] = kernel.now

        world.kernel.check(check)

    run(loaded, more=watch)

    assert ends["vcpu1"] < 2 * TIME_SLICE_NS


def test_an_ipi_that_arrives_in_a_compute_ends_it_and_the_rest_is_done_later(tmp_path):
    """External interrupt at 1 ms, and still 5 ms of work altogether."""
    loaded = scenario(
        tmp_path, "vcpu0: [{compute: {for: 5ms}}]", td="vcpus: 1, kind: plain", machine="pcpus: 2"
    )

    def more(world):
        def host():
            yield world.kernel.timeout(1_000_000)
            yield from world.kvm.flush_remote_tlbs()
            world.kernel.count("kicked_at", world.kernel.now)

        world.kernel.thread("host0", host())

    done = run(loaded, more=more)

    assert done.kernel.counters["exit.EXTERNAL_INTERRUPT"] == 1
    assert done.kernel.counters["kicked_at"] == 1_000_000
    assert done.kernel.now == 5_000_000
