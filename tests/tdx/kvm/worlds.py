"""Small VMs from YAML, run by a schedule or by time, with every access they made."""

from __future__ import annotations

from typing import NamedTuple

from mmu.fault import kvm_mmu_do_page_fault
from mmu.roots import kvm_mmu_load
from scenarios.build import World, build
from scenarios.loading import load
from sim import Kernel, record
from vcpu.addresses import Gpa

BASE = 0x1000000
GFN = BASE >> 12

TEXT = """\
scenario: small
question: Does it do what the reference says?
machine: {{{machine}}}
td: {{{td}}}
memory: [{memory}]
{extra}
threads:
{threads}
"""


class Step(NamedTuple):
    """One access that was performed: who, what (verb and target), and what came of it."""

    thread: str
    what: str
    value: object


def scenario(folder, *threads, td="vcpus: 1", memory=None, machine="", extra="", name="small"):
    """A scenario, loaded from a file as the program loads it."""
    file = folder / f"{name}.yaml"
    slots = memory or f"{{slot: 0, base: {BASE:#x}, size: 2M}}"
    body = "\n".join(f"  {line}" for line in threads or ("host0: [{wait: {for: 1us}}]",))
    file.write_text(TEXT.format(machine=machine, td=td, memory=slots, extra=extra, threads=body))
    return load(file)


class Run:
    """One execution: its world, its kernel and its steps."""

    world: World
    kernel: Kernel

    def __init__(self):
        self.steps: list[Step] = []

    def note(self, kernel, thread, access):
        if access.processed:
            self.steps.append(Step(thread.name, repr(access), access.value))

    def of(self, thread, *parts):
        """What `thread` did to targets whose name has one of `parts`, in order."""
        return [s.what for s in self.steps if s.thread == thread and any(part in s.what for part in parts)]


INSIDE = "inside"
"""A schedule: host0 begins when vcpu0 is in the guest and computes."""


def run(loaded, picks=None, more=None):
    """Execute by schedule, or by time if there is none; `more(world)` may add threads to the world."""
    if picks == INSIDE:
        alone = [step.what for step in run(loaded, "vcpu0*5000").steps if step.thread == "vcpu0"]
        picks = f"vcpu0*{alone.index('time-out of cpu0.intr') + 1} host0*5000"
    done = Run()

    def make(kernel):
        done.world, done.kernel = build(kernel, loaded), kernel
        kernel.check(done.note)
        if more is not None:
            more(done.world)

    if picks is not None:
        record(make, picks)
    else:
        make(Kernel(stop_at_finding=False))
        done.kernel.execute()
    return done


def fault(world, gpa=BASE, *, private=True, prefetch=False):
    """One pass through the fault handler on vcpu0, as steps that return the outcome."""
    kvm, vcpu = world.kvm, world.kvm.vcpus[0]
    yield kvm.srcu.read_lock()
    if vcpu.arch.root is None:
        yield from kvm_mmu_load(kvm, vcpu)
    outcome, _ = yield from kvm_mmu_do_page_fault(
        kvm, vcpu, Gpa(gpa), "write", is_private=private, prefetch=prefetch
    )
    yield kvm.srcu.read_unlock()
    return outcome


def in_order(steps, *wanted):
    """The places in `steps` of texts that contain each of `wanted`, each searched behind the one before."""
    at = -1
    places = []
    for part in wanted:
        at = next((n for n in range(at + 1, len(steps)) if part in steps[n]), -1)
        assert at >= 0, f"no {part!r} behind the others in:\n" + "\n".join(steps)
        places.append(at)
    return places
