"""The composition root: a scenario becomes a world. The only place where layers are wired to each other.

Building takes no virtual time and makes no choice: a TD that the scenario does not build by hand is created, filled and
finalized before its threads start (`Kernel.prepare`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from mmu.caches import VcpuCaches
from mmu.fault import VcpuMmu
from mmu.host_memory import FIRST_PFN, HostMemory
from mmu.memslots import Memslot, Memslots
from mmu.vcpu_ops import VmOps
from mmu.vm import Kvm
from scenarios import inject, oracles
from scenarios.accepted_races import accept_races
from scenarios.programs import GuestProgram, HostProgram, back_slot, new_slot
from scenarios.schema import Program, Scenario
from sim import Kernel, Thread
from tdx.kvm.life import init_mem_region, td_finalize, td_init, td_vcpu_init
from tdx.kvm.properties import watch
from tdx.kvm.sept import TdxSept
from tdx.kvm.state import KvmTdx
from tdx.kvm.vcpu_ops import TdxOps
from tdx.module import LogicalProcessor, Td, TdxModule, profile_named
from vcpu.addresses import GfnRange, direct_bits, gfn_of
from vcpu.guest import Guest
from vcpu.memory import Memory
from vcpu.pcpu import Pcpu
from vcpu.run import vcpu_thread
from vcpu.vcpu import Vcpu

FOLIO_ORDER = {"4K": 0, "2M": 9, "1G": 18}
HKID = 32
MAX_VCPUS = 576


@dataclass(slots=True)
class World:
    """Everything a scenario made: for programs, properties and reports."""

    kernel: Kernel
    scenario: Scenario
    kvm: Kvm
    tdx: KvmTdx | None = None
    vcpu_threads: dict[int, Thread] = field(default_factory=dict)
    slots_made: int = 0
    accepted: set[int] = field(default_factory=set)
    """Frames the guest has accepted: Linux's unaccepted-memory bitmap, inverted."""

    @property
    def is_td(self) -> bool:
        """Whether the guest must accept its memory."""
        return self.tdx is not None

    @property
    def shared_bit_mask(self) -> int:
        """The shared bit as an address, 0 where there is none."""
        return self.kvm.direct_bits << 12

    def must_accept(self, gfn: int) -> bool:
        """Whether a private touch of the frame needs an ACCEPT first."""
        return self.tdx is not None and gfn not in self.accepted

    def taken_by_host(self, gfns: GfnRange) -> None:
        """A host thread takes frames from the guest unasked."""
        if self.tdx is not None:
            self.tdx.taken_by_host.update(gfns.frames())
        if self.kvm.ledger is not None:
            self.kvm.ledger.content.give_up(gfns.frames())

    def make_slot(
        self, number: int, base: int, size: int, backing: str, flags: frozenset[str], *, running: bool = False
    ) -> Memslot:
        """A backed memslot; a running VM's new slots start shared."""
        self.slots_made += 1
        slot = new_slot(self, number, base, size, flags)
        back_slot(self, slot, FOLIO_ORDER[backing])
        if running:
            self.kernel.count("memslot.made")
        return slot


def build(kernel: Kernel, scenario: Scenario, *, judged: bool = True) -> World:
    """Fill `kernel` with the scenario's machine, VM and threads. Costs, histograms and events are the caller's to set.

    Args:
        judged: attach the checkers of `scenarios.oracles`; False only to measure what they cost.
    """
    pcpus = [Pcpu(kernel, index) for index in range(scenario.pcpus)]
    memory = Memory(kernel)
    host_memory = HostMemory(kernel, scenario.machine.host_memory >> 12)
    host_memory.on_clear.append(memory.zero)
    td = scenario.td
    shared_bit = td.shared_bit if td.kind == "tdx" else None
    kvm = Kvm(
        kernel,
        pcpus=pcpus,
        memory=memory,
        host_memory=host_memory,
        root_level=5 if shared_bit == 51 else 4,
        direct_bits=direct_bits(shared_bit),
        has_private_mem=scenario.has_private_memory,
    )
    world = World(kernel, scenario, kvm)
    _make_memory(world)
    guest = Guest(kernel, memory)
    programs = scenario.programs()
    if td.kind == "tdx":
        _make_td(world, pcpus)
    ops = VmOps(kvm, guest) if world.tdx is None else TdxOps(world.tdx, guest)
    for index in range(td.vcpus):
        program = programs[f"vcpu{index}"]
        vcpu = Vcpu(kernel, index, GuestProgram(world, program).instructions())
        vcpu.arch = VcpuMmu(VcpuCaches(host_memory, has_mirrored_tdp=world.is_td))
        vcpu.ops = ops
        vcpu.guest = ops
        kvm.vcpus.append(vcpu)
    if world.tdx is not None:
        _bring_up(world, world.tdx)
    inject.arm(world)
    watch(kernel, kvm, world.tdx)
    if judged:
        oracles.attach(kernel, kvm)
    accept_races(kernel)
    _start_threads(world, guest, programs)
    return world


def _make_memory(world: World) -> None:
    kvm = world.kvm
    for part in world.scenario.memory:
        if kvm.has_private_mem and part.initially == "private":
            kvm.attributes.set_initial(gfn_of(part.base), gfn_of(part.end), kvm.attributes.PRIVATE)
    slots = [
        world.make_slot(part.slot, part.base, part.size, part.backing, frozenset(part.flags))
        for part in world.scenario.memory
    ]
    kvm.memslots.cell.v = Memslots(tuple(slots))


def _make_td(world: World, pcpus: list[Pcpu]) -> None:
    kernel, kvm, scenario = world.kernel, world.kvm, world.scenario
    pages = scenario.machine.host_memory >> 12
    module = TdxModule(
        kernel,
        tdmr=[(FIRST_PFN, FIRST_PFN + pages)],
        zero_step=scenario.td.zero_step,
        profile=profile_named(scenario.td.module),
    )
    module.on_page_zeroed = partial(kvm.memory.zero, key=HKID)
    tdr = Td(kvm.host_memory.alloc(0, "tdr"))

    def flusher(pcpu: Pcpu, tdr_pfn: int) -> None:
        pcpu.tlb.flush(f"sept[{tdr_pfn:#x}]")

    lps = [LogicalProcessor(pcpu.index, flush_tlb=partial(flusher, pcpu)) for pcpu in pcpus]
    world.tdx = kvm.arch = KvmTdx(kvm, module, tdr, HKID, lps)
    kvm.external = TdxSept(world.tdx)
    kvm.pre_fault_allowed.v = False


def _bring_up(world: World, tdx: KvmTdx) -> None:
    """Create the TD and its vCPUs; unless the scenario does it by hand, also fill and finalize it."""
    kernel, td = world.kernel, world.scenario.td
    kernel.prepare(
        td_init(
            tdx,
            pending_ve_disable=td.pending_ve_disable,
            gpaw=td.shared_bit == 51,
            max_vcpus=td.max_vcpus or MAX_VCPUS,
        )
    )
    for vcpu in world.kvm.vcpus:
        kernel.prepare(td_vcpu_init(tdx, vcpu))
    if td.build == "manual":
        return
    if td.initial_memory:
        first = next(slot for slot in world.scenario.memory if slot.initially == "private")
        gfns = GfnRange(gfn_of(first.base), gfn_of(first.base + td.initial_memory))
        kernel.prepare(init_mem_region(tdx, world.kvm.vcpus[0], gfns))
        world.accepted.update(gfns.frames())
    kernel.prepare(td_finalize(tdx))


def _start_threads(world: World, guest: Guest, programs: dict[str, Program]) -> None:
    kernel, kvm = world.kernel, world.kvm
    for name, program in programs.items():
        if name.startswith("vcpu"):
            if program.steps:
                vcpu = kvm.vcpus[program.index]
                start_ns = _start_ns(program)
                thread = kernel.thread(
                    name, vcpu_thread(kernel, vcpu, guest, kvm.pcpus, kvm.srcu), start_ns=start_ns
                )
                world.vcpu_threads[program.index] = thread
        else:
            kernel.thread(name, HostProgram(world, program).run())


def _start_ns(program: Program) -> int:
    """A vCPU's first step `wait` is the time it starts at."""
    first = program.steps[0]
    return int(first.args.ns) if first.verb == "wait" else 0
