"""What an IPI orders, as the race detector sees it: sender before handler, every handler before a sender that waits."""

from __future__ import annotations

import pytest

from sim import explore
from vcpu.pcpu import Pcpu, smp_call_function_many


def race_of(world):
    """The data races that random walks show."""
    return [finding.title for finding in explore(world, strategy="random", executions=300).findings]


def waiting_call(k, *, wait, targets):
    """A sender interrupts targets that have interrupts off; it reads their words if each has handled the IPI itself."""
    pcpus = [Pcpu(k, n) for n in range(targets)]
    words = [k.cell(f"word{n}", 0) for n in range(targets)]
    off = k.cell("off", 0)
    handled = []

    def target(pcpu, word):
        yield pcpu.irq_disable()
        yield off.fetch_add(1)
        yield word.write(1)
        yield pcpu.irq_enable()

    def sender():
        yield off.wait_until(lambda n: n == targets)
        yield from smp_call_function_many(k, pcpus, lambda: handled.append(k.current.name), wait=wait)
        yield off.read_once()
        if set(handled) == {f"target{n}" for n in range(targets)}:
            k.reached("every target has handled it")
            for word in words:
                yield word.read()

    for n, (pcpu, word) in enumerate(zip(pcpus, words, strict=True)):
        k.thread(f"target{n}", target(pcpu, word))
    k.thread("sender", sender())
    k.sometimes("every target has handled it")


@pytest.mark.parametrize("targets", [1, 2])
def test_each_handler_happens_before_a_sender_that_waits(targets):
    """Not only the last one to acknowledge."""
    assert race_of(lambda k: waiting_call(k, wait=True, targets=targets)) == []


def test_a_sender_that_does_not_wait_is_not_ordered_after_the_handler():
    """Even if it happens to have run already."""
    assert race_of(lambda k: waiting_call(k, wait=False, targets=1)) != []


@pytest.mark.parametrize("early", [True, False])
def test_the_sender_happens_before_what_follows_the_handler(early):
    """What it wrote before the IPI is there; what it wrote after it is not."""

    def world(k):
        pcpu, word, off = Pcpu(k, 0), k.cell("word", 0), k.cell("off", 0)
        handled = []

        def target():
            yield pcpu.irq_disable()
            yield off.fetch_add(1)
            yield pcpu.irq_enable()
            if handled == ["target"]:
                yield word.read()

        def sender():
            yield off.wait_until(bool)
            if early:
                yield word.write(1)
            yield from smp_call_function_many(k, [pcpu], lambda: handled.append(k.current.name), wait=False)
            if not early:
                yield word.write(1)

        k.thread("target", target())
        k.thread("sender", sender())

    assert (race_of(world) == []) == early
