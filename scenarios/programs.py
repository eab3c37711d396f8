"""Verbs become programs: what a scenario's steps mean, for guests as instructions and for host threads as ioctls.

A TD's guest behaves as Linux does: it never touches a private page that it has not accepted. `touch` therefore accepts a
page first if nobody in the guest has (lazily, 4K); `accept` says when and in which size instead. Where it asks for 2M and
meets smaller mappings (PAGE_SIZE_MISMATCH) it goes on in 4K, and a busy ACCEPT is issued again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from mmu.conversion import kvm_vm_set_mem_attributes
from mmu.gmem import GmemFile, GmemInode
from mmu.gmem_paths import kvm_gmem_punch_hole
from mmu.host_memory import Vma
from mmu.memslot_paths import create_memslot, delete_memslot, move_memslot
from mmu.memslots import Memslot, SlotFlag
from mmu.notifier import invalidate_hva_range
from mmu.prefault import kvm_vcpu_pre_fault_memory
from mmu.zap import kvm_mmu_zap_all_fast
from scenarios import schema
from sim import Steps
from tdx.kvm.life import init_mem_region, td_finalize, vm_destroy
from vcpu import guest
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, GfnRange, Gpa, PgLevel, gfn_of
from vcpu.guest import AcceptStatus, Instruction, Program
from vcpu.vcpu import UNBLOCK

if TYPE_CHECKING:
    from scenarios.build import World

PAGE = 4096
HVA_BASE = 0x7F00_0000_0000
"""Where the VMM maps slots: each in a window of its own, at the guest physical address, so that both are aligned alike."""
HVA_WINDOW = 1 << 52
TEN_SECONDS_NS = 10_000_000_000

Part = Generator[Instruction, Any, None]


def gfns_of(args: schema.Range) -> GfnRange:
    """The frames of a verb's range."""
    return GfnRange(gfn_of(args.at), gfn_of(args.end + PAGE - 1))


class GuestProgram:
    """Turns the steps of one vCPU into instructions."""

    def __init__(self, world: World, program: schema.Program) -> None:
        self.world = world
        self.program = program
        self.random = world.kernel.stream(f"data.{program.thread}")

    def instructions(self) -> Program:
        """The whole program. A leading `wait` is not in it: it says when the thread starts."""
        steps = self.program.steps
        if steps and steps[0].verb == "wait":
            steps = steps[1:]
        yield from self._steps(steps)

    def _steps(self, steps: tuple[Any, ...]) -> Part:
        for step in steps:
            yield from getattr(self, f"_{step.verb}")(step.args)

    def _touch(self, args: schema.Touch) -> Part:
        shared = args.alias == "shared"
        bit = self.world.shared_bit_mask if shared else 0
        for gpa in self._addresses(args):
            if not shared and self.world.must_accept(gfn_of(gpa)):
                yield from self._accept_one(gpa & -PAGE, PG_LEVEL_4K)
            yield guest.Touch(Gpa(gpa | bit), args.access)

    def _addresses(self, args: schema.Touch) -> Iterator[int]:
        start, end = self.program.part_of(args)
        places = max(1, -(-(end - start) // args.stride))
        for n in range(args.count if args.count is not None else places):
            place = self.random.below(places) if args.pick == "random" else n % places
            yield start + place * args.stride

    def _accept(self, args: schema.Accept) -> Part:
        start, end = self.program.part_of(args)
        gpa = start
        while gpa < end:
            level = PG_LEVEL_4K
            if (
                args.order in ("linux", "2M")
                and gpa % PG_LEVEL_2M.size == 0
                and gpa + PG_LEVEL_2M.size <= end
            ):
                level = PG_LEVEL_2M
            if args.policy == "touch_first":
                yield guest.Touch(Gpa(gpa))
            else:
                yield from self._accept_one(gpa, level)
                if args.policy == "lazy":
                    yield guest.Touch(Gpa(gpa))
            gpa += level.size

    def _accept_one(self, gpa: int, level: PgLevel) -> Part:
        """Accept one block, as Linux's accept_page() and try_accept_one() do.

        A mismatch at 4K is spurious: module 1.5.01 looks at the entry before it locks it, and an AUG was faster.
        """
        if not self.world.is_td:
            return
        again = (
            {AcceptStatus.BUSY} if level > PG_LEVEL_4K else {AcceptStatus.BUSY, AcceptStatus.SIZE_MISMATCH}
        )
        status = AcceptStatus.BUSY
        while status in again:
            status = yield guest.Accept(Gpa(gpa), level)
        if status is AcceptStatus.SIZE_MISMATCH:
            for page in range(gpa, gpa + level.size, PAGE):
                yield from self._accept_one(page, PG_LEVEL_4K)
            return
        self.world.accepted.update(range(gpa >> 12, (gpa >> 12) + level.pages))

    def _map_gpa(self, args: schema.MapGpa) -> Part:
        """set_memory_encrypted, set_memory_decrypted: MapGPA, and to private an ACCEPT of all of it."""
        gfns = gfns_of(args)
        private = args.to == "private"
        self.world.accepted.difference_update(gfns.frames())
        done = yield guest.MapGpa(Gpa(args.at), args.size, private)
        if done and private:
            for gfn in gfns.frames():
                yield from self._accept_one(gfn << 12, PG_LEVEL_4K)

    def _compute(self, args: schema.Duration) -> Part:
        yield guest.Compute(args.ns)

    def _halt(self, args: schema.Nothing) -> Part:
        yield guest.Halt(TEN_SECONDS_NS)

    def _wait(self, args: schema.Duration) -> Part:
        yield guest.Halt(args.ns)

    def _repeat(self, args: schema.GuestRepeat) -> Part:
        for _ in range(args.times):
            yield from self._steps(args.do)


class HostProgram:
    """Turns the steps of one host thread into what its system calls do."""

    def __init__(self, world: World, program: schema.Program) -> None:
        self.world = world
        self.program = program

    def run(self) -> Steps[None]:
        """The whole program."""
        yield from self._steps(self.program.steps)

    def _steps(self, steps: tuple[Any, ...]) -> Steps[None]:
        for step in steps:
            yield from getattr(self, f"_{step.verb}")(step.args)
            self.world.kernel.progressed()

    def _set_memory_attributes(self, args: schema.SetAttributes) -> Steps[None]:
        gfns = gfns_of(args)
        self.world.taken_by_host(gfns)
        error = yield from kvm_vm_set_mem_attributes(self.world.kvm, gfns, private=args.to == "private")
        self._note("set_memory_attributes", error)

    def _punch_hole(self, args: schema.Range) -> Steps[None]:
        gfns = gfns_of(args)
        self.world.taken_by_host(gfns)
        for slot in self.world.kvm.slots().overlapping(gfns.start, gfns.end):
            file = slot.gmem.file.peek() if slot.gmem is not None else None
            if file is not None:
                first, last = max(gfns.start, slot.base_gfn), min(gfns.end, slot.end_gfn) - 1
                yield from kvm_gmem_punch_hole(
                    self.world.kvm, file, slot.gmem_index(first), slot.gmem_index(last) + 1
                )

    def _memslot_delete(self, args: schema.SlotDelete) -> Steps[None]:
        slot = self.world.kvm.slots().by_id(args.slot)
        if slot is None:
            self._note("memslot_delete", -2)
            return
        self.world.taken_by_host(GfnRange(slot.base_gfn, slot.end_gfn))
        yield from delete_memslot(self.world.kvm, slot)

    def _memslot_create(self, args: schema.SlotCreate) -> Steps[None]:
        slot = self.world.make_slot(args.slot, args.base, args.size, args.backing, frozenset(), running=True)
        yield from create_memslot(self.world.kvm, slot)

    def _memslot_move(self, args: schema.SlotMove) -> Steps[None]:
        slot = self.world.kvm.slots().by_id(args.slot)
        if slot is None or slot.has_gmem:
            self._note("memslot_move", -22)
            return
        yield from move_memslot(self.world.kvm, slot, gfn_of(args.to))

    def _notifier_invalidate(self, args: schema.Range) -> Steps[None]:
        gfns = gfns_of(args)
        for slot in self.world.kvm.slots().overlapping(gfns.start, gfns.end):
            low, high = max(gfns.start, slot.base_gfn), min(gfns.end, slot.end_gfn)
            start = slot.hva_of(low)
            yield from invalidate_hva_range(self.world.kvm, start, start + (high - low) * PAGE)

    def _prefault(self, args: schema.Prefault) -> Steps[None]:
        """The ioctl takes the vCPU's mutex, so it waits until the vCPU does not run."""
        thread = self.world.vcpu_threads.get(args.vcpu)
        if thread is not None and not thread.done:
            yield self.world.kernel.join(thread)
        vcpu = self.world.kvm.vcpus[args.vcpu]
        error = yield from kvm_vcpu_pre_fault_memory(self.world.kvm, vcpu, gfns_of(args))
        self._note("prefault", error)

    def _zap_all_fast(self, args: schema.Nothing) -> Steps[None]:
        kvm = self.world.kvm
        yield kvm.slots_lock.lock()
        yield from kvm_mmu_zap_all_fast(kvm)
        yield kvm.slots_lock.unlock()

    def _td_teardown(self, args: schema.Nothing) -> Steps[None]:
        """The VMM stops its vCPU threads, waits for them, and closes everything."""
        world = self.world
        for vcpu in world.kvm.vcpus:
            vcpu.shut_down = True
        yield from world.kvm.make_all_cpus_request(UNBLOCK)
        for thread in world.vcpu_threads.values():
            yield world.kernel.join(thread)
        yield from vm_destroy(world.kvm, world.tdx)

    def _init_mem_region(self, args: schema.Range) -> Steps[None]:
        world = self.world
        assert world.tdx is not None
        gfns = gfns_of(args)
        error = yield from init_mem_region(world.tdx, world.kvm.vcpus[0], gfns)
        if not error:
            world.accepted.update(gfns.frames())
        self._note("init_mem_region", error)

    def _finalize(self, args: schema.Nothing) -> Steps[None]:
        assert self.world.tdx is not None
        yield from td_finalize(self.world.tdx)

    def _wait(self, args: schema.Duration) -> Steps[None]:
        yield self.world.kernel.signal(f"{self.program.thread}.timer").wait(args.ns)

    def _repeat(self, args: schema.HostRepeat) -> Steps[None]:
        for _ in range(args.times):
            yield from self._steps(args.do)

    def _note(self, call: str, error: int) -> None:
        if error:
            self.world.kernel.count(f"ioctl.{call}.errno.{-error}")


def new_slot(world: World, number: int, base: int, size: int, flags: frozenset[str]) -> Memslot:
    """A memslot as KVM_SET_USER_MEMORY_REGION2 makes it."""
    kvm = world.kvm
    kinds = SlotFlag.NONE
    if kvm.has_private_mem:
        kinds |= SlotFlag.GUEST_MEMFD
    if "readonly" in flags:
        kinds |= SlotFlag.READONLY
    return Memslot(
        number,
        gfn_of(base),
        size // PAGE,
        userspace_addr=HVA_BASE + base + world.slots_made * HVA_WINDOW,
        flags=kinds,
        attributes=kvm.attributes,
    )


def back_slot(world: World, slot: Memslot, folio_order: int) -> None:
    """Give a slot its memory: the VMM's mapping for the shared side, a guest_memfd for the private one."""
    kvm = world.kvm
    kvm.primary.map(Vma(slot.userspace_addr, slot.npages, folio_order))  # type: ignore[arg-type]
    if slot.has_gmem:
        inode = GmemInode(world.kernel, kvm.host_memory, slot.npages)
        GmemFile(inode, f"gmem{slot.id}").attach(slot)
