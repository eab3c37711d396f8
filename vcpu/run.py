"""KVM_RUN: the loop around a guest, steps V1 to V15 of the reference (section 9; x86.c, vcpu_enter_guest).

The order is the point: `mode` is set before requests are looked at a last time, with interrupts off, so that whoever
changes a page table and then looks at `mode` either sees IN_GUEST_MODE and sends an IPI, or is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sim import Kernel, Steps
from sim.rcu import Srcu
from vcpu.events import KvmEntry, KvmExit
from vcpu.exits import ExitReason, GuestExit
from vcpu.pcpu import Deschedule, Pcpu, Schedule
from vcpu.vcpu import TIME_SLICE_NS, Mode, Vcpu

if TYPE_CHECKING:
    from vcpu.guest import Guest


def vcpu_thread(kernel: Kernel, vcpu: Vcpu, guest: Guest, pcpus: Sequence[Pcpu], srcu: Srcu) -> Steps[None]:
    """A vCPU's thread in the VMM: run the program to its end, answering every exit to userspace."""
    if not guest.begin(vcpu):
        return
    again = True
    while again and not vcpu.shut_down:
        code = yield from vcpu_run(kernel, vcpu, pcpus, srcu)
        if not vcpu.shut_down:
            again = yield from vcpu.ops.user_exit(vcpu, code)


def vcpu_run(kernel: Kernel, vcpu: Vcpu, pcpus: Sequence[Pcpu], srcu: Srcu) -> Steps[int]:
    """kvm_arch_vcpu_ioctl_run: load, loop, put. Returns 0 for an exit to userspace, or a negative errno."""
    yield from vcpu_load(kernel, vcpu, pcpus)
    yield srcu.read_lock()
    code = 1
    while code > 0 and not vcpu.shut_down:
        code = yield from vcpu_enter_guest(kernel, vcpu, srcu)
        if code > 0 and vcpu.pcpu.wanted and kernel.now_ns - vcpu.slice_began_ns >= TIME_SLICE_NS:
            yield srcu.read_unlock()
            yield from vcpu_put(vcpu)
            yield from vcpu_load(kernel, vcpu, pcpus)
            yield srcu.read_lock()
    yield srcu.read_unlock()
    yield from vcpu_put(vcpu)
    return code


def vcpu_load(kernel: Kernel, vcpu: Vcpu, pcpus: Sequence[Pcpu]) -> Steps[None]:
    """Get a pCPU: an idle one, the last one first, else stand in line at the last one; then vcpu_load of the vendor."""
    home = vcpu.last_pcpu or pcpus[vcpu.index % len(pcpus)]
    pcpu = home
    if not home.idle:
        pcpu = next((other for other in pcpus if other.idle), home)
    yield Schedule(pcpu, vcpu)
    previous, vcpu.pcpu, vcpu.last_pcpu = vcpu.last_pcpu, pcpu, pcpu
    vcpu.slice_began_ns = kernel.now_ns
    yield from vcpu.ops.load(vcpu, previous)
    yield vcpu.cpu.write_once(pcpu.index)


def vcpu_put(vcpu: Vcpu) -> Steps[None]:
    """Give the pCPU to the next in line. `cpu` keeps its value, as in the kernel: mode says that we are outside."""
    yield Deschedule(vcpu.pcpu)


def vcpu_enter_guest(kernel: Kernel, vcpu: Vcpu, srcu: Srcu) -> Steps[int]:
    """One round: V1 to V15. Called with SRCU read-held. Returns 1 to loop, 0 or negative to leave."""
    ops = vcpu.ops
    pcpu = vcpu.pcpu
    pending = yield vcpu.requests.read_once()  # V1
    if pending:
        code = yield from ops.service_requests(vcpu)
        if code <= 0:
            return code
    code = yield from ops.reload_mmu(
        vcpu
    )  # V3; V2 (event injection) and V4 (preemption off) touch nothing shared here
    if code <= 0:
        return code
    yield pcpu.irq_disable()  # V5
    yield vcpu.mode.store_release(Mode.IN_GUEST_MODE)  # V6
    yield srcu.read_unlock()  # V7; V8 (posted interrupts) is not modelled
    mode = yield vcpu.mode.read()  # V9
    pending = yield vcpu.requests.read_once()  # V9
    if mode == Mode.EXITING_GUEST_MODE or pending:
        yield vcpu.mode.write(Mode.OUTSIDE_GUEST_MODE)
        yield pcpu.irq_enable()
        yield srcu.read_lock()
        return 1
    if kernel.events is not None:
        kernel.emit(KvmEntry(vcpu.index, vcpu.rip))
    guest_exit = yield from ops.run(vcpu)  # V10
    if guest_exit is not None and kernel.events is not None:
        _trace_exit(kernel, vcpu, guest_exit)  # V11
    yield vcpu.mode.write(Mode.OUTSIDE_GUEST_MODE)  # V12, F02
    yield pcpu.irq_enable()  # V13, F02: pending kicks are acknowledged here
    yield srcu.read_lock()  # V14, F02
    if guest_exit is None:
        kernel.count("vcpu.exit_handled")
        kernel.retried("guest entry")
        yield from ops.await_entry(vcpu)
        return 1
    kernel.count(f"exit.{guest_exit.reason.name}")
    if guest_exit.reason is ExitReason.EXTERNAL_INTERRUPT:
        return 1
    return (yield from ops.handle_exit(vcpu, guest_exit))  # V15


def _trace_exit(kernel: Kernel, vcpu: Vcpu, guest_exit: GuestExit) -> None:
    kernel.emit(
        KvmExit(vcpu.index, guest_exit.reason.name, vcpu.rip, guest_exit.qualification, guest_exit.extended)
    )
