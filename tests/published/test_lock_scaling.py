"""H1, H2, H4: mmu_lock held exclusively by every fault, against mmu_lock for read.

A world of `sim.RwLock` alone, with published costs, no page tables: these claims are about the lock. CAL are the costs
(the exclusive hold is derived from S12, the transfer of the lock's line from S14's plateau); OUT is every ratio.
"""

from __future__ import annotations

import pytest

from scenarios.costs import cost_row
from sim import Kernel
from tests.published.claims import Claims

HOLD_NS = int(cost_row("legacy_mmu_lock_hold").value_ns)
OUTSIDE_NS = int(cost_row("outside_lock_time_416v").value_ns)
PAIR_NS = int(cost_row("rwlock_line_transfer").value_ns)
FAULT_NS = int(cost_row("vmx_ept_violation_4k").value_ns)
FAULTS = 60


def faults(
    vcpus: int, *, exclusive: bool, outside_ns: int, hold_ns: int, line_ns: int
) -> tuple[float, float]:
    """Simulate FAULTS faults a vCPU; returns ns from first to last, and the share of time spent waiting for the lock."""
    kernel = Kernel(seed=1)
    kernel.histograms = {}
    lock = kernel.rwlock("mmu_lock")
    lock.line_ns = line_ns
    waited_ns = 0

    def vcpu():
        nonlocal waited_ns
        for _ in range(FAULTS):
            kernel.spend(outside_ns)
            yield from asked()
            kernel.spend(hold_ns)
            yield lock.write_unlock() if exclusive else lock.read_unlock()

    def asked():
        nonlocal waited_ns
        yield cell.read()
        began_ns = kernel.now_ns
        yield lock.write_lock() if exclusive else lock.read_lock()
        waited_ns += kernel.now_ns - began_ns

    cell = kernel.cell("x", 0)
    for n in range(vcpus):
        kernel.thread(f"vcpu{n}", vcpu())
    kernel.execute()
    assert not kernel.findings
    return kernel.now, waited_ns / (kernel.now * vcpus)


def legacy(vcpus: int) -> tuple[float, float]:
    """The hold was derived from the rate of the whole, so moving the lock's line is part of it."""
    return faults(vcpus, exclusive=True, outside_ns=OUTSIDE_NS, hold_ns=HOLD_NS, line_ns=0)


def parallel(vcpus: int) -> tuple[float, float]:
    return faults(vcpus, exclusive=False, outside_ns=OUTSIDE_NS, hold_ns=HOLD_NS, line_ns=PAIR_NS // 2)


def test_h1_populating_with_96_vcpus():
    """S12: 110.2 s with the exclusive lock, 16.1 s in parallel."""
    old_ns, _ = legacy(96)
    new_ns, _ = parallel(96)
    done = 96 * FAULTS * 1000

    claims = Claims("H1: exclusive lock against parallel faults, 96 vCPUs")
    claims.near("legacy, million faults a second", 0.685, done / old_ns, 0.20, "CAL")
    claims.near("parallel, million faults a second", 96 * 3 * 262144 / 16.1 / 1e6, done / new_ns, 0.20, "OUT")
    claims.near("ratio of times", 6.84, old_ns / new_ns, 0.20, "OUT")
    claims.settle()


def test_h2_waiting_with_416_vcpus():
    """S13: 98% of the time waiting; the time is cut by 89%."""
    old_ns, waiting = legacy(416)
    new_ns, _ = parallel(416)

    claims = Claims("H2: 416 vCPUs")
    claims.within("share of time waiting for the lock", 0.98, waiting, 0.95, 1, "OUT")
    claims.within("time cut by", 0.89, 1 - new_ns / old_ns, 0.85, 0.92, "OUT")
    claims.settle()


def fault_us(vcpus: int) -> float:
    ns, _ = faults(vcpus, exclusive=False, outside_ns=FAULT_NS - PAIR_NS, hold_ns=0, line_ns=PAIR_NS // 2)
    return ns / FAULTS / 1000


H4_US = {2: 1.21, 4: 1.29, 8: 1.47, 16: 3.02, 32: 6.56, 64: 9.64, 96: 10.2}


def test_h4_cost_of_a_fault_up_to_64_vcpus():
    """S14: flat, then the line of the lock saturates."""
    claims = Claims("H4: fault cost in us, zap on fault")
    for vcpus, published_us in H4_US.items():
        if vcpus <= 64:
            tag = "CAL" if vcpus in (16, 32) else "OUT"
            claims.near(f"{vcpus} vCPUs", published_us, fault_us(vcpus), 0.15 if vcpus <= 32 else 0.5, tag)
    claims.settle()


@pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="MISSED: one cache line at 190 ns a pair saturates for good; S14's total rate rises again beyond 32 vCPUs, "
    "from 4.9 to 9.4 M faults/s at 96, which one line cannot give (costs.md says so)",
)
def test_h4_cost_of_a_fault_with_96_vcpus():
    """S14: 10.2 us at 96 vCPUs."""
    claims = Claims("H4: fault cost in us, 96 vCPUs")
    claims.near("96 vCPUs", H4_US[96], fault_us(96), 0.5, "OUT")
    claims.settle()
