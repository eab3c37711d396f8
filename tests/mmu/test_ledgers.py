"""The MMU's ledgers on a hand-made page table: every rule by the store that breaks it, and by one that does not."""

from __future__ import annotations

import pytest

from mmu.host_memory import HostMemory
from mmu.ledgers import MmuLedger
from mmu.memslots import Memslot, Memslots
from mmu.page_table import KvmMmuPage, Role
from mmu.spte import FROZEN_SPTE, SHADOW_NONPRESENT_VALUE, make_nonleaf_spte, make_spte
from mmu.vm import Kvm
from sim import Kernel
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, Gfn, GfnRange
from vcpu.memory import Memory
from vcpu.vcpu import TLB_FLUSH

HOLE = SHADOW_NONPRESENT_VALUE


def _leaf(pfn, *, writable):
    return make_spte(
        pfn=pfn, level=PG_LEVEL_4K, writable=writable, host_writable=writable, executable=True, dirty=writable
    )


class Vm:
    """A VM whose direct and mirror roots are 2M tables with one 4K table each; threads do what a test says."""

    def __init__(self):
        self.kernel = Kernel(stop_at_finding=False)
        self.memory = HostMemory(self.kernel, 1024)
        self.kvm = Kvm(self.kernel, pcpus=[], memory=Memory(self.kernel), host_memory=self.memory)
        self.kvm.memslots.cell.v = Memslots((Memslot(0, 0, 512),))
        self.tables = {kind: self._tree(mirror=kind == "mirror") for kind in ("direct", "mirror")}
        self.ledger = MmuLedger(self.kvm)
        self.pfn = self.memory.alloc(0, "page")
        self.leaf = _leaf(self.pfn, writable=True)
        self.readonly = _leaf(self.pfn, writable=False)

    def _tree(self, *, mirror):
        root = KvmMmuPage(Role(PG_LEVEL_2M, mirror), 0, self.memory.alloc(0, "table"))
        table = KvmMmuPage(Role(PG_LEVEL_4K, mirror), 0, self.memory.alloc(0, "table"), parent=(root, 0))
        self.kvm.page_tables.add(root)
        self.kvm.page_tables.add(table)
        self.kvm.tdp_mmu_roots.append(root)
        root.cell(0).v = make_nonleaf_spte(table.spt_pfn)
        return table

    def run(self, *bodies):
        """Run one after the other, under the ledger; the kinds that were found."""

        def observe(_kernel, thread, access):
            if access.target.__class__ is type(self.tables["direct"].cell(0)):
                self.ledger.sptes.observe(thread, access)
            self.ledger.flushes.lock_used(thread, access)

        self.kernel.check(observe)
        for n, body in enumerate(bodies):
            self.kernel.thread(f"t{n}", body)
            self.kernel.run()
        return [finding.kind for finding in self.kernel.findings]

    def store(self, value, mode="write", kind="direct", atomic=False, flush=False):
        """Store to entry 5 under mmu_lock in this mode ("": without it), and flush if told so."""
        lock, cell = self.kvm.mmu_lock, self.tables[kind].cell(5)
        if mode:
            yield lock.write_lock() if mode == "write" else lock.read_lock()
        yield cell.cmpxchg(cell.peek(), value) if atomic else cell.write_once(value)
        if flush:
            yield from self.kvm.make_all_cpus_request(TLB_FLUSH)
        if mode:
            yield lock.write_unlock() if mode == "write" else lock.read_unlock()


@pytest.fixture
def vm():
    """A fresh one."""
    return Vm()


def test_what_faults_and_zaps_do_is_not_accused(vm):
    """Install atomically under read, upgrade, zap with a flush under write; freeze and thaw one's own."""

    def freeze_and_thaw():
        cell = vm.tables["mirror"].cell(6)
        yield vm.kvm.mmu_lock.read_lock()
        yield cell.cmpxchg(HOLE, FROZEN_SPTE)
        yield cell.write_once(HOLE)
        yield vm.kvm.mmu_lock.read_unlock()

    assert not vm.run(
        vm.store(vm.readonly, "read", atomic=True),
        vm.store(vm.leaf, "read", atomic=True),
        freeze_and_thaw(),
        vm.store(HOLE, "write", flush=True),
    )


@pytest.mark.parametrize(
    ("stores", "found"),
    [
        ([("leaf", {"mode": "read"})], ["lock-rule"]),
        ([("leaf", {"mode": "", "atomic": True})], ["lock-rule"]),
        ([("leaf", {}), ("hole", {})], ["lock-rule"]),
        ([("leaf", {}), ("readonly", {"flush": True})], []),
        ([("leaf", {}), ("readonly", {"mode": "read", "atomic": True, "flush": True})], ["overwrite"]),
        ([("leaf", {}), ("readonly", {})], ["lock-rule"]),
        (
            [("frozen", {"mode": "read", "atomic": True}), ("hole", {"mode": "read", "atomic": True})],
            ["overwrite"],
        ),
    ],
)
def test_a_store_that_breaks_a_rule_is_found(vm, stores, found):
    """Plain under read; without the lock; a removal without flush; rights removed; another's freeze."""
    values = {"leaf": vm.leaf, "readonly": vm.readonly, "hole": HOLE, "frozen": FROZEN_SPTE}

    assert vm.run(*(vm.store(values[name], **how) for name, how in stores)) == found


def test_a_leaf_of_an_invalid_root_owes_no_flush(vm):
    """N6: its vCPUs were told when it became invalid."""
    vm.tables["direct"].parent[0].invalid.v = True

    assert not vm.run(vm.store(vm.leaf), vm.store(HOLE))


def test_a_frame_that_is_freed_while_a_leaf_maps_it_is_found(vm):
    """The notifier, or the hole, came too late."""
    assert not vm.run(vm.store(vm.leaf))
    vm.memory.free(vm.pfn)
    assert [finding.kind for finding in vm.kernel.findings] == ["uaf-page"]


def test_a_frame_that_no_leaf_maps_any_more_may_go(vm):
    """The zap was seen."""
    assert not vm.run(vm.store(vm.leaf), vm.store(HOLE, flush=True))
    vm.memory.free(vm.pfn)
    assert not vm.kernel.findings


def test_a_leaf_for_a_free_frame_is_found(vm):
    """The fault kept a number, not a reference."""
    vm.memory.free(vm.pfn)

    assert vm.run(vm.store(vm.leaf)) == ["uaf-page"]


@pytest.mark.parametrize(("window", "found"), [((0, 512), ["stale-spte"]), ((6, 512), [])])
def test_a_leaf_installed_in_an_open_window_of_its_frame_is_found(vm, window, found):
    """Only if the window covers it."""
    kvm = vm.kvm
    kvm.mmu_invalidate_in_progress.v = 1
    kvm.mmu_invalidate_range_start.v, kvm.mmu_invalidate_range_end.v = window

    assert vm.run(vm.store(vm.leaf)) == found


def test_a_leaf_for_a_frame_without_a_memslot_is_found(vm):
    """The slot was deleted meanwhile."""
    vm.kvm.memslots.cell.v = Memslots()

    assert vm.run(vm.store(vm.leaf)) == ["stale-spte"]


@pytest.mark.parametrize("kind", ["direct", "mirror"])
@pytest.mark.parametrize("gfns", [(5, 6), (0, 5), (6, 512)])
def test_a_promise_is_broken_exactly_by_a_leaf_in_its_range_and_table(vm, kind, gfns):
    """In a mirror a direct leaf does not count, and the other way round; an invalid root does."""
    vm.kvm.external = object()  # the VM has a mirror
    table = vm.tables["direct"]
    table.cell(5).v = vm.leaf
    table.parent[0].invalid.v = True
    vm.kernel.current = vm.kernel.thread("t", (step for step in ()))
    vm.kvm.promise_unmapped(
        "a zap", GfnRange(*map(Gfn, gfns)), direct=kind == "direct", mirror=kind == "mirror"
    )

    broken = kind == "direct" and gfns == (5, 6)
    assert [finding.kind for finding in vm.kernel.findings] == ["stale-spte"] * broken
    if broken:
        assert vm.kernel.findings[0].details["root"] == "invalid"
        assert "test_ledgers.py" in vm.kernel.findings[0].details["promised"]
