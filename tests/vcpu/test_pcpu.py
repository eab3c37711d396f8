"""IPIs: handled at once, or when interrupts go on, or by way of a guest's exit."""

from __future__ import annotations

import pytest

from sim import Kernel, explore
from tests.vcpu.worlds import dawdle, machine
from vcpu.pcpu import Pcpu, SendIpi, smp_call_function_many


def call(kernel, targets, handled, *, wait=True):
    """A sender as steps; notes its return."""
    yield from smp_call_function_many(kernel, targets, lambda: handled.append("ack"), wait=wait)
    handled.append("returned")


def test_an_ipi_is_handled_in_the_senders_step_while_interrupts_are_on():
    """No step of the target is needed."""
    kernel = Kernel()
    handled = []
    kernel.thread("sender", call(kernel, [Pcpu(kernel, 0)], handled))
    kernel.execute()

    assert handled == ["ack", "returned"]


def test_an_ipi_waits_for_interrupts_and_is_handled_in_that_step():
    """Pending while they are off; the very step that turns them on runs the handler."""
    kernel = Kernel()
    pcpu = Pcpu(kernel, 0)
    seen = []

    def target():
        yield pcpu.irq_disable()
        yield SendIpi(pcpu, lambda: seen.append("handled"))
        seen.append(("pending", pcpu.interrupt_pending, pcpu.interrupt.value))
        yield pcpu.irq_enable()
        seen.append(("on", pcpu.interrupt_pending, pcpu.interrupt.value))

    kernel.thread("target", target())
    kernel.execute()

    assert seen == [("pending", True, True), "handled", ("on", False, False)]


@pytest.mark.parametrize("wait", [True, False])
def test_the_sender_waits_for_all_targets_only_if_asked(wait):
    """The last acknowledgement releases the sender; without wait it does not even need the first."""
    kernel = Kernel()
    pcpus = [Pcpu(kernel, n) for n in range(3)]
    handled = []

    def target(pcpu, after_ns):
        yield pcpu.irq_disable()
        kernel.spend(after_ns)
        yield pcpu.irq_enable()

    for n, pcpu in enumerate(pcpus[:2]):
        kernel.thread(f"target{n}", target(pcpu, 100 * (n + 1)))

    def sender():
        kernel.spend(10)
        yield from call(kernel, pcpus, handled, wait=wait)

    kernel.thread("sender", sender())
    kernel.execute()

    expected = ["ack", "ack", "ack", "returned"] if wait else ["ack", "returned", "ack", "ack"]
    assert handled == expected


def test_nobody_to_call_is_no_step_at_all():
    """An empty mask sends nothing."""
    assert list(smp_call_function_many(Kernel(), [], lambda: None, wait=True)) == []


def test_a_guest_exits_for_an_ipi_wherever_it_arrives():
    """A guest that would run for ever acknowledges: its stay in the guest ends, although it never halts."""

    def world(kernel):
        guest, (vcpu,), pcpus = machine(kernel, entries=1, rounds=10**9)
        handled = []

        def sender():
            yield from dawdle(guest)
            before = guest.inside.get(vcpu)
            yield from call(kernel, pcpus[:1], handled)
            if before is not None and guest.inside.get(vcpu) != before:
                kernel.find("unmet", "it left")  # ends the execution: this guest never would
            kernel.find("unmet", "it was outside, or it stayed")

        kernel.thread("sender", sender())

    report = explore(world, executions=50, max_steps=5000)

    assert "it left" in [finding.title for finding in report.findings]
    assert report.cut == 0


def test_a_guest_does_not_exit_for_what_it_was_not_sent():
    """The control: without an IPI the same guest runs until the step limit."""

    def world(kernel):
        machine(kernel, entries=1, rounds=10**9)

    report = explore(world, executions=1, max_steps=500)

    assert (report.cut, report.findings) == (1, [])
