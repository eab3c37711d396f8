"""What things cost: the published table (`data/costs.csv`), and the distributions that the model draws from.

A row of the table has a value with its range, its unit, the machine, the source and how far it may be trusted. The
rows that a model may charge are listed below, by what they are (`TRANSITIONS`, `LEAVES`, `SOFTWARE`), each with its
kind: a kind says how the latency scatters and whether it shrinks with the core's clock. All others are results to
compare a run with; `cost_row` gives them too.

Not here: lock waits, TDX_OPERAND_BUSY and zero-step mitigation. They emerge from the order of events.
No time of any single SEAMCALL but TDH.MEM.PAGE.DEMOTE has been published: tests should assert sums, not leaves.

    model = CostModel(Streams(seed), default_costs(clock_ghz="2.7"))
    yield ... model.draw("tdh_mem_page_aug_4k")
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from sim.costs import (
    Distribution,
    Number,
    UnknownCost,
    bounded_pareto,
    constant,
    exact,
    lognormal,
    mixture,
    normal,
)

TABLE = Path(__file__).parent / "data" / "costs.csv"
TABLE_CLOCK_GHZ = Fraction("2.7")
"""The clock of the core that the table's nanoseconds belong to."""

NS_PER_UNIT = {"ns": Fraction(1), "cycles": 1 / TABLE_CLOCK_GHZ, "s": Fraction(10**9)}
TAGS = ("MEASURED", "DERIVED", "FACT", "SECONDARY", "ESTIMATE")

HOST_INTERFERENCE = "host_interference"
"""One draw an exit: what the rest of the host adds. Always 0 on a quiet host."""

Scatter: TypeAlias = Callable[[Fraction], Distribution]


class Kind(Enum):
    """How a latency of mean m scatters, and whether it scales with the core's clock."""

    TRANSITION = "world switches: lognormal above 0.85 m"
    LEAF = "SEAMCALL and TDCALL leaves: lognormal above 0.80 m, uninterrupted in SEAM mode"
    DEMOTE = "TDH.MEM.PAGE.DEMOTE: lognormal above 0.85 m"
    SOFTWARE = "paths through KVM: lognormal above 0.60 m, as caches and allocators vary"
    MEMORY = "waits for memory or a cache line: as SOFTWARE, whatever the clock"
    IPI = "interrupt delivery: lognormal above 0.75 m, whatever the clock"
    COPY = "clearing and copying pages: normal within 1 %, whatever the clock"
    WRITE_BACK = "cache write-back: lognormal, as dirty lines vary, whatever the clock"
    WHOLE_FAULT = "a whole VMX EPT violation as perf sees it: a body, and the host's interference in 0.2 %"

    @property
    def scales_with_clock(self) -> bool:
        """Whether the work is bound by the core, so that it is a number of cycles."""
        return self in {Kind.TRANSITION, Kind.LEAF, Kind.DEMOTE, Kind.SOFTWARE}


def _above(floor: str, shape: str) -> Scatter:
    return lambda mean: lognormal(mean, floor=mean * Fraction(floor), shape=shape)


def _interference() -> Distribution:
    return bounded_pareto(100_000, 33_000_000, alpha="1.5")


def _whole_fault(_mean: Fraction) -> Distribution:
    return mixture(lognormal(2930, floor=770, shape="0.8"), _interference(), probability="0.002")


_SCATTER: dict[Kind, Scatter] = {
    Kind.TRANSITION: _above("0.85", "0.5"),
    Kind.LEAF: _above("0.80", "0.5"),
    Kind.DEMOTE: _above("0.85", "0.5"),
    Kind.SOFTWARE: _above("0.60", "0.7"),
    Kind.MEMORY: _above("0.60", "0.7"),
    Kind.IPI: _above("0.75", "0.6"),
    Kind.COPY: lambda mean: normal(mean, cv="0.01", clip=4),
    Kind.WRITE_BACK: _above("0", "0.6"),
    Kind.WHOLE_FAULT: _whole_fault,
}

TRANSITIONS: dict[str, Kind] = {
    "vmx_roundtrip": Kind.TRANSITION,  # VMX exit + entry
    "kvm_fault_sw_vmx": Kind.SOFTWARE,  # KVM software in a VMX EPT violation
    "vmx_ept_violation_4k": Kind.SOFTWARE,  # VMX EPT violation, page present in host
    "vmx_ept_violation_mean_app": Kind.WHOLE_FAULT,  # the same as perf sees it; charge it or its parts, never both
    "vmx_fast_page_fault_wp": Kind.SOFTWARE,  # write-protection fault fixed without a lock
    "td_exit": Kind.TRANSITION,  # TD exit half: guest to KVM
    "tdh_vp_enter": Kind.TRANSITION,  # TDH.VP.ENTER half: KVM to guest
    "tdx_exit_enter_roundtrip": Kind.TRANSITION,  # TD exit + re-entry
    "tdx_exit_in_module": Kind.TRANSITION,  # TD exit handled inside the module
    "tdx_ve_overhead": Kind.TRANSITION,  # #VE injection + VEINFO.GET + guest handler
    "tdx_cpuid_via_vmm": Kind.TRANSITION,  # #VE + TDVMCALL + KVM
    "tdvmcall_roundtrip": Kind.TRANSITION,  # TDVMCALL without #VE
    "seamcall_null": Kind.LEAF,  # SEAMCALL + SEAMRET, no work
    "tdcall_null": Kind.LEAF,  # TDCALL, no work
    "kvm_user_exit": Kind.SOFTWARE,  # exit to the VMM process and back
    "mapgpa_fixed": Kind.SOFTWARE,  # MapGPA, fixed part
    "tdx_unicast_ipi_send": Kind.TRANSITION,  # one TDX guest IPI (ICR write)
}
"""Section 1.2 of the cost reference: world switches."""

LEAVES: dict[str, Kind] = {
    "tdh_mem_page_aug_4k": Kind.LEAF,
    "tdh_mem_page_aug_2m": Kind.LEAF,
    "tdh_mem_page_add_4k": Kind.LEAF,  # at build time; there is no 2M form
    "tdh_mr_extend_4k": Kind.LEAF,  # 16 calls: one 4K page
    "tdh_mem_sept_add": Kind.LEAF,
    "tdh_mem_sept_rd": Kind.LEAF,
    "tdh_mem_sept_remove": Kind.LEAF,
    "tdh_mem_range_block": Kind.LEAF,  # any level
    "tdh_mem_range_unblock": Kind.LEAF,  # any level
    "tdh_mem_track": Kind.LEAF,
    "tdh_mem_page_remove_4k": Kind.LEAF,
    "tdh_mem_page_remove_2m": Kind.LEAF,
    "tdh_mem_page_demote": Kind.DEMOTE,
    "tdh_mem_page_promote": Kind.LEAF,
    "tdh_phymem_page_wbinvd_4k": Kind.WRITE_BACK,
    "tdh_phymem_page_wbinvd_2m": Kind.WRITE_BACK,
    "tdh_phymem_page_reclaim_4k": Kind.LEAF,
    "tdh_phymem_page_reclaim_2m": Kind.LEAF,
    "tdh_phymem_cache_wb": Kind.WRITE_BACK,  # a package
    "wbinvd_full": Kind.WRITE_BACK,  # a package, the instruction
    "movdir64b_clear_4k": Kind.COPY,
    "movdir64b_clear_2m": Kind.COPY,
    "tdg_mem_page_accept_4k": Kind.LEAF,
    "tdg_mem_page_accept_2m": Kind.COPY,  # bound by the bandwidth of clearing
    "tdg_mem_page_accept_mismatch": Kind.LEAF,  # ACCEPT that returns TDACCEPT_SIZE_MISMATCH
    "tdg_accept_faulting_attempt": Kind.LEAF,  # ACCEPT up to its EPT violation
}
"""Section 1.3: SEAMCALL and TDCALL leaves, and the clears and write-backs that go with them."""

SOFTWARE: dict[str, Kind] = {
    "kvm_tdx_fault_sw": Kind.SOFTWARE,  # KVM software in a TDX private fault
    "gmem_alloc_clear_4k": Kind.MEMORY,  # guest_memfd: allocate and clear 4K
    "accept_loop_guest": Kind.SOFTWARE,  # the guest's own loop, a page
    "clear_4k": Kind.COPY,
    "clear_2m_pages_at_a_time": Kind.COPY,
    "clear_2m_contiguous": Kind.COPY,
    "kvm_mirror_zap_free_4k": Kind.SOFTWARE,  # mirror zap + free, 4K
    "removal_request_base": Kind.SOFTWARE,  # removal request: fixed part
    "removal_per_vcpu": Kind.SOFTWARE,  # and for each vCPU
    "kvm_mirror_read_entry": Kind.MEMORY,  # read of one mirror entry
    "eager_split_per_2m": Kind.SOFTWARE,  # split of one 2M mapping, mirror or EPT
    "eager_split_per_spte": Kind.SOFTWARE,  # the same for one of its 512 SPTEs
    "legacy_mmu_lock_hold": Kind.SOFTWARE,  # exclusive mmu_lock hold of a legacy fault
    "rwlock_line_transfer": Kind.MEMORY,  # serial cost of one read-lock and unlock
    "outside_lock_time_416v": Kind.SOFTWARE,  # a fault's time outside the lock, big host
    "dirtylog_clear_spte": Kind.SOFTWARE,  # clear dirty state of an SPTE
    "host_ipi_base": Kind.IPI,  # host IPI to handler
    "host_ipi_per_target": Kind.IPI,  # each further target of a shootdown
    "kick_to_exit_vmx": Kind.IPI,  # kick + exit, first target
    "kick_to_exit_tdx": Kind.IPI,
    "ipi_unicast_posted": Kind.IPI,
    "ipi_unicast_exit": Kind.IPI,
    "invept_single": Kind.TRANSITION,  # INVEPT, single context
    "tlb_miss_nested_4k": Kind.MEMORY,
    "tlb_miss_nested_2m": Kind.MEMORY,
    "pin_4k_present": Kind.SOFTWARE,
    "pin_2m_present": Kind.SOFTWARE,
    "unpin_4k": Kind.SOFTWARE,
    "unpin_2m": Kind.SOFTWARE,
    "migrate_4k_single": Kind.COPY,
    "migrate_4k_batch512": Kind.COPY,  # a page of a batch
    "migrate_2m_thp": Kind.COPY,
    "kvm_role_reinit": Kind.SOFTWARE,  # MMU context made anew after a role change
    "kvm_root_reload_cached": Kind.SOFTWARE,  # switch to a cached root
}
"""Section 1.4: KVM, host memory, interrupts, TLBs."""

KINDS: MappingProxyType[str, Kind] = MappingProxyType(TRANSITIONS | LEAVES | SOFTWARE)
"""Every row that a model may charge, with its kind."""


@dataclass(frozen=True, slots=True)
class CostRow:
    """One row of the table: what was published (or estimated) for one quantity, in the table's own unit."""

    name: str
    operation: str
    value: Fraction
    low: Fraction
    high: Fraction
    unit: str
    hardware: str
    source: str
    url: str
    confidence: str
    """high, medium, low or estimate."""
    tag: str
    """One of TAGS, as the row's note begins; a note that begins otherwise is second-hand: SECONDARY."""
    note: str

    @property
    def value_ns(self) -> Fraction:
        """The value in ns on the table's core. Raises: ValueError: the row is no time."""
        if self.unit not in NS_PER_UNIT:
            raise ValueError(f"{self.name} is no time but a number of {self.unit}")
        return self.value * NS_PER_UNIT[self.unit]


class CostTable(dict[str, Distribution]):
    """Distributions by name; a name that it lacks raises UnknownCost, which lists the nearest."""

    def __missing__(self, name: str) -> Distribution:
        raise UnknownCost(name, tuple(self))


def default_costs(clock_ghz: Number = TABLE_CLOCK_GHZ, *, quiet_host: bool = True) -> CostTable:
    """The distributions of all of `KINDS` and of HOST_INTERFERENCE, for a core of this clock.

    Args:
        clock_ghz: scales what the core bounds; what memory or the interconnect bounds stays.
        quiet_host: False adds, in 2 of 1000 exits, 0.1 to 33 ms during which the host did something else.
    Raises: ValueError: the clock is not positive.
    """
    clock = exact(clock_ghz)
    if clock <= 0:
        raise ValueError(f"expected a positive clock in GHz, got {clock_ghz}")
    costs = CostTable()
    for name, kind in KINDS.items():
        factor = TABLE_CLOCK_GHZ / clock if kind.scales_with_clock else Fraction(1)
        costs[name] = _SCATTER[kind](cost_row(name).value_ns * factor)
    costs[HOST_INTERFERENCE] = (
        constant(0) if quiet_host else mixture(constant(0), _interference(), probability="0.002")
    )
    return costs


def cost_row(name: str) -> CostRow:
    """The table's row called `name`. Raises: UnknownCost."""
    rows = cost_rows()
    if name not in rows:
        raise UnknownCost(name, tuple(rows))
    return rows[name]


@lru_cache(maxsize=1)
def cost_rows() -> MappingProxyType[str, CostRow]:
    """The whole table, in its own order."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [_row(fields) for fields in csv.DictReader(file)]
    return MappingProxyType({row.name: row for row in rows})


def _row(fields: dict[str, str]) -> CostRow:
    first_word = fields["note"].replace(":", " ").replace(";", " ").partition(" ")[0]
    return CostRow(
        name=fields["name"],
        operation=fields["operation"],
        value=Fraction(fields["value"]),
        low=Fraction(fields["low"]),
        high=Fraction(fields["high"]),
        unit=fields["unit"],
        hardware=fields["hardware"],
        source=f"{fields['source_author']} ({fields['source_year']}): {fields['source_title']}",
        url=fields["source_url"],
        confidence=fields["confidence"],
        tag=first_word if first_word in TAGS else "SECONDARY",
        note=fields["note"],
    )
