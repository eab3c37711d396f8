"""Physical CPUs: interrupts on and off, IPIs that wait for them, and who runs where.

An IPI sent to a pCPU whose interrupts are on is handled at once; with interrupts off it stays pending until they go on,
or, while a guest runs there, makes the guest exit (an external interrupt exits whatever the guest's own flag says). The
sender of a waiting call (smp_call_function_many with wait) goes on when every handler has run.
Source: kernel/smp.c; reference 7.2. Not modelled: NMIs, interrupt priorities, the handler's own preemption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sim import BLOCKED, Access, Kernel, Signal, Steps
from sim.dependence import READ, UPDATE, WRITE, Touch, note
from sim.syncs import GIVES, TAKES
from vcpu.tlb import Tlb

if TYPE_CHECKING:
    from sim import Thread

Handler = Callable[[], None]
"""What an IPI runs on its target: a plain call, part of the step in which it is handled."""


class Pcpu:
    """One logical processor: interrupt state, pending IPIs, TLB, and its run queue."""

    def __init__(self, kernel: Kernel, index: int) -> None:
        self.kernel = kernel
        self.index = index
        self.irqs = f"cpu{index}.irqs"
        self.queue = f"cpu{index}.queue"
        self.irqs_on = True
        self.pending: list[Handler] = []
        self.interrupt = Signal(kernel, f"cpu{index}.intr")
        self.tlb = Tlb()
        self.running: Any = None
        self.runner: Thread | None = None
        self.run_queue: list[tuple[Thread, Any]] = []

    def __str__(self) -> str:
        return f"cpu{self.index}"

    @property
    def idle(self) -> bool:
        """Whether no vCPU is loaded on it. Never yields."""
        note(self.queue, READ)
        return self.running is None

    @property
    def wanted(self) -> bool:
        """Whether somebody stands in line for it. Never yields."""
        note(self.queue, READ)
        return bool(self.run_queue)

    def holders(self) -> list[Thread]:
        """The thread that runs on it, for the wait-for graph."""
        return [] if self.runner is None else [self.runner]

    def irq_disable(self) -> Access:
        """local_irq_disable."""
        return IrqOff(self)

    def irq_enable(self) -> Access:
        """local_irq_enable: pending IPIs are handled in this very step."""
        return IrqOn(self)

    @property
    def interrupt_pending(self) -> bool:
        """Whether an IPI waits. Never yields; a guest asks at its instruction boundaries."""
        note(self.irqs, READ)
        return bool(self.pending)

    def deliver(self, handler: Handler) -> None:
        """An IPI arrives (part of the sender's step)."""
        if self.irqs_on:
            handler()
            return
        self.pending.append(handler)
        self.interrupt.set()

    def handle_pending(self) -> None:
        """Interrupts went on."""
        self.irqs_on = True
        self.interrupt.value = False
        self.kernel.sync(TAKES, self.interrupt)
        pending, self.pending = self.pending, []
        for handler in pending:
            handler()


class IrqOff(Access):
    """local_irq_disable."""

    __slots__ = ()
    verb = "irq off"
    writes = True
    target: Pcpu

    def perform(self, thread: Thread) -> None:
        self.target.irqs_on = False

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.irqs, WRITE),)


class IrqOn(Access):
    """local_irq_enable, and the handlers that waited for it."""

    __slots__ = ()
    verb = "irq on"
    writes = True
    target: Pcpu

    def perform(self, thread: Thread) -> None:
        self.target.handle_pending()

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.irqs, WRITE), (self.target.interrupt.name, WRITE))


class SendIpi(Access):
    """Send one IPI; handled now or when the target's interrupts go on."""

    __slots__ = ("handler",)
    verb = "ipi to"
    writes = True
    target: Pcpu

    def __init__(self, target: Pcpu, handler: Handler) -> None:
        self.target = target
        self.handler = handler

    def perform(self, thread: Thread) -> None:
        self.target.deliver(self.handler)

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.irqs, WRITE),)


def smp_call_function_many(
    kernel: Kernel, targets: Sequence[Pcpu], handler: Handler, *, wait: bool
) -> Steps[None]:
    """Run `handler` on every target by IPI; with `wait`, go on only when all of them have run it.

    Cost: `host_ipi_base` for the first target, `host_ipi_per_target` for each further one.
    """
    if not targets:
        return
    arrived = kernel.signal("ipi.ack")
    left = len(targets)

    def handle_and_acknowledge() -> None:
        nonlocal left
        handler()
        note(arrived.name, UPDATE)  # the order of those before the last shows nowhere
        kernel.sync(GIVES, arrived)
        left -= 1
        if not left:
            arrived.set()

    arrived.owed_by = lambda: [
        runner
        for target in targets
        if handle_and_acknowledge in target.pending
        for runner in target.holders()
    ]
    kernel.charge("host_ipi_base")
    for n, target in enumerate(targets):
        if n:
            kernel.charge("host_ipi_per_target")
        yield SendIpi(target, handle_and_acknowledge)
    if wait:
        yield arrived.wait()


class Schedule(Access):
    """Get the pCPU for a vCPU thread, waiting behind those that came first."""

    __slots__ = ("vcpu",)
    verb = "schedule on"
    writes = acquires = True
    target: Pcpu

    def __init__(self, target: Pcpu, vcpu: Any) -> None:
        self.target = target
        self.vcpu = vcpu

    def perform(self, thread: Thread) -> Any:
        pcpu = self.target
        if pcpu.running is None:
            pcpu.running = self.vcpu
            pcpu.runner = thread
            return None
        pcpu.run_queue.append((thread, self.vcpu))
        return BLOCKED

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.queue, WRITE),)


class Deschedule(Access):
    """Give the pCPU up to the next in line."""

    __slots__ = ()
    verb = "leave"
    writes = releases = True
    target: Pcpu

    def perform(self, thread: Thread) -> None:
        pcpu = self.target
        pcpu.running = pcpu.runner = None
        if pcpu.run_queue:
            waiter, pcpu.running = pcpu.run_queue.pop(0)
            pcpu.runner = waiter
            pcpu.kernel.wake(waiter)

    def touches(self) -> tuple[Touch, ...]:
        return ((self.target.queue, WRITE),)
