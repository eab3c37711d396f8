"""Seed 000: operating on the private table is expensive, so KVM walks a mirror of it."""

from __future__ import annotations

from mmu.tdp_iter import TdpIter
from tdx.module import tdh_mem_sept_rd
from tests.published.claims import Claims, simulate
from vcpu.addresses import LEVELS, gpa_of

FIRST_TOUCH = """\
machine: {{pcpus: {vcpus}}}
td: {{vcpus: {vcpus}, shared_bit: {bit}}}
memory:
  - {{slot: 0, base: 0x4000000, size: {size}, backing: 4K, initially: private}}
threads:
  vcpu*: [{{accept: {{at: 0x4000000, size: {size}, order: 4K, policy: eager, share: true}}}}]
"""
PAGES = 2048


def first_touch(vcpus: int = 1, bit: int = 47, pages: int = PAGES):
    return simulate(FIRST_TOUCH.format(vcpus=vcpus, bit=bit, size=hex(pages * 4096)))


def test_the_mirror_needs_no_read_of_the_private_table():
    """Counts at 1 and 8 vCPUs: no SEPT.RD, one mirror table for each S-EPT table, one SEAMCALL for each mirror change."""
    claims = Claims("seed 000: exact part (scaled from 64 MiB to 8 MiB)")
    for vcpus in (1, 8):
        result = first_touch(vcpus)
        counters = result.counters
        claims.exact(
            f"TDH.MEM.SEPT.RD per fault, {vcpus} vCPU", 0, counters.get("seamcall.TDH.MEM.SEPT.RD", 0)
        )
        claims.exact(
            f"mirror tables per S-EPT table, {vcpus} vCPU",
            1,
            counters["mmu.tables_linked"] / counters["seamcall.TDH.MEM.SEPT.ADD"],
        )
        claims.exact(
            f"leafs set per PAGE.AUG, {vcpus} vCPU",
            1,
            counters["fault.fixed"] / counters["seamcall.TDH.MEM.PAGE.AUG"],
        )
        last_level = PAGES // 512
        claims.exact(
            f"last-level mirror pages per 2 MiB, {vcpus} vCPU",
            1,
            (counters["mmu.tables_linked"] - 2) / last_level,
        )
    claims.settle()


def test_reading_the_private_table_instead(monkeypatch):
    """Variant B: every level of a walk is read by TDH.MEM.SEPT.RD. Rests on the estimate of that leaf, hence OUT."""
    read = TdpIter._read
    walks_bits = {}

    def read_by_seamcall(self, sp, gfn):
        yield from read(self, sp, gfn)
        if self.is_mirror:
            yield from tdh_mem_sept_rd(
                walks_bits["module"], td=walks_bits["td"], gpa=gpa_of(self.gfn), level=LEVELS[int(self.level)]
            )

    claims = Claims("seed 000: mirror against reading the private table")
    for bit, reads in ((47, 4), (51, 5)):
        with_mirror = first_touch(bit=bit)
        with monkeypatch.context() as patch:
            patch.setattr(TdpIter, "_read", read_by_seamcall)
            _remember_module(patch, walks_bits)
            without = first_touch(bit=bit)
        per_fault = without.counters["seamcall.TDH.MEM.SEPT.RD"] / PAGES
        claims.near(f"SEPT.RD per fault, {reads} levels", reads, per_fault, 0.02, "OUT")
        ratio = without.now_ns / with_mirror.now_ns
        claims.within(f"time of a fault with its accept, ratio, {reads} levels", 1.55, ratio, 1.3, 1.8, "OUT")
    claims.settle()


def _remember_module(patch, remembered):
    """Variant B needs the module behind the mirror: note it when the composition root makes it."""
    from scenarios import build

    make = build.KvmTdx

    def make_and_note(kvm, module, td, *rest):
        remembered.update(module=module, td=td)
        return make(kvm, module, td, *rest)

    patch.setattr(build, "KvmTdx", make_and_note)


def test_a_private_fault_with_its_accept():
    """Costs.md 1.5: 4K private fault + accept, from the table 7.95 us, published 8.0 us (traced)."""
    claims = Claims("costs 1.5: the 4K composite")
    us = first_touch().now_ns / PAGES / 1000
    claims.near("private 4K fault + accept, us (table)", 7.95, us, 0.15, "CAL")
    claims.near("the same against the traced figure, us", 8.0, us, 0.15, "CAL")
    claims.settle()
