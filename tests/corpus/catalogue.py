"""What the corpus has: entries with their plants, entries that wait for a part of the model, negative controls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PLANTS = Path(__file__).resolve().parents[1] / "plants"
STRATEGIES = ("random", "pct:3", "pos", "surw", "portfolio", "dpor")
MAX_STEPS = 30_000
"""An execution of more steps is cut. The longest complete one of the corpus takes a third of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A race that can be planted.

    `expected` are the oracles (kinds of findings) of which one must fire; `depth` is a guess at the number of ordering
    constraints. `best` and `seed` find it within `within` executions, which `make test` repeats; only for the smoke tier.
    `note` says what must be known to read its row.
    """

    id: str
    title: str
    plant: str
    scenario: str
    expected: tuple[str, ...]
    depth: int
    tier: Literal["smoke", "full"] = "smoke"
    best: str = "pos"
    seed: int = 0
    within: int = 100
    note: str = ""

    @property
    def plant_file(self) -> Path:
        """The patch."""
        return PLANTS / f"{self.plant}.py"

    @property
    def scenario_file(self) -> Path:
        """The scenario."""
        return PLANTS / "scenarios" / f"{self.scenario}.yaml"


@dataclass(frozen=True, slots=True)
class Absent:
    """A race that cannot be planted yet: `needs` is the part of the model that is missing."""

    id: str
    title: str
    needs: str


@dataclass(frozen=True, slots=True)
class Control:
    """Something that looks racy and is right. `patch` is a changed, still correct protocol; "" is the model as it is.

    `reached` names what every search of the control must have met, so that it is not clean for want of trying.
    """

    id: str
    title: str
    scenario: str
    reached: str
    patch: str = ""

    @property
    def patch_files(self) -> tuple[Path, ...]:
        """Its patch, if it has one."""
        return (PLANTS / "controls" / f"{self.patch}.py",) if self.patch else ()

    @property
    def scenario_file(self) -> Path:
        """The scenario."""
        return PLANTS / "scenarios" / f"{self.scenario}.yaml"


ENTRIES = (
    Entry(
        "R07",
        "deferred flush debt not honoured",
        "r07_flush_debt_forgotten",
        "r07-two-invalidations",
        ("stale-tlb", "uaf-page", "lock-rule"),
        3,
        best="pct:3",
        seed=0,
        within=80,
        note="found at the unlock with a flush owed, before any stale translation is used",
    ),
    Entry(
        "R09",
        "slower read fault downgrades newer writable SPTE",
        "r09_read_fault_takes_write_away",
        "r09-read-vs-write",
        ("overwrite",),
        2,
        best="surw",
        seed=0,
        within=20,
    ),
    Entry(
        "R11",
        "non-atomic metadata update under read lock",
        "r11_root_count_read_then_written",
        "r11-roots-got-and-put",
        ("data-race", "refcount", "uaf-table", "leak"),
        1,
        best="surw",
        seed=0,
        within=60,
    ),
    Entry(
        "R13",
        "staleness test blind to an obsolete root",
        "r13_obsolete_root_not_seen",
        "r13-fault-vs-zap-all",
        ("stale-spte", "uaf-table", "refcount", "leak"),
        2,
        best="pct:3",
        seed=0,
        within=60,
        note="the plant does not ask any root, for every root of the model has a page; the zap of a whole root takes thousands of steps, and the window is one fault",
    ),
    Entry(
        "R15",
        "slot gone but invalid root still maps it",
        "r15_fast_zap_left_to_last_user",
        "r15-slot-deleted-then-unmapped",
        ("uaf-page", "stale-spte"),
        3,
        best="pct:3",
        seed=1,
        within=30,
    ),
    Entry(
        "R19",
        "restart and advance skips an entry",
        "r19_step_after_restart",
        "r19-zap-root-yields",
        ("stale-spte", "uaf-table", "refcount", "leak"),
        2,
        tier="full",
        note="needs a second invalidation that waits for mmu_lock when the zap of the root begins; most strategies finish one host thread before the next",
    ),
    Entry(
        "R21",
        "exclusive-only helper under shared lock",
        "r21_recycling_under_read_lock",
        "one-page-plain",
        ("lock-rule",),
        1,
        best="surw",
        seed=0,
        within=5,
        note="a rule of locking: every execution breaks it",
    ),
    Entry(
        "R25",
        "flush result discarded",
        "r25_flush_result_discarded",
        "r25-invalidate-vs-touch",
        ("stale-tlb", "uaf-page", "lock-rule"),
        2,
        best="pos",
        seed=0,
        within=40,
        note="found at the unlock with a flush owed, before any stale translation is used",
    ),
    Entry(
        "R35",
        "truncated sequence snapshot",
        "r35_truncated_sequence",
        "r35-fifth-invalidation",
        ("livelock",),
        1,
        best="surw",
        seed=0,
        within=20,
    ),
    Entry(
        "R37",
        "invalidate count pairing broken by slot swap",
        "r37_swap_does_not_wait_for_notifiers",
        "r37-notifier-vs-slot-delete",
        ("refcount", "livelock"),
        2,
        best="surw",
        seed=0,
        within=40,
    ),
    Entry(
        "R41",
        "prefault SRCU reader against slot deletion",
        "r41_prefault_invalid_slot",
        "r41-prefault-vs-slot-delete",
        ("deadlock",),
        2,
        best="surw",
        seed=0,
        within=20,
    ),
    Entry(
        "R43",
        "memslots dereferenced without SRCU",
        "r43_slots_outside_srcu",
        "r41-prefault-vs-slot-delete",
        ("lock-rule", "uaf-object"),
        2,
        best="surw",
        seed=0,
        within=5,
        note="a rule of locking: every execution breaks it",
    ),
    Entry(
        "R53",
        "busy AUG taken for an error",
        "r53_aug_busy_is_fatal",
        "two-accept-one",
        ("kvm-bug",),
        3,
        best="surw",
        seed=1,
        within=150,
    ),
    Entry(
        "R53b",
        "AUG retried through the guest, against zero-step VP.ENTER",
        "r53b_retry_through_the_guest",
        "r53b-zero-step",
        ("livelock", "starvation"),
        3,
        tier="full",
        note="the retry storm needs an adversary that never lets the guest progress; a fair schedule ends it, so that what shows is executions that are cut",
    ),
    Entry(
        "R55",
        "TD build ioctls collide on TDR",
        "r55_finalize_without_locks",
        "r55-build-calls-collide",
        ("kvm-bug", "data-race"),
        2,
        best="surw",
        seed=0,
        within=40,
    ),
    Entry(
        "R59",
        "double AUG from racing faults",
        "r59_aug_for_any_change",
        "two-accept-one",
        ("kvm-bug",),
        2,
        best="surw",
        seed=0,
        within=20,
    ),
    Entry(
        "R61",
        "fatal error retried for ever",
        "r61_no_vm_dead_check",
        "r61-dead-vm",
        ("livelock",),
        1,
        best="surw",
        seed=0,
        within=5,
    ),
    Entry(
        "R63",
        "epoch protocol: kick before TRACK",
        "r63_kick_before_track",
        "r63-page-leaves",
        ("stale-tlb", "kvm-bug"),
        3,
        best="pos",
        seed=1,
        within=200,
    ),
    Entry(
        "R63a",
        "epoch protocol: TRACK without kick",
        "no_kick_after_track",
        "r63-page-leaves",
        ("stale-tlb", "kvm-bug"),
        2,
        best="surw",
        seed=0,
        within=100,
    ),
    Entry(
        "R63b",
        "epoch protocol: kick not awaited",
        "r63b_kick_not_awaited",
        "r63-page-leaves",
        ("stale-tlb", "kvm-bug"),
        2,
        best="surw",
        seed=0,
        within=100,
    ),
    Entry(
        "R63c",
        "epoch protocol: lock dropped between TRACK and kick",
        "r63c_lock_dropped_between_track_and_kick",
        "r63-two-pages-leave",
        ("kvm-bug", "lock-rule"),
        3,
        best="pos",
        seed=0,
        within=200,
    ),
    Entry(
        "R65",
        "S-EPT table page freed too early",
        "r65_sept_table_freed_early",
        "r65-last-leaf-goes",
        ("uaf-table", "uaf-page", "diverged", "kvm-bug"),
        2,
        best="surw",
        seed=0,
        within=20,
    ),
    Entry(
        "R85",
        "state check outside the lock",
        "r85_state_tested_before_lock",
        "r55-build-calls-collide",
        ("data-race", "phase", "kvm-bug"),
        2,
        best="surw",
        seed=0,
        within=40,
    ),
    Entry(
        "R95",
        "invalidate_end outside mmu_lock",
        "r95_window_closed_after_unlock",
        "r95-convert-vs-punch-hole",
        ("data-race", "livelock", "refcount", "stale-spte"),
        2,
        best="surw",
        seed=0,
        within=100,
    ),
    Entry(
        "X1",
        "locked staleness recheck (F31) dropped",
        "drop_is_page_fault_stale",
        "fault-vs-one-convert",
        ("stale-spte", "uaf-page", "diverged"),
        2,
        best="surw",
        seed=0,
        within=150,
    ),
)

ABSENT = (
    Absent(
        "R01", "plain store under write lock loses D/W bit", "hardware that sets A/D bits; write protection"
    ),
    Absent(
        "R03", "leaf operation on an entry that a split turned into a table pointer", "dirty logging, splits"
    ),
    Absent("R05", "flush elided because aging had already removed permission", "aging, dirty logging"),
    Absent("R17", "roots freed on last unload, rebuild storm", "vCPUs that unload roots (SMM, role changes)"),
    Absent(
        "R23", "RCU dropped before remote flush", "a range walk that removes tables (collapse, NX recovery)"
    ),
    Absent("R27", "split-must-stay flag set after publish", "the NX huge-page mitigation"),
    Absent(
        "R29",
        "leaf written at a level the walk never reached",
        "tables taken out of a valid root beside a fault (NX recovery, collapse): here none goes before its root does",
    ),
    Absent("R31", "host level lookup not in the grace period", "host page tables that are freed"),
    Absent("R33", "wake before worker exists", "the NX recovery worker"),
    Absent("R39", "pfn cache valid after missed invalidation", "gfn-to-pfn caches"),
    Absent("R45", "worker still running after teardown", "asynchronous page faults"),
    Absent("R47", "kick-all sees half-created vCPU", "vCPUs created while the VM runs, creation that fails"),
    Absent(
        "R49",
        "mmap_lock against invalidate lock",
        "mmap_lock, and sources of populate that must be faulted in",
    ),
    Absent("R51", "poison path forgets boundary split", "huge private pages, memory failure"),
    Absent("R57", "freed vCPU left on per-CPU list", "per-CPU lists of vCPUs, vCPU creation that fails"),
    Absent("R67", "cache flush on the wrong or too late CPU", "kexec, cache lines by key"),
    Absent(
        "R69", "time of check, time of use across an interrupted SEAMCALL", "TDH.IMPORT leaves (migration)"
    ),
    Absent("R71", "DEMOTE restart storm", "huge private pages: TDH.MEM.PAGE.DEMOTE"),
    Absent("R73", "split without shootdown", "huge private pages: TDH.MEM.PAGE.DEMOTE"),
    Absent("R75", "accept-level ping-pong", "huge private pages, accept levels"),
    Absent("R77", "error path of two-boundary split", "huge private pages, splits that fail"),
    Absent("R79", "huge adjustment wipes children", "huge private pages"),
    Absent("R81", "PAMT get/put race", "Dynamic PAMT"),
    Absent("R83", "lazy PAMT add/reclaim loop", "Dynamic PAMT"),
    Absent("R87", "finalize against running vCPU", "SEV-SNP launch; its likeness in TDX is R55"),
    Absent("R89", "key id freed under a mirror VM", "SEV: VMs that share a key"),
    Absent("R91", "double PSMASH", "SEV-SNP: the RMP"),
    Absent("R93", "all-vCPU locking across two VMs", "SEV: two VMs, vCPU mutexes"),
    Absent("R97", "split continues with stale snapshot after allocation", "eager splits (dirty logging)"),
    Absent("N1", "control: the Accessed bit may be lost", "aging"),
    Absent("N8", "control: ACCEPT faults once more after a split", "huge private pages"),
    Absent(
        "N9",
        "control: one RIP faults on more pages than zero-step tolerates",
        "instructions that touch several pages",
    ),
)

CONTROLS = (
    Control("N2", "AUG busy, unfrozen and retried", "two-accept-one", "seamcall_busy_retried"),
    Control("N3", "one BUSY of BLOCK, then a second try", "n3-block-busy-once", "seamcall_busy_kicked"),
    Control("N4", "a frozen SPTE met; a spurious fault", "tables-missing", "fault_met_frozen_spte"),
    Control(
        "N5",
        "lockless check of a window that closes the wrong way round",
        "fault-vs-one-convert",
        "fault_met_invalidation",
        "n5_window_closed_backwards",
    ),
    Control("N6", "an invalid root with leafs between two yields", "r19-zap-root-yields", "walk_yielded"),
    Control(
        "N7",
        "statistics counted after publication",
        "tables-missing",
        "spte_cmpxchg_lost",
        "n7_statistics_late",
    ),
    Control(
        "N10",
        "TRACK refused while the previous epoch is in use, then the kick",
        "r63-page-leaves",
        "track_refused",
        "n10_track_twice",
    ),
)
