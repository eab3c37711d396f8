"""Bad luck on request (`inject:`): a busy SEAMCALL, a failed allocation, an interrupt at a bad moment.

Each injection counts its opportunities from 1 and strikes at the n-th, `times` in a row. What follows is what the kernel
does about it, up to KVM_BUG_ON, which is a finding and not an exception.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tdx.module import Status

if TYPE_CHECKING:
    from scenarios.build import World
    from scenarios.schema import Injection


def arm(world: World) -> None:
    """Install the scenario's injections."""
    injections = world.scenario.inject
    busy = [_strikes(i) for i in injections if i.fault == "seamcall_busy"]
    interrupts = [_strikes(i) for i in injections if i.fault == "interrupt"]
    failures = [_strikes(i) for i in injections if i.fault == "alloc_fail"]
    kernel = world.kernel
    if failures:

        def may_fail(_what: str) -> bool:
            struck = sum(strikes("", kernel.current.name) for strikes in failures)  # each one counts
            if struck:
                kernel.reached("injected_alloc_fail")
            return bool(struck)

        world.kvm.host_memory.may_fail = may_fail
    if world.tdx is not None and (busy or interrupts):

        def refuse(leaf: str, thread: str) -> Status | None:
            if sum(strikes(leaf, thread) for strikes in interrupts):
                _interrupt(world, thread)
            if sum(strikes(leaf, thread) for strikes in busy):
                kernel.reached("injected_seamcall_busy")
                return Status.TDX_OPERAND_BUSY
            return None

        world.tdx.module.inject = refuse


def _strikes(injection: Injection) -> Callable[[str, str], bool]:
    seen = 0

    def strikes(leaf: str, thread: str) -> bool:
        nonlocal seen
        if (injection.leaf not in (None, leaf) and leaf) or injection.thread not in (None, thread):
            return False
        seen += 1
        return injection.nth <= seen < injection.nth + injection.times

    return strikes


def _interrupt(world: World, thread: str) -> None:
    """An interrupt arrives at the pCPU of that vCPU; with interrupts off it waits, and a guest exits for it."""
    for index, running in world.vcpu_threads.items():
        vcpu = world.kvm.vcpus[index]
        if running.name == thread and vcpu.pcpu is not None:
            world.kernel.reached("injected_interrupt")
            vcpu.pcpu.deliver(lambda: None)
