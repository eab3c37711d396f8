"""SEAMCALLs that must not fail: the flag, the kick, the second try; and what happens when even that fails."""

from __future__ import annotations

import pytest

from mmu.errno import Errno
from scenarios.build import build
from sim import explore
from tdx.kvm.no_vcpus import tdh_do_no_vcpus
from tdx.kvm.sept import TdxSept
from tdx.module import SeamcallReturn, Status
from tests.tdx.kvm.worlds import BASE, GFN, INSIDE, run, scenario
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M

FLAG = "kvm_tdx.wait_for_sept_zap"
BUSY, OK = Status.TDX_OPERAND_BUSY, Status.TDX_SUCCESS
TOUCH = f"vcpu0: [{{touch: {{at: {BASE:#x}, size: 8K}}}}, {{compute: {{for: 1ms}}}}]"
PUNCH = f"host0: [{{punch_hole: {{at: {BASE:#x}, size: 4K}}}}]"


def tried(tmp_path, *answers):
    """tdh_do_no_vcpus of a call with these answers, in turn: the accesses and the last answer."""
    left = list(answers)
    got = []

    def more(world):
        tdx = world.tdx
        call_cell = world.kernel.cell("the call", 0)

        def call():
            yield call_cell.fetch_add(1)
            return SeamcallReturn(left.pop(0))

        def host():
            yield tdx.kvm.mmu_lock.write_lock()
            got.append((yield from tdh_do_no_vcpus(tdx, call)).status)
            yield tdx.kvm.mmu_lock.write_unlock()

        world.kernel.thread("t", host())

    done = run(scenario(tmp_path), None, more)
    assert not left
    flags = [step.value for step in done.steps if FLAG in step.what]
    return done.of("t", "the call", FLAG, "vcpu0.mode"), got[0], done.world.tdx, flags


def test_the_flag_is_set_before_the_kick_and_cleared_after_the_second_try(tmp_path):
    """The other way round a vCPU slips in and the second try is busy, too (reference 7.5)."""
    steps, status, tdx, _ = tried(tmp_path, BUSY, OK)

    assert steps == [
        "fetch_add the call",
        f"write {FLAG}",
        "cmpxchg vcpu0.mode",
        "fetch_add the call",
        f"write {FLAG}",
    ]
    assert status is OK
    assert tdx.wait_for_sept_zap.peek() is False


@pytest.mark.parametrize("status", [OK, Status.TDX_EPT_ENTRY_STATE_INCORRECT])
def test_only_a_busy_operand_is_tried_again(tmp_path, status):
    """Success and every other error are the caller's at once: no flag, no kick."""
    steps, got, _, _ = tried(tmp_path, status)

    assert steps == ["fetch_add the call"]
    assert got is status


def test_a_second_busy_is_the_callers_and_the_flag_does_not_stay(tmp_path):
    """No third try; vCPUs may enter again."""
    steps, status, tdx, _ = tried(tmp_path, BUSY, BUSY)

    assert status is BUSY
    assert steps.count("fetch_add the call") == 2
    assert tdx.wait_for_sept_zap.peek() is False


def test_the_flag_is_up_during_the_kick_and_the_second_try(tmp_path):
    """Watched from outside, in a real removal whose BLOCK is busy once."""
    during = {}

    def watch(world):
        def check(kernel, thread, access):
            what = repr(access)
            if thread.name == "host0" and what in ("ipi to cpu0", f"write sept[{GFN:#x},4K]"):
                during.setdefault(what, world.tdx.wait_for_sept_zap.peek())

        world.kernel.check(check)

    inject = "inject: [{fault: seamcall_busy, leaf: TDH.MEM.RANGE.BLOCK}]"
    done = run(scenario(tmp_path, TOUCH, PUNCH, extra=inject), INSIDE, watch)

    assert during == {"ipi to cpu0": True, f"write sept[{GFN:#x},4K]": True}
    assert not done.kernel.findings


def test_a_vcpu_does_not_enter_while_the_flag_is_up(tmp_path):
    """V10: it turns back before VP.ENTER, leaves guest mode, and enters when the flag goes down."""

    def more(world):
        flag = world.tdx.wait_for_sept_zap
        flag.v = True

        def host():
            yield world.kernel.timeout(5000)
            world.kernel.count("entered before", world.kernel.counters.get("seamcall.TDH.VP.ENTER", 0))
            world.kernel.count("mode before", world.kvm.vcpus[0].mode.peek())
            yield flag.write_once(False)

        world.kernel.thread("t", host())

    done = run(scenario(tmp_path, f"vcpu0: [{{touch: {{at: {BASE:#x}}}}}]"), None, more)
    counters = done.kernel.counters

    assert (counters["entry_kept_out_by_zap"], counters["vcpu.exit_handled"]) == (1, 1)
    assert (counters["entered before"], counters["mode before"]) == (0, 0)
    assert counters["seamcall.TDH.VP.ENTER"] >= 1
    assert not done.kernel.findings


def test_vcpus_meet_the_flag_in_some_interleaving_and_nothing_breaks(tmp_path):
    """Random: a busy BLOCK beside a vCPU that keeps entering."""
    inject = "inject: [{fault: seamcall_busy, leaf: TDH.MEM.RANGE.BLOCK, times: 1}]"
    touch = f"vcpu0: [{{touch: {{at: {BASE + 0x4000:#x}, size: 8K}}}}]"
    loaded = scenario(tmp_path, touch, PUNCH, td="vcpus: 1, initial_memory: 4K", extra=inject)

    report = explore(lambda kernel: build(kernel, loaded), executions=150)

    assert not report.findings
    assert "seamcall_busy_kicked" in report.met
    assert "entry_kept_out_by_zap" in report.met


def test_a_previous_epoch_that_is_busy_is_a_bug_at_once(tmp_path):
    """TRACK's PREVIOUS_TLB_EPOCH_BUSY says that TRACK and kick were no critical section: KVM_BUG, no second try."""

    def more(world):
        status = Status.TDX_PREVIOUS_TLB_EPOCH_BUSY
        world.tdx.module.inject = lambda leaf, _: status if leaf == "TDH.MEM.TRACK" else None

    done = run(scenario(tmp_path, TOUCH, PUNCH), INSIDE, more)

    (finding,) = done.kernel.findings
    assert (finding.kind, finding.title) == ("kvm-bug", "KVM_BUG_ON: TDH.MEM.TRACK failed")
    assert done.kernel.counters["seamcall.TDH.MEM.TRACK"] == 1
    assert "seamcall.TDH.MEM.PAGE.REMOVE" not in done.kernel.counters
    assert done.world.kvm.vm_dead.peek()


def hooked(tmp_path, call):
    """One call of the mirror's hook under mmu_lock for write."""
    got = []

    def more(world):
        def host():
            yield world.kvm.mmu_lock.write_lock()
            got.append((yield from call(TdxSept(world.tdx))))
            yield world.kvm.mmu_lock.write_unlock()

        world.kernel.thread("t", host())

    done = run(scenario(tmp_path), None, more)
    titles = [finding.title for finding in done.kernel.findings]
    calls = {name for name in done.kernel.counters if name.startswith("seamcall.TDH.MEM")}
    return got[0], titles, calls


@pytest.mark.parametrize("level", [PG_LEVEL_2M, PG_LEVEL_1G])
def test_the_hook_installs_4k_only(tmp_path, level):
    """Reference 3.8, level rule: anything larger is a KVM_BUG before any SEAMCALL."""
    result = hooked(tmp_path, lambda sept: sept.set_external_spte(GFN, level, 0x8000 << 12))

    assert result == (-Errno.EIO, ["KVM_BUG_ON: a private mapping larger than 4K"], set())


@pytest.mark.parametrize("level", [PG_LEVEL_2M, PG_LEVEL_1G])
def test_the_hook_removes_4k_only(tmp_path, level):
    """Z1: "level must be 4K before huge-*": a KVM_BUG before any SEAMCALL."""
    result, titles, calls = hooked(tmp_path, lambda sept: sept.remove_external_spte(GFN, level, 0x8000 << 12))

    assert (result, len(titles), calls) == (-Errno.EIO, 1, set())


def test_a_table_of_a_living_td_is_not_taken_back(tmp_path):
    """Reference 4.5: only when the HKID is not assigned."""
    result = hooked(tmp_path, lambda sept: sept.free_external_spt(GFN, PG_LEVEL_2M, None))

    assert result[:2] == (-Errno.EIO, ["KVM_BUG_ON: an S-EPT table is freed while the HKID is assigned"])
