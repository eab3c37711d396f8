"""The guest's side: ACCEPT, #VE or exit, zero-step, host priority."""

from dataclasses import replace

import pytest

from sim import Kernel
from tdx.module import (
    SEPT_VE_DISABLE,
    Access,
    ExitReason,
    ExtendedType,
    Operand,
    Registers,
    SeptState,
    Status,
    TdExit,
    VirtualizationException,
    hardware_walk,
    private_ept_violation,
    profile_named,
    tdcall,
    tdg_mem_page_accept,
    tdg_vp_veinfo_get,
    tdg_vp_vmcall,
    tdh_mem_page_aug,
    tdh_mem_range_block,
    tdh_mem_range_unblock,
    tdh_mem_track,
)
from tdx.module.profile import TDX_1_5_01
from tdx.module.sept import SeptPage
from tdx.module.septe import TDEL, TDHP, make
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Gpa, Pfn, gpa_of


def accept(world, gfn=GFN, level=PG_LEVEL_4K, interrupt_pending=lambda: False):
    return tdg_mem_page_accept(
        world.module,
        td=world.td,
        vcpu=world.vcpu(),
        gpa=gpa_of(gfn),
        level=level,
        interrupt_pending=interrupt_pending,
    )


def test_accept_zeroes_and_maps_a_pending_page():
    """PENDING -> MAPPED; again: ALREADY_ACCEPTED, a warning with the level; the CPU walks it then."""
    world = World()
    zeroed = []
    world.module.on_page_zeroed = lambda pfn, pages: zeroed.append((pfn, pages))
    world.aug()
    assert run(world.kernel, hardware_walk(world.module, world.td, GFN)) is None
    first = run(world.kernel, accept(world))
    again = run(world.kernel, accept(world))

    assert first.ok
    assert zeroed == [(DATA, 1)]
    assert (again.status, again.ret.operand, again.ret.is_error) == (
        Status.TDX_PAGE_ALREADY_ACCEPTED,
        0,
        False,
    )
    entry, level = run(world.kernel, hardware_walk(world.module, world.td, GFN))
    assert (entry.pfn_at(level), level) == (DATA, PG_LEVEL_4K)


def test_accept_of_a_missing_page_leaves_with_both_levels():
    """A FREE page: EPT violation of type 1. 4K inside a PENDING 2M leaf: asked 0, reached 1, which makes the host demote."""
    world = World()
    missing = run(world.kernel, accept(world)).exit
    world.aug(GFN + 512, DATA + 512, PG_LEVEL_2M)
    inside = run(world.kernel, accept(world, GFN + 515)).exit

    assert missing.extended_type == ExtendedType.ACCEPT
    assert (missing.extended >> 32 & 7, missing.extended >> 35 & 7) == (0, 0)
    assert missing.qualification & Access.WRITE
    assert (inside.extended >> 32 & 7, inside.extended >> 35 & 7) == (0, 1)
    assert inside.extended >> 38 & 0xFF == SeptState.PENDING.public
    assert inside.extended >> 46 & 1


def test_accept_of_the_wrong_size_is_a_mismatch():
    """2M where a table is: PAGE_SIZE_MISMATCH|1; 1G is no size for ACCEPT; 4K in an accepted 2M page is accepted."""
    world = World()
    world.aug()
    mismatch = run(world.kernel, accept(world, GFN, PG_LEVEL_2M)).ret
    invalid = run(world.kernel, accept(world, GFN & -(1 << 18), PG_LEVEL_1G)).ret
    world.aug(GFN + 512, DATA + 512, PG_LEVEL_2M)
    assert run(world.kernel, accept(world, GFN + 512, PG_LEVEL_2M)).ok
    small = run(world.kernel, accept(world, GFN + 513)).ret

    assert str(mismatch) == "TDX_PAGE_SIZE_MISMATCH|1"
    assert str(invalid) == "TDX_OPERAND_INVALID|RCX"
    assert str(small) == "TDX_PAGE_ALREADY_ACCEPTED|1"


def test_an_interrupted_2m_accept_goes_on_where_it_was():
    """The counter is in the entry, whoever continues; no 4K page is zeroed twice; a block forgets it."""
    world = World()
    zeroed = []
    world.module.on_page_zeroed = lambda pfn, pages: zeroed.extend(range(pfn, pfn + pages))
    gfn = GFN + 512
    world.aug(gfn, DATA, PG_LEVEL_2M)
    assert run(world.kernel, accept(world, gfn, PG_LEVEL_2M, lambda: True)).interrupted
    entry = world.module.peek_septe(world.td, gfn, 2)
    assert (entry.accept_counter_at(2), entry.pfn_at(2), entry.is_locked) == (32, DATA, False)
    assert run(world.kernel, accept(world, gfn, PG_LEVEL_2M)).ok
    assert zeroed == list(range(DATA, DATA + 512))
    assert world.kernel.counters["accept_resumed"] == 1

    world.aug(GFN + 1024, DATA + 1024, PG_LEVEL_2M)
    assert run(world.kernel, accept(world, GFN + 1024, PG_LEVEL_2M, lambda: True)).interrupted
    assert world.on(tdh_mem_range_block, GFN + 1024, PG_LEVEL_2M).ok
    assert world.module.peek_septe(world.td, GFN + 1024, 2).accept_counter_at(2) == 0
    assert world.do(tdh_mem_track, td=world.td).ok
    assert world.on(tdh_mem_range_unblock, GFN + 1024, PG_LEVEL_2M).ok
    assert world.module.peek_septe(world.td, GFN + 1024, 2).pfn_at(2) == DATA + 1024


@pytest.mark.parametrize("quirk", [True, False])
def test_accept_that_races_with_aug_sees_a_false_mismatch_in_1_5(quirk):
    """FREE at the walk, PENDING under the lock: quirk 1 of the reference, absent when it is switched off."""
    seen = set()
    for cut in range(1, 40):
        world = World(Kernel(seed=1), profile=replace(TDX_1_5_01, accept_samples_leaf_before_lock=quirk))
        kernel, results = world.kernel, []

        def guest(world=world, results=results):
            results.append((yield from accept(world)))

        def host(world=world):
            yield from tdh_mem_page_aug(
                world.module, td=world.td, gpa=gpa_of(GFN), level=PG_LEVEL_4K, pfn=Pfn(DATA)
            )

        kernel.thread("vcpu", guest())
        kernel.thread("host", host())
        before = kernel.steps

        def pick(kernel, candidates, cut=cut, before=before):
            """So many steps of the guest, then the host to its end, then the guest."""
            names = [thread.name for thread in candidates]
            want = "vcpu" if kernel.steps - before < cut else "host"
            return names.index(want) if want in names else 0

        kernel.execute(pick)
        seen.add(str(results[0].ret) if results[0].ret is not None else "exit")
    assert ("TDX_PAGE_SIZE_MISMATCH|0" in seen) is quirk
    assert "TDX_SUCCESS" in seen


def violate(world, rip, gfn=GFN):
    """A guest that touches a page once."""

    def guest():
        return (
            yield from private_ept_violation(
                world.module, world.td, world.vcpu(), gpa_of(gfn), Access.WRITE, rip
            )
        )

    return guest


def test_a_pending_page_is_ve_or_exit_as_the_td_was_configured():
    """Without SEPT_VE_DISABLE a #VE; with it an exit of type 6; a missing page exits in both; a second #VE is a #DF."""
    for attributes in (0, SEPT_VE_DISABLE):
        world = World(attributes=attributes)
        missing = run(world.kernel, violate(world, 1)())
        world.aug()
        pending = run(world.kernel, violate(world, 2)())

        assert (missing.extended, missing.gpa) == (0, gpa_of(GFN))
        if attributes:
            assert pending.extended_type == ExtendedType.PENDING_EPT_VIOLATION
            continue
        assert pending == VirtualizationException(gpa_of(GFN), Access.WRITE)
        assert run(world.kernel, violate(world, 2)()).double_fault
        assert tdg_vp_veinfo_get(world.module, vcpu=world.vcpu()).ok
        assert tdg_vp_veinfo_get(world.module, vcpu=world.vcpu()).status is Status.TDX_NO_VALID_VE_INFO
        assert not run(world.kernel, violate(world, 2)()).double_fault


def test_zero_step_arms_at_the_seventh_violation_in_place():
    """Six are free, the seventh arms; then VP.ENTER answers for the guest until the page is there; another RIP disarms."""
    world = World()
    kernel, vcpu = world.kernel, world.vcpu()
    entries = []

    def counting(guest):
        def counted():
            entries.append(1)
            return (yield from guest())

        return counted

    for n in range(7):
        assert "zero_step_armed" not in kernel.counters
        ret = run(kernel, world.enter(counting(violate(world, 0x400))))
        assert ret.operand == 48
        assert vcpu.possibly_epf_stepping == min(n + 1, 6)
    assert kernel.counters["zero_step_armed"] == 1
    assert vcpu.last_epf_gpa_list == [gpa_of(GFN)]
    assert len(entries) == 7

    emulated = run(kernel, world.enter(counting(violate(world, 0x400))))
    assert (emulated.operand, emulated.rcx, emulated.rdx, emulated.r8) == (48, Access.WRITE, 0, gpa_of(GFN))
    world.aug()  # PENDING still does not translate: quirk 16
    assert run(kernel, world.enter(counting(violate(world, 0x400)))).operand == 48
    assert len(entries) == 7
    assert kernel.counters["zero_step_blocked_entry"] == 2
    unit = world.module.tdcs(world.td).epoch.peek()
    assert (unit.refcount0, unit.refcount1) == (0, 0)

    assert run(kernel, accept(world)).ok
    assert run(kernel, world.enter(counting(world.leave))).operand == 1
    assert len(entries) == 8
    assert vcpu.last_epf_gpa_list == []
    assert world.module.tdcs(world.td).sept_tree_lock.peek() == 0


def test_progress_and_accepts_keep_zero_step_quiet():
    """Violations at changing places never arm it, nor do ACCEPTs, nor anything when it is off."""
    world = World()
    for rip in range(20):
        run(world.kernel, world.enter(violate(world, rip)))
    for _ in range(20):
        run(world.kernel, accept(world))
    off = World(zero_step=False)
    for _ in range(20):
        run(off.kernel, off.enter(violate(off, 1)))

    assert "zero_step_armed" not in world.kernel.counters
    assert "zero_step_armed" not in off.kernel.counters


def septe_cell(world, gfn=GFN, level=1):
    page = world.module.tdcs(world.td).root
    while page.level > level:
        page = world.module.sept_pages[page.septe(gfn).peek() >> 12 & (1 << 34) - 1]
    return page.septe(gfn)


def test_a_host_that_lost_has_priority_over_guests():
    """A busy host call sets TDHP; guests get plain BUSY until a host call takes the entry; after a second they leave."""
    world = World()
    world.aug()
    kernel = world.kernel
    cell = septe_cell(world)
    cell.v |= TDEL  # somebody holds it
    lost = world.on(tdh_mem_range_block)
    assert str(lost) == "TDX_OPERAND_BUSY|RCX"
    assert cell.v & TDHP
    assert str(run(kernel, accept(world)).ret) == "TDX_OPERAND_BUSY|RCX"
    cell.v &= ~TDEL

    first = run(kernel, accept(world))
    assert (str(first.ret), first.exit) == ("TDX_OPERAND_BUSY|RCX", None)
    assert cell.v & (TDEL | TDHP) == TDHP
    kernel.run(until=kernel.now_ns + 1_000_000_000)
    late = run(kernel, accept(world))
    assert late.exit == TdExit.host_priority_timeout()
    assert (str(late.ret), late.exit.trap_like) == ("TDX_OPERAND_BUSY|RCX", True)
    assert kernel.counters["host_priority_won"] == 2
    assert kernel.counters["sept_entry_busy"] == 2

    assert world.on(tdh_mem_range_block).ok
    assert not cell.v & TDHP


def test_vmcall_leaves_and_a_wrong_mask_does_not():
    """Reason 77 with the arguments; reserved mask bits are OPERAND_INVALID|RCX."""
    world = World()

    def guest():
        yield world.module.state.read_once()
        return tdg_vp_vmcall(world.module, vcpu=world.vcpu(), args=(0, 12))

    ret = run(world.kernel, world.enter(guest))
    wrong = tdg_vp_vmcall(world.module, vcpu=world.vcpu(), args=(), mask=1)

    assert (ret.rax & 0xFFFF, ret.exit.args) == (77, (0, 12))
    assert (wrong.status, wrong.operand) == (Status.TDX_OPERAND_INVALID, Operand.RCX)


# ACCEPT, access by access.


def race_at(world, cut, host, guest=None):
    """The guest takes so many steps of an ACCEPT, then the host runs to its end, then the guest; returns both results."""
    kernel, results = world.kernel, {}

    def keep(name, steps):
        results[name] = yield from steps

    kernel.thread("guest", keep("guest", guest or accept(world)))
    kernel.thread("host", keep("host", host))
    before = kernel.steps

    def pick(kernel, candidates):
        names = [thread.name for thread in candidates]
        want = "guest" if kernel.steps - before < cut else "host"
        return names.index(want) if want in names else 0

    kernel.execute(pick)
    return results["guest"], results["host"]


WALK = 1 + 4
"""A thread's start, and the reads of a walk through four levels."""


@pytest.mark.parametrize(
    ("release", "cut", "host", "guest", "priority"),
    [
        ("1.5.01", WALK, "TDX_SUCCESS", "exit", False),
        ("1.5.01", WALK + 1, "TDX_OPERAND_BUSY|RCX", "TDX_OPERAND_BUSY|RCX", True),  # quirk 3
        ("1.5.01", WALK + 2, "TDX_OPERAND_BUSY|RCX", "TDX_SUCCESS", True),
        ("1.5.01", WALK + 3, "TDX_OPERAND_BUSY|RCX", "TDX_SUCCESS", False),  # quirk 2
        ("1.5.01", WALK + 4, "TDX_OPERAND_BUSY|RCX", "TDX_SUCCESS", True),
        ("1.5.01", WALK + 5, "TDX_SUCCESS", "TDX_SUCCESS", False),
        ("2.0", WALK, "TDX_SUCCESS", "exit", False),
        ("2.0", WALK + 1, "TDX_SUCCESS", "exit", False),
        ("2.0", WALK + 2, "TDX_OPERAND_BUSY|RCX", "TDX_SUCCESS", True),
        ("2.0", WALK + 3, "TDX_OPERAND_BUSY|RCX", "TDX_SUCCESS", True),
        ("2.0", WALK + 4, "TDX_OPERAND_BUSY|RCX", "TDX_SUCCESS", True),
    ],
)
def test_a_block_between_two_accesses_of_an_accept(release, cut, host, guest, priority):
    """After the walk, the lock, the look at TDHP, the second read, the write, the release: who wins, and whether TDHP survives."""
    world = World(profile=profile_named(release))
    world.aug()
    block = tdh_mem_range_block(world.module, td=world.td, gpa=gpa_of(GFN), level=PG_LEVEL_4K)
    accepted, blocked = race_at(world, cut, block)

    assert (str(blocked), "exit" if accepted.exit else str(accepted.ret)) == (host, guest)
    word = septe_cell(world).peek()
    assert (bool(word & TDHP), word & TDEL) == (priority, 0)


@pytest.mark.parametrize(
    ("seen", "found", "in_1_5", "in_2_0"),
    [
        (SeptState.FREE, SeptState.PENDING, "TDX_PAGE_SIZE_MISMATCH|1", "TDX_SUCCESS"),
        (SeptState.PENDING, SeptState.NL_MAPPED, "exit", "TDX_PAGE_SIZE_MISMATCH|1"),
        (SeptState.REMOVED, SeptState.REMOVED, "TDX_PAGE_SIZE_MISMATCH|1", "exit"),
        (SeptState.FREE, SeptState.REMOVED, "TDX_PAGE_SIZE_MISMATCH|1", "exit"),
        (SeptState.PENDING, SeptState.FREE, "exit", "exit"),
        (SeptState.PENDING, SeptState.MAPPED, "TDX_PAGE_ALREADY_ACCEPTED|1", "TDX_PAGE_ALREADY_ACCEPTED|1"),
    ],
)
def test_an_entry_that_changes_between_walk_and_lock(seen, found, in_1_5, in_2_0):
    """Quirk 1: 1.5 remembers from before the lock whether it was a leaf; 2.0 asks the entry that it holds, and REMOVED is free."""
    for release, expected in (("1.5.01", in_1_5), ("2.0", in_2_0)):
        world = World(profile=profile_named(release))
        cell = septe_cell(world, GFN + 512, 2)
        cell.v = int(make(seen, DATA + 512))

        def change(world=world, cell=cell):
            cell.v = int(make(found, DATA + 512))
            yield world.module.state.read_once()

        result, _ = race_at(world, WALK - 1, change(), accept(world, GFN + 512, PG_LEVEL_2M))
        assert ("exit" if result.exit else str(result.ret)) == expected, release
        if result.exit:
            assert result.exit.extended >> 38 & 0xFF == found.public
            assert result.exit.qualification == Access.WRITE | found.rwx << 3
        assert not cell.peek() & TDEL


def test_accept_keeps_what_is_no_state_of_the_page():
    """PENDING_EXPORTED_DIRTY becomes EXPORTED_DIRTY; alias bits and frame stay, for both sizes."""
    world = World()
    for gfn, level, pfn in ((GFN, PG_LEVEL_4K, DATA + 5), (GFN + 512, PG_LEVEL_2M, DATA + 512)):
        cell = septe_cell(world, gfn, level)
        cell.v = int(make(SeptState.PENDING_EXPORTED_DIRTY, pfn)) | 2 << 58
        assert run(world.kernel, accept(world, gfn, level)).ok
        assert cell.peek() == int(make(SeptState.EXPORTED_DIRTY, pfn)) | 2 << 58


def test_two_vcpus_accept_one_2m_page_in_turns():
    """Each is interrupted after every part; whoever comes last maps the page, the other is told so; no part is zeroed twice."""
    world = World(vcpus=2, accept_step_pages=64)
    zeroed, tests = [], []
    world.module.on_page_zeroed = lambda pfn, pages: zeroed.extend(range(pfn, pfn + pages))
    gfn = GFN + 512
    world.aug(gfn, DATA, PG_LEVEL_2M)
    rax = 6
    results = []
    for turn in range(9):
        pending = lambda: tests.append(1) or True  # noqa: E731
        steps = tdcall(
            world.module, world.vcpu(turn % 2), Registers(rax, gpa_of(gfn) | 1), interrupt_pending=pending
        )
        results.append(run(world.kernel, steps))

    assert [result.interrupted for result in results] == [True] * 7 + [False] * 2
    assert results[7].ok
    assert str(results[8].ret) == "TDX_PAGE_ALREADY_ACCEPTED|1"
    assert zeroed == list(range(DATA, DATA + 512))
    assert len(tests) == 7  # none after the last part


# A guest's access to a page in each state.


@pytest.mark.parametrize("state", SeptState)
@pytest.mark.parametrize("disabled", [True, False])
def test_what_an_access_comes_to_in_each_state(state, disabled):
    """Reference 11.1: a pending page that may be accepted is a #VE, or an exit of type 6; all else exits plainly. Exits are logged."""
    world = World(attributes=SEPT_VE_DISABLE if disabled else 0)
    gfn = GFN + 512
    septe_cell(world, gfn, 2).v = int(make(state, DATA + 512))
    if state is SeptState.NL_MAPPED:
        below = world.module.sept_pages[Pfn(DATA + 512)] = SeptPage(Pfn(DATA + 512), PG_LEVEL_4K, gfn)
        assert below.septe(gfn).peek() == make(SeptState.FREE)
    vcpu = world.vcpu()
    qualification = Access.READ | 1 << 7 | 1 << 12
    gpa = Gpa(gpa_of(gfn) + 0x123)
    outcome = run(world.kernel, private_ept_violation(world.module, world.td, vcpu, gpa, qualification, None))

    acceptable = state in (SeptState.PENDING, SeptState.PENDING_EXPORTED_DIRTY)
    if acceptable and not disabled:
        assert outcome == VirtualizationException(gpa, qualification)
        assert vcpu.possibly_epf_stepping == 0
        again = run(
            world.kernel, private_ept_violation(world.module, world.td, vcpu, gpa + 1, qualification, None)
        )
        assert again.double_fault
        info = run(world.kernel, tdcall(world.module, vcpu, Registers(3))).ret
        assert (info.rcx, info.rdx, info.r8, info.r9) == (48, qualification, 0, gpa)  # the first one's
        return
    assert outcome == TdExit(
        ExitReason.EPT_VIOLATION, Access.READ, 6 if acceptable else 0, gpa_of(gfn), trap_like=False
    )
    assert vcpu.possibly_epf_stepping == 1
