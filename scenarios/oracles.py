"""The oracles of a hunt: which checker judges which kind of finding (DESIGN.md section 4), and where all are attached.

Checkers live in the layer that owns the fact; this is where a world gets them. What they see: every store to an SPTE, every
use of a lock or RCU domain, every read of the memslots, every frame that goes back to the host, every guest access, the
points where KVM promises something (`Kvm.promise_*`), every retry; and the whole VM at quiescence.

kind           checker                                              plants that it must catch (tests/plants)
-------------  ---------------------------------------------------  ------------------------------------------------
stale-tlb      vcpu/tlb_ledger (promises), vcpu_ops.check_access    oracle_flush_request_not_served,
               (frames that are free or left the TD)                oracle_ipi_without_ack
stale-spte     mmu/ledgers (promises), mmu/ledger_sptes             r15_fast_zap_left_to_last_user,
               (installation), properties (attributes, at the end)  oracle_r19_iterator_forgets_the_yield,
                                                                    drop_is_page_fault_stale
uaf-table      FreedSpteCell, PageTables.to_sp, RCU-deferred        oracle_zap_all_fast_without_kick,
               frees; properties.frames_freed (S-EPT pages)         oracle_r65_sept_page_not_reclaimed
uaf-page       HostMemory; mmu/ledger_sptes.frames_freed;           oracle_unmap_before_zap,
               properties.frames_freed (PAMT)                       oracle_mirror_forgets_a_removal
uaf-object     FreedCell (lpage_info of a memslot that was freed)   oracle_r43_slots_freed_without_srcu
overwrite      mmu/ledger_sptes (ownership, permissions);           oracle_frozen_spte_overwritten,
               properties (frozen at the end)                       r09_read_fault_takes_write_away
diverged       properties.mirror_matches_sept, module invariants    oracle_mirror_forgets_a_removal
kvm-bug        KVM_BUG_ON and WARN of the model                     no_kick_after_track
td-dead        vcpu_ops._pending_page_touched                       oracle_zap_takes_the_neighbour
content-lost   vcpu/content (versions; frames that go back)         oracle_zap_takes_the_neighbour (with #VE),
                                                                    oracle_page_not_reset
refcount       properties (gmem pages, roots, windows, statistics,  oracle_fault_keeps_its_page
               the module's counts)
leak           properties (tables, PAMT of a destroyed TD)          oracle_lost_table_is_leaked
lock-rule      Lock.assert_held*, Rcu.assert_inside;                (tests/sim/test_locks.py, test_rcu.py)
               mmu/ledger_flush (debts);                            r25_flush_result_discarded
               mmu/ledger_sptes (stores);                           (tests/mmu/test_ledgers.py)
               sim/lock_rules (sleeping calls, order);              oracle_mutex_under_mmu_lock, oracle_r49_lock_inversion
               `attach` below (memslots need SRCU)                  r43_slots_outside_srcu
data-race      sim/races                                            (its own tests)
deadlock       Kernel (nobody can move, with the ring);             (tests/sim/test_progress.py)
               sim/waits (some threads, at the step that closes
               the ring, or at the step limit)
livelock       sim/progress (lasso)                                 r35_truncated_sequence,
                                                                    oracle_r41_prefault_waits_in_srcu,
                                                                    r61_no_vm_dead_check
starvation     sim/progress                                         (tests/sim/test_progress.py)
unmet          explore (`sometimes`), expectations                  (tests/scenarios)

Not there, because the 4K model has no such part: lost-bit (no A/D bits, no dirty logging), wrong-level (private mappings
are 4K; a larger one is a KVM_BUG_ON), cache-alias (no cache lines), phase (beyond OP_STATE, which refuses by status).
Negative controls (races.md), hunted by tests/tdx/kvm/test_oracles.py: N2 to N6 and N10 as worlds of their own; N1, N7, N8 and
N9 hold by construction (no A/D bits; statistics are no words; an ACCEPT that faults again and the tree lock are no findings).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mmu.ledgers import MmuLedger
from mmu.memslots import MemslotsCell
from mmu.page_table import SpteCell
from sim import waits
from sim.access import WaitUntil
from sim.lock_rules import LockRules
from sim.locks import Mutex, RwLock, RwSem, SpinLock
from sim.progress import Progress
from sim.rcu import Rcu
from sim.thread import Thread

if TYPE_CHECKING:
    from mmu.vm import Kvm
    from sim import Access, Kernel


def attach(kernel: Kernel, kvm: Kvm) -> None:
    """Put the checkers of the VM to work. Its tables may be filled already; its threads have not run.

    Most judge the accesses to one class of object, which costs the others a look-up a step.
    """
    ledger = MmuLedger(kvm)
    rules = LockRules(kernel)
    Progress(kernel)
    flushes = ledger.flushes

    def lock_used(thread: Thread, access: Access) -> None:
        rules.observe(thread, access)
        flushes.lock_used(thread, access)

    def memslots_need_srcu(thread: Thread, access: Access) -> None:
        """The memslots are read in an SRCU read section or under slots_lock (races.md R43); a mere wait follows no pointer."""
        if isinstance(access, WaitUntil):
            return
        if access.reads and thread not in kvm.srcu.inside and kvm.slots_lock.held_by(thread) is None:
            kernel.find(
                "lock-rule", "the memslots are read without SRCU and without slots_lock", thread=thread
            )

    kernel.judge(SpteCell, ledger.sptes.observe)
    kernel.judge(MemslotsCell, memslots_need_srcu)
    kernel.judge(RwLock, lock_used)
    for target in (RwSem, Mutex, SpinLock, Rcu, Thread):
        kernel.judge(target, rules.observe)
    kernel.when_blocked(partial(_judge_ring, kernel))


def _judge_ring(kernel: Kernel, thread: Thread) -> None:
    """A thread that has just blocked may have closed a ring, while others go on."""
    ring = waits.cycle([thread])
    if ring:
        kernel.find("deadlock", "threads wait for each other", cycle=waits.describe(ring))
