"""vCPUs whose guest reads one word through a TLB, without a page table, a VM or a module."""

from __future__ import annotations

from scenarios.accepted_races import accept_races
from vcpu.addresses import PG_LEVEL_4K, Gfn, Pfn
from vcpu.exits import ExitReason, GuestExit
from vcpu.guest import INTERRUPTED, Boundary
from vcpu.pcpu import Pcpu
from vcpu.run import vcpu_run
from vcpu.tlb import Translation
from vcpu.vcpu import Vcpu, kvm_make_all_cpus_request

OLD, NEW = 7, 8
GFN = Gfn(1)


class WordGuest:
    """VcpuOps: each entry reads the word `rounds` times; a request flushes the pCPU's TLB."""

    def __init__(self, kernel, word, *, entries, rounds=2):
        self.kernel = kernel
        self.word = word
        self.entries = entries
        self.rounds = rounds
        self.entered: dict[Vcpu, int] = {}
        self.inside: dict[Vcpu, int] = {}
        self.after_kick = False

    def load(self, vcpu, previous):
        yield from ()

    def service_requests(self, vcpu):
        yield vcpu.requests.xchg(0)
        vcpu.pcpu.tlb.flush_all()
        return 1

    def reload_mmu(self, vcpu):
        yield from ()
        return 1

    def await_entry(self, vcpu):
        yield from ()

    def run(self, vcpu):
        number = self.entered[vcpu] = self.entered.get(vcpu, 0) + 1
        self.inside[vcpu] = number
        left = yield from self._guest(vcpu)
        del self.inside[vcpu]
        return left

    def _guest(self, vcpu):
        for _ in range(self.rounds):
            found = yield Boundary(vcpu, "ept", GFN)
            if found is INTERRUPTED:
                return GuestExit(ExitReason.EXTERNAL_INTERRUPT)
            if found is None:
                value = yield self.word.read_once()
                found = Translation(GFN, Pfn(value), PG_LEVEL_4K, writable=True, executable=True)
                vcpu.pcpu.tlb.fill("ept", found)
            if self.after_kick and found.pfn == OLD:
                self.kernel.find("stale-tlb", "a guest uses the old word after the kick")
        return GuestExit(ExitReason.HLT)

    def handle_exit(self, vcpu, guest_exit):
        yield from ()
        return 1 if self.entered[vcpu] < self.entries else 0


def machine(kernel, *, vcpus=1, entries=2, rounds=2):
    """vCPU threads on a pCPU each; returns the guest, the vCPUs and the pCPUs."""
    pcpus = [Pcpu(kernel, n) for n in range(vcpus + 1)]
    srcu = kernel.srcu("kvm.srcu")
    guest = WordGuest(kernel, kernel.cell("word", OLD), entries=entries, rounds=rounds)
    accept_races(kernel)
    made = []
    for n in range(vcpus):
        vcpu = Vcpu(kernel, n, iter(()))
        vcpu.ops = vcpu.guest = guest
        made.append(vcpu)
        kernel.thread(f"vcpu{n}", vcpu_run(kernel, vcpu, pcpus, srcu))
    return guest, made, pcpus


def dawdle(guest, steps=18):
    """Steps that change nothing, so that a random walk brings the guests to their later entries meanwhile."""
    for _ in range(steps):
        yield guest.word.read_once()


def change_then_kick(kernel, guest, vcpus, pcpus, request):
    """The writer: the word first, then everybody is told."""
    yield from dawdle(guest)
    yield guest.word.write_once(NEW)
    yield from kvm_make_all_cpus_request(kernel, vcpus, pcpus, request, here=pcpus[-1])
    guest.after_kick = True
