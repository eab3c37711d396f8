"""Seed 001: bit 47 or 51 selects private or shared, and hooks run only where a mirror exists. Exact, no time."""

from __future__ import annotations

import pytest

from tests.published.claims import Claims, simulate
from vcpu.addresses import direct_bits, gfn_of

PAGES = 2048
"""In each half of 16 MiB."""
HALVES = """\
machine: {{pcpus: 2}}
td: {{vcpus: 2, {kind}}}
memory:
  - {{slot: 0, base: 0x1000000, size: 8M, backing: 4K, initially: {initially}}}
  - {{slot: 1, base: 0x1800000, size: 8M, backing: 4K, initially: shared}}
threads:
  vcpu*:
    - touch: {{at: 0x1000000, size: 8M, share: true}}
    - touch: {{at: 0x1800000, size: 8M, share: true{alias}}}
"""
SHARED_ONLY = """\
machine: {pcpus: 2}
td: {vcpus: 2}
memory:
  - {slot: 1, base: 0x1800000, size: 8M, backing: 4K, initially: shared}
threads:
  vcpu*: [{touch: {at: 0x1800000, size: 8M, share: true, alias: shared}}]
"""


def halves(kind: str):
    td = kind.startswith("tdx")
    settings = f"kind: tdx, shared_bit: {kind[4:]}" if td else f"kind: {kind}"
    return simulate(
        HALVES.format(
            kind=settings,
            initially="shared" if kind == "plain" else "private",
            alias=", alias: shared" if td else "",
        )
    )


def seamcalls(result, *families: str) -> int:
    return sum(
        n
        for name, n in result.counters.items()
        if name.startswith(tuple(f"seamcall.{family}" for family in families or ("",)))
    )


@pytest.mark.parametrize("bit", [47, 51])
def test_one_gfn_has_two_gpas(bit):
    """The aliases of a frame differ in the shared bit only."""
    claims = Claims(f"seed 001: aliases, shared bit {bit}")
    private_gpa, shared_gpa = 0x1234000, 0x1234000 | 1 << bit
    claims.exact(
        "gfns of the two GPAs of a page",
        1,
        len({gfn_of(g) & ~direct_bits(bit) for g in (private_gpa, shared_gpa)}),
    )
    claims.exact("GPAs of it", 2, len({private_gpa, shared_gpa}))
    claims.exact("bits that differ", 1, (private_gpa ^ shared_gpa).bit_count())
    claims.settle()


@pytest.mark.parametrize("kind", ["tdx 47", "tdx 51"])
def test_shared_accesses_of_a_td_make_no_seamcall(kind):
    """Each private page is one PAGE.AUG; the shared half adds none."""
    result = halves(kind)

    claims = Claims(f"seed 001: {kind}")
    claims.exact("private faults", PAGES, result.latency["fault.private"]["count"])
    claims.exact("shared faults", PAGES, result.latency["fault.shared"]["count"])
    claims.exact("TDH.MEM.PAGE.AUG", PAGES, result.counters["seamcall.TDH.MEM.PAGE.AUG"])
    levels_above = 4 if kind == "tdx 51" else 3
    tables = 4 + levels_above - 1
    claims.exact(
        "TDH.MEM.SEPT.ADD: tables of the private half", tables, result.counters["seamcall.TDH.MEM.SEPT.ADD"]
    )
    claims.exact("other TDH.MEM calls", 0, seamcalls(result, "TDH.MEM") - PAGES - tables)
    claims.settle()


def test_shared_accesses_alone_make_no_memory_seamcall():
    """A TD that touches only shared memory issues not one TDH.MEM call."""
    result = simulate(SHARED_ONLY)

    claims = Claims("seed 001: shared accesses only")
    claims.exact("shared faults", PAGES, result.latency["fault.shared"]["count"])
    claims.exact("TDH.MEM calls", 0, seamcalls(result, "TDH.MEM"))
    claims.settle()


@pytest.mark.parametrize("kind", ["snp", "plain"])
def test_vms_without_a_mirror_call_no_hook(kind):
    """SNP faults are private and yet call no private hook; a plain VM has neither."""
    result = halves(kind)

    claims = Claims(f"seed 001: {kind}")
    private = result.latency.get("fault.private", {}).get("count", 0)
    claims.exact("private faults", PAGES if kind == "snp" else 0, private)
    claims.exact("faults in all", 2 * PAGES, private + result.latency["fault.shared"]["count"])
    claims.exact("SEAMCALLs (every private hook is one)", 0, seamcalls(result))
    claims.settle()
