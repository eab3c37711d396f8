"""kvm_make_all_cpus_request and the run loop: whoever changes something and kicks is obeyed afterwards."""

from __future__ import annotations

import pytest

from sim import Kernel, explore
from sim.patches import Replacement, applied
from tests.vcpu.worlds import change_then_kick, dawdle, machine
from vcpu import run
from vcpu.exits import ExitReason
from vcpu.vcpu import (
    FREE_OBSOLETE_ROOTS,
    LOAD_MMU_PGD,
    OUTSIDE_GUEST_MODE,
    TLB_FLUSH,
    UNBLOCK,
    VM_DEAD,
    Mode,
    kvm_make_all_cpus_request,
    kvm_request_needs_ipi,
)

WAITING = [TLB_FLUSH, VM_DEAD, FREE_OBSOLETE_ROOTS, OUTSIDE_GUEST_MODE]
OTHERS = [UNBLOCK, LOAD_MMU_PGD]


@pytest.mark.parametrize("request_", WAITING + OTHERS, ids=lambda r: r.name)
@pytest.mark.parametrize("mode", Mode)
def test_who_needs_an_ipi(request_, mode):
    """A WAIT request interrupts whoever is not outside, any other only who is in the guest (reference 7.2, step 4)."""
    expected = mode != Mode.OUTSIDE_GUEST_MODE if request_ in WAITING else mode == Mode.IN_GUEST_MODE

    assert kvm_request_needs_ipi(request_, mode) is expected


def test_request_bits_are_the_kernels():
    """Numbers of reference 7.1; no two that set a bit share it."""
    assert (TLB_FLUSH.mask, VM_DEAD.mask, UNBLOCK.mask) == (1, 2, 4)
    assert FREE_OBSOLETE_ROOTS.bit == 8 + 31
    masks = [r.mask for r in WAITING + OTHERS if not r.no_action]
    assert len(set(masks)) == len(masks)


def requested(request):
    """The accesses of one call to a vCPU that is outside, and its request word afterwards."""
    kernel = Kernel()
    done = []
    _, vcpus, pcpus = machine(Kernel())

    def caller():
        yield from kvm_make_all_cpus_request(kernel, vcpus, pcpus, request)

    kernel.check(lambda *step: done.append(repr(step[-1])))
    kernel.thread("host0", caller())
    kernel.execute()
    return done[1:], vcpus[0].requests.peek()


def test_the_request_is_set_before_the_mode_is_read():
    """The other way round a vCPU could enter between the two and miss both."""
    assert requested(TLB_FLUSH) == (["fetch_or vcpu0.requests", "cmpxchg vcpu0.mode"], TLB_FLUSH.mask)


def test_outside_guest_mode_sets_no_bit():
    """NO_ACTION: there is nothing to serve."""
    assert requested(OUTSIDE_GUEST_MODE) == (["cmpxchg vcpu0.mode"], 0)


def test_unblock_wakes_before_the_mode_is_read():
    """Without NO_WAKEUP a sleeping vCPU is woken."""
    assert requested(UNBLOCK)[0] == ["fetch_or vcpu0.requests", "signal vcpu0.wake", "cmpxchg vcpu0.mode"]


def kicked_world(request, vcpus=2):
    """After the call each vCPU that was inside at its beginning has left, if only to enter again."""

    def world(kernel):
        guest, made, pcpus = machine(kernel, vcpus=vcpus, entries=3)

        def host():
            yield from dawdle(guest)
            inside = dict(guest.inside)
            yield from kvm_make_all_cpus_request(kernel, made, pcpus, request, here=pcpus[-1])
            if inside:
                kernel.reached("kicked somebody")
            if any(guest.inside.get(vcpu) == number for vcpu, number in inside.items()):
                kernel.find("unmet", "a vCPU has not left since the call began")

        kernel.thread("host0", host())
        kernel.sometimes("kicked somebody")

    return world


@pytest.mark.parametrize("request_", [OUTSIDE_GUEST_MODE, TLB_FLUSH], ids=lambda r: r.name)
def test_the_caller_returns_when_each_running_vcpu_has_left(request_):
    """Random interleavings of two vCPUs and a kicker."""
    report = explore(kicked_world(request_), executions=300)

    assert report.clean, report.findings or report.unmet


def test_a_request_that_does_not_wait_returns_too_early():
    """The control: the same world with WAIT taken off is caught."""
    report = explore(
        kicked_world(OUTSIDE_GUEST_MODE._replace(wait=False)), executions=300, stop_at_first=True
    )

    assert [finding.kind for finding in report.findings] == ["unmet"]


def flush_world(request=TLB_FLUSH):
    """A writer changes a word and kicks; a guest reads the word through its TLB."""

    def world(kernel):
        guest, vcpus, pcpus = machine(kernel, entries=3)
        kernel.thread("host0", change_then_kick(kernel, guest, vcpus, pcpus, request))
        kernel.sometimes("exited for the kick", lambda: "exit.EXTERNAL_INTERRUPT" in kernel.counters)

    return world


def test_no_guest_sees_the_old_word_after_the_kick():
    """Flush requested, everybody out: an entry after it starts with an empty TLB."""
    report = explore(flush_world(), executions=1000)

    assert report.clean, report.findings or report.unmet


def test_a_kick_that_asks_for_no_flush_leaves_the_old_word_in_the_tlb():
    """The control: OUTSIDE_GUEST_MODE alone is not a shootdown."""
    report = explore(flush_world(OUTSIDE_GUEST_MODE), executions=1000, stop_at_first=True)

    assert [finding.kind for finding in report.findings] == ["stale-tlb"]


def mode_after_requests(kernel, vcpu, srcu):
    """vcpu_enter_guest with V6 behind V9: "mode = IN_GUEST after request check" of reference 7.5."""
    ops, pcpu = vcpu.ops, vcpu.pcpu
    if (yield vcpu.requests.read_once()):
        yield from ops.service_requests(vcpu)
    yield pcpu.irq_disable()
    yield srcu.read_unlock()
    mode = yield vcpu.mode.read()
    pending = yield vcpu.requests.read_once()
    if mode == Mode.EXITING_GUEST_MODE or pending:
        yield pcpu.irq_enable()
        yield srcu.read_lock()
        return 1
    yield vcpu.mode.store_release(Mode.IN_GUEST_MODE)
    guest_exit = yield from ops.run(vcpu)
    yield vcpu.mode.write(Mode.OUTSIDE_GUEST_MODE)
    yield pcpu.irq_enable()
    yield srcu.read_lock()
    if guest_exit.reason is ExitReason.EXTERNAL_INTERRUPT:
        return 1
    return (yield from ops.handle_exit(vcpu, guest_exit))


def test_looking_at_requests_before_setting_the_mode_is_caught():
    """The planted swap: the kicker sees OUTSIDE, the vCPU sees no request, and the guest runs on its old TLB."""
    with applied([Replacement(run.vcpu_enter_guest, mode_after_requests)]):
        report = explore(flush_world(), executions=1000, stop_at_first=True, races=False)

    assert [finding.kind for finding in report.findings] == ["stale-tlb"]
