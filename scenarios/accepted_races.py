"""The data races that the kernel accepts, and so the model: the only place where one is excused (negative controls N5, N7).

An entry is a word (its family: the name without what numbers it), two functions, and who says that the kernel means it.
Everything else that `sim.races` reports is a finding. Sections are of the reference, kvm-mmu.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sim import Kernel

UNSAFE: Final = "11.3: read without mmu_lock only to save work, the check is repeated under it (N5)"
AWAITED: Final = (
    "the model's form of retrying a fault: the unsafe check of 11.3 over and over, repeated under mmu_lock"
)
KICK: Final = (
    "11.5: plain load and store by the vCPU, cmpxchg by kickers; ordered by request, barrier, mode (11.6 d)"
)

ACCEPTED_RACES: Final[tuple[tuple[str, str, str, str], ...]] = (
    (
        "mmu_invalidate_seq",
        "kvm_mmu_faultin_pfn",
        "kvm_mmu_invalidate_end",
        "11.3: F21 reads plainly before smp_rmb; a change is seen under mmu_lock",
    ),
    ("mmu_invalidate_seq", "mmu_invalidate_retry_gfn_unsafe", "kvm_mmu_invalidate_end", UNSAFE),
    ("mmu_invalidate_in_progress", "mmu_invalidate_retry_gfn_unsafe", "kvm_mmu_invalidate_begin", UNSAFE),
    ("mmu_invalidate_in_progress", "mmu_invalidate_retry_gfn_unsafe", "kvm_mmu_invalidate_end", UNSAFE),
    ("mmu_invalidate_in_progress", "await_retry", "kvm_mmu_invalidate_begin", AWAITED),
    ("mmu_invalidate_in_progress", "await_retry", "kvm_mmu_invalidate_end", AWAITED),
    ("mmu_invalidate_range_start", "mmu_invalidate_retry_gfn_unsafe", "kvm_mmu_invalidate_*", UNSAFE),
    ("mmu_invalidate_range_end", "mmu_invalidate_retry_gfn_unsafe", "kvm_mmu_invalidate_*", UNSAFE),
    ("vcpu.mode", "vcpu_enter_guest", "kvm_make_all_cpus_request", KICK),
    (
        "kvm_tdx.state",
        "reload_mmu",
        "td_finalize",
        "11.5: plain; tdx_vcpu_pre_run reads it without a lock, and a vCPU that is too early is refused",
    ),
)


def accept_races(kernel: Kernel) -> None:
    """Tell a world which races are meant."""
    for cell, one, other, reason in ACCEPTED_RACES:
        kernel.accept_race(cell, one, other, reason)
