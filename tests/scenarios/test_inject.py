"""Injections: bad luck on request ends as it ends in the kernel, and never in an exception."""

from __future__ import annotations

import pytest

from scenarios.run import run_scenario
from tests.tdx.kvm.worlds import BASE, run, scenario

TOUCH = f"vcpu0: [{{touch: {{at: {BASE:#x}, size: 16K}}}}]"
PUNCH = f"host0: [{{wait: {{for: 10ms}}}}, {{punch_hole: {{at: {BASE:#x}, size: 4K}}}}]"


def injected(tmp_path, what, *threads, **options):
    """The result of a timing run with one injection."""
    loaded = scenario(tmp_path, *threads, extra=f"inject: [{{{what}}}]", **options)
    return run_scenario(loaded, seed=0, out_dir=None, events="off")


@pytest.mark.parametrize("leaf", ["TDH.MEM.PAGE.AUG", "TDH.MEM.SEPT.ADD"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_busy_installation_is_retried(tmp_path, leaf, times):
    """-EBUSY becomes RET_PF_RETRY, as often as it takes; nothing is found, all pages are mapped."""
    result = injected(tmp_path, f"fault: seamcall_busy, leaf: {leaf}, times: {times}", TOUCH)
    clean = run_scenario(scenario(tmp_path, TOUCH), seed=0)

    assert result.findings == []
    assert result.counters["injected_seamcall_busy"] == times
    assert result.counters["seamcall_busy_retried"] == times
    assert result.counters["fault.retry"] == times
    assert result.counters["fault.fixed"] == clean.counters["fault.fixed"] == 4
    assert result.counters[f"seamcall.{leaf}"] == clean.counters[f"seamcall.{leaf}"] + times


@pytest.mark.parametrize(("nth", "struck"), [(1, 1), (4, 1), (5, 0)])
def test_the_nth_opportunity_is_counted_from_one(tmp_path, nth, struck):
    """Four AUGs: the fourth can be struck, the fifth is not there."""
    result = injected(tmp_path, f"fault: seamcall_busy, leaf: TDH.MEM.PAGE.AUG, nth: {nth}", TOUCH)

    assert result.counters.get("injected_seamcall_busy", 0) == struck


@pytest.mark.parametrize(("thread", "struck"), [("vcpu0", 1), ("host0", 0)])
def test_an_injection_may_be_for_one_thread(tmp_path, thread, struck):
    """Who makes no AUG is not struck, and uses no opportunity up."""
    result = injected(
        tmp_path, f"fault: seamcall_busy, leaf: TDH.MEM.PAGE.AUG, thread: {thread}", TOUCH, PUNCH
    )

    assert result.counters.get("injected_seamcall_busy", 0) == struck


def test_a_busy_removal_is_kicked_and_tried_again(tmp_path):
    """RANGE.BLOCK busy once: everybody out, and it works."""
    result = injected(tmp_path, "fault: seamcall_busy, leaf: TDH.MEM.RANGE.BLOCK", TOUCH, PUNCH)

    assert result.findings == []
    assert result.counters["seamcall_busy_kicked"] == 1
    assert result.counters["seamcall.TDH.MEM.RANGE.BLOCK"] == 2
    assert result.counters["seamcall.TDH.MEM.PAGE.REMOVE"] == 1


@pytest.mark.parametrize("leaf", ["TDH.MEM.RANGE.BLOCK", "TDH.MEM.TRACK", "TDH.MEM.PAGE.REMOVE"])
def test_a_removal_that_is_busy_twice_is_a_kvm_bug(tmp_path, leaf):
    """With all vCPUs out the second try must work: else KVM_BUG_ON names the leaf, and there is no third."""
    result = injected(tmp_path, f"fault: seamcall_busy, leaf: {leaf}, times: 2", TOUCH, PUNCH)

    assert [(f["kind"], f["title"]) for f in result.findings] == [("kvm-bug", f"KVM_BUG_ON: {leaf} failed")]
    assert result.counters[f"seamcall.{leaf}"] == 2


FILLED = 4 * 40
"""Objects of a vCPU's four caches, which its first top-up fills: the next allocation is a fault's own."""


def test_a_failed_allocation_is_enomem_for_whoever_asked(tmp_path):
    """A fault that cannot top up its caches goes to userspace with -ENOMEM; the conversion fails cleanly."""
    convert = f"host0: [{{wait: {{for: 10ms}}}}, {{set_memory_attributes: {{at: {BASE:#x}, size: 4K, to: shared}}}}]"
    fault = injected(tmp_path, f"fault: alloc_fail, thread: vcpu0, nth: {FILLED + 1}, times: 1000000", TOUCH)
    ioctl = injected(tmp_path, "fault: alloc_fail, thread: host0", TOUCH, convert)

    assert fault.findings == ioctl.findings == []
    assert fault.counters["vcpu.gave_up.ENOMEM"] == 1
    assert "fault.fixed" not in fault.counters
    assert ioctl.counters["ioctl.set_memory_attributes.errno.12"] == 1
    assert "convert.done" not in ioctl.counters


def test_a_vcpu_that_gets_no_roots_says_so(tmp_path):
    """V3 fails with -ENOMEM: the vCPU gives up, and a counter tells."""
    result = injected(tmp_path, "fault: alloc_fail, thread: vcpu0, times: 1000000", TOUCH)

    assert result.counters["injected_alloc_fail"] >= 1
    assert [name for name in result.counters if "ENOMEM" in name or "errno" in name]


@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8, 13, 21, 34, 55])
def test_a_failed_allocation_is_never_an_exception(tmp_path, nth):
    """Wherever it strikes: an errno or a retry, no finding, no traceback."""
    alias = f"{{touch: {{at: {BASE + 0x100000:#x}, size: 16K, alias: shared}}}}"
    both = f"vcpu0: [{{touch: {{at: {BASE:#x}, size: 16K}}}}, {alias}]"
    result = injected(tmp_path, f"fault: alloc_fail, nth: {nth}", both, PUNCH)

    assert result.findings == []
    assert result.inconclusive == ""
    assert result.counters["injected_alloc_fail"] == 1


def test_an_interrupt_makes_the_guest_exit_and_its_accept_is_resumed(tmp_path):
    """An interrupt at VP.ENTER is pending with interrupts off: the guest leaves, comes back, and all pages get accepted."""
    what = "fault: interrupt, leaf: TDH.VP.ENTER, thread: vcpu0, nth: 2"
    loaded = scenario(tmp_path, TOUCH, extra=f"inject: [{{{what}}}]")
    done = run(loaded)
    clean = run(scenario(tmp_path, TOUCH))

    assert not done.kernel.findings
    assert done.kernel.counters["injected_interrupt"] == 1
    assert done.kernel.counters["exit.EXTERNAL_INTERRUPT"] == 1
    assert "exit.EXTERNAL_INTERRUPT" not in clean.kernel.counters
    assert done.kernel.counters["seamcall.TDH.VP.ENTER"] == clean.kernel.counters["seamcall.TDH.VP.ENTER"] + 1
    states = [state.name for _, _, state, _ in done.world.tdx.module.leaves(done.world.tdx.td)]
    assert states == ["MAPPED"] * 4
