"""The fault path against the reference's list of steps (section 3), access by access, and what a fault may end in."""

from __future__ import annotations

import pytest

from mmu.conversion import kvm_vm_set_mem_attributes
from mmu.errno import Errno
from mmu.fault import RetPf
from mmu.invalidate import kvm_mmu_invalidate_begin, kvm_mmu_invalidate_end, kvm_mmu_invalidate_range_add
from mmu.memslot_paths import invalidate_memslot
from mmu.spte import is_frozen_spte
from tests.tdx.kvm.worlds import BASE, GFN, fault, run, scenario
from vcpu.addresses import Gfn, GfnRange

MMU = ("mmu_", "mem_attr", "gmem", "role.invalid", "rcu ", "spte[", "kvm.memslots")

F11 = ["load-acquire kvm.memslots"]
F21 = ["plain read mmu_invalidate_seq"]
F23 = [f"read mem_attr[gfn {GFN:#x}]"]
UNLOCKED_CHECK = ["read mmu_invalidate_in_progress", "read mmu_invalidate_seq"]
F27A = ["load-acquire slot 0.gmem.file", "inc_not_zero gmem0.refs"]
F27B = ["read slot 0.gmem.file", "read gmem0.bindings[0x0, 0x200)"]
F27C = ["read gmem.pages[0x0]", "write-lock gmem.folio[0x0].lock", "cmpxchg gmem.pages[0x0]"]
F27E = [
    "plain read gmem.folio[0x0].uptodate",
    "plain write gmem.folio[0x0].uptodate",
    "unlock gmem.folio[0x0].lock",
    "fetch_add gmem0.refs",
]
F30 = ["read-lock mmu_lock"]
F31 = [
    "plain read table[direct 512G gfn 0x0].role.invalid",
    "plain read mmu_invalidate_in_progress",
    "plain read mmu_invalidate_seq",
]
F34 = ["rcu enter rcu"]
F60 = ["rcu leave rcu", "unlock mmu_lock"]


def table(level, gfn):
    """F35 or F3E, F3A to F3D and F39 at one level: read, freeze, link, thaw, read again, descend."""
    entry = f"spte[mirror {level} gfn {gfn:#x}]"
    return [f"{verb} {entry}" for verb in ("read", "cmpxchg", "write", "read")]


LEAF = [f"{verb} spte[mirror 4K gfn {GFN:#x}]" for verb in ("read", "cmpxchg", "write")]


def handled(done, thread="vcpu0"):
    """The mmu's accesses of the first pass through the handler."""
    steps = done.of(thread, *MMU)
    first = steps.index(F11[0])
    return steps[first : steps.index("unlock mmu_lock", first) + 1]


def test_one_private_4k_fault_takes_the_references_steps(tmp_path):
    """F21 before F23, both before F27; F2A before F30; F31 before anything is read of the table; L5 freezes first."""
    done = run(scenario(tmp_path, f"vcpu0: [{{touch: {{at: {BASE:#x}}}}}]"), "vcpu0*1000")

    assert handled(done) == [
        *F11, *F21, *F23, *UNLOCKED_CHECK,
        *F27A, *F27B, *F27C, *F27E, *UNLOCKED_CHECK,
        *F30, *F31, *F34,
        *table("512G", 0), *table("1G", 0), *table("2M", GFN), *LEAF,
        *F60,
    ]  # fmt: skip


def test_the_leaf_is_frozen_while_the_module_maps_it(tmp_path):
    """L5 for a mirror: FROZEN, the SEAMCALL, and only then the new value (reference 3.7)."""
    frozen = []

    def watch(world):
        def check(kernel, thread, access):
            if "sept[" in repr(access) and "4K" in repr(access) and access.writes:
                held = world.kvm.mmu_lock.held_by(thread)
                if held == "read":
                    sptes = [cell.peek() for root in world.kvm.tdp_mmu_roots for cell in cells(world, root)]
                    frozen.append(sum(map(is_frozen_spte, sptes)))

        world.kernel.check(check)

    done = run(scenario(tmp_path, f"vcpu0: [{{touch: {{at: {BASE:#x}}}}}]"), "vcpu0*1000", watch)

    assert done.kernel.counters["seamcall.TDH.MEM.PAGE.AUG"] == 1
    assert frozen
    assert set(frozen) == {1}


def cells(world, root):
    """Every word of every table below `root`."""
    from tdx.kvm.properties import tables

    return [
        cell
        for sp in tables(world.kvm)
        for cell in sp.cells.values()
        if sp.is_mirror is root.is_mirror and sp.is_mirror
    ]


def test_the_second_fault_makes_no_table(tmp_path):
    """The neighbour's fault reads three present entries twice each (F35, F39) and writes the leaf alone."""
    loaded = scenario(tmp_path, f"vcpu0: [{{touch: {{at: {BASE:#x}, size: 8K}}}}]")
    done = run(loaded, "vcpu0*1000")
    mirror = [what for what in done.of("vcpu0", "spte[mirror") if "direct" not in what]
    second = mirror[len(table("", 0)) * 3 + len(LEAF) :]

    assert [what.split(" ", 1)[0] for what in second] == ["read"] * 7 + ["cmpxchg", "write"]


def outcomes(tmp_path, steps, *, td="vcpus: 1"):
    """What the faults of a world's only thread ended in; findings are not allowed."""
    got = []

    def more(world):
        world.kernel.thread("t", steps(world, got))

    done = run(scenario(tmp_path, td=td), None, more)
    assert not done.kernel.findings, done.kernel.findings
    return got


def test_the_first_fault_fixes_and_the_second_is_spurious(tmp_path):
    """RET_PF_FIXED, then RET_PF_SPURIOUS with no SEAMCALL more."""

    def steps(world, got):
        for _ in range(2):
            got.append((yield from fault(world)))
        got.append(world.kernel.counters["seamcall.TDH.MEM.PAGE.AUG"])

    assert outcomes(tmp_path, steps) == [RetPf.FIXED, RetPf.SPURIOUS, 1]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 1, RetPf.RETRY), (-4, 9, RetPf.RETRY), (1, 2, RetPf.FIXED), (-1, 0, RetPf.FIXED)],
)
def test_a_fault_in_range_of_an_open_window_retries(tmp_path, start, end, expected):
    """F26: by range, half-open; a fault beside it goes on. After the window, it is mapped."""

    def steps(world, got):
        kvm = world.kvm
        yield kvm.mmu_lock.write_lock()
        yield from kvm_mmu_invalidate_begin(kvm)
        yield from kvm_mmu_invalidate_range_add(kvm, GFN + start, GFN + end)
        yield kvm.mmu_lock.write_unlock()
        got.append((yield from fault(world)))
        yield kvm.mmu_lock.write_lock()
        yield from kvm_mmu_invalidate_end(kvm)
        yield kvm.mmu_lock.write_unlock()
        got.append((yield from fault(world)))

    after = RetPf.FIXED if expected is RetPf.RETRY else RetPf.SPURIOUS
    assert outcomes(tmp_path, steps) == [expected, after]


@pytest.mark.parametrize(("private", "to_private"), [(True, False), (False, True)])
def test_a_fault_on_the_other_sides_page_is_a_memory_fault(tmp_path, private, to_private):
    """F23: attribute and access disagree: -EFAULT, and no frame is taken. Agreeing, it is mapped."""

    def steps(world, got):
        kvm = world.kvm
        addr = BASE if private else BASE | world.shared_bit_mask
        yield from kvm_vm_set_mem_attributes(kvm, GfnRange(Gfn(GFN), Gfn(GFN + 1)), private=to_private)
        before = kvm.host_memory.in_use
        got.append((yield from fault(world, addr, private=private)))
        made = [root.spt_pfn for root in kvm.tdp_mmu_roots]
        got.append(kvm.host_memory.in_use - before - len(made))
        yield from kvm_vm_set_mem_attributes(kvm, GfnRange(Gfn(GFN), Gfn(GFN + 1)), private=private)
        got.append((yield from fault(world, addr, private=private)))

    assert outcomes(tmp_path, steps) == [Errno.EFAULT, 0, RetPf.FIXED]


@pytest.mark.parametrize(("prefetch", "expected"), [(False, RetPf.RETRY), (True, Errno.EAGAIN)])
def test_a_fault_on_an_invalid_slot_retries(tmp_path, prefetch, expected):
    """F25: RETRY for a vCPU, -EAGAIN for a prefetch, before guest_memfd is asked."""

    def steps(world, got):
        kvm = world.kvm
        yield kvm.slots_lock.lock()
        yield from invalidate_memslot(kvm, kvm.slot_of(GFN))
        yield kvm.slots_lock.unlock()
        got.append((yield from fault(world, prefetch=prefetch)))

    assert outcomes(tmp_path, steps) == [expected]


@pytest.mark.parametrize(("private", "expected"), [(True, Errno.EFAULT), (False, RetPf.EMULATE)])
def test_a_fault_without_a_slot(tmp_path, private, expected):
    """F24: private: a memory fault; shared: MMIO."""

    def steps(world, got):
        hole = 0x9000000
        if private:
            yield from kvm_vm_set_mem_attributes(
                world.kvm, GfnRange(Gfn(hole >> 12), Gfn((hole >> 12) + 1)), private=True
            )
        got.append(
            (yield from fault(world, hole if private else hole | world.shared_bit_mask, private=private))
        )

    assert outcomes(tmp_path, steps) == [expected]
