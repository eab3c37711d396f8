"""DEMOTE, PROMOTE and RELOCATE one after the other: what children look like, what stops a merge, what an interrupt leaves."""

import pytest

from tdx.module import (
    Operand,
    OpState,
    PageType,
    SeptState,
    Status,
    tdh_mem_page_demote,
    tdh_mem_page_promote,
    tdh_mem_page_relocate,
    tdh_mem_range_block,
    tdh_mem_track,
    tdh_phymem_page_wbinvd,
)
from tdx.module.invariants import INVARIANTS
from tdx.module.profile import NBR, TDX_1_0, TDX_1_5_28, TDX_2_0
from tdx.module.septe import SVE, TDEL, TDHP, Septe, make
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Gfn, Pfn, gpa_of

BIG = Gfn(GFN + 512)
"""A 2M range without an S-EPT page below."""
HUGE = Gfn(0x40000)
HUGE_DATA = 0x40000


def word(world, gfn, level=PG_LEVEL_4K):
    return world.module.peek_septe(world.td, gfn, level)


def put(world, gfn, level, entry):
    """Write an entry by hand."""
    world.module.peek_septe(world.td, gfn, level)
    page = world.module.tdcs(world.td).root
    while page.level != level:
        page = world.module.sept_pages[Septe(page.septe(gfn).peek()).pfn_at(0)]
    page.septe(gfn).v = int(entry)


def kept(world):
    """All invariants hold."""
    for text, invariant in INVARIANTS.items():
        assert invariant(world.module)() is True, text


def large(state=SeptState.MAPPED, *, finalize=False, counter=0, profile=None, **options):
    """A TD with one 2M leaf at BIG in that state."""
    if profile is not None:
        options["profile"] = profile
    world = World(finalize=finalize, **options)
    world.aug(BIG, DATA, PG_LEVEL_2M)
    put(world, BIG, PG_LEVEL_2M, make(state, DATA).with_accept_counter(counter))
    return world


def huge(**options):
    """A TD with one PENDING 1G leaf at HUGE, merged from 512 2M leaves."""
    world = World(finalize=False, **options)
    run(world.kernel, world.tables(HUGE, PG_LEVEL_1G))
    for n in range(512):
        world.aug(Gfn(HUGE + 512 * n), HUGE_DATA + 512 * n, PG_LEVEL_2M)
    return world


def demote(world, gfn=BIG, level=PG_LEVEL_2M, pfn=None, **options):
    pfn = world.page() if pfn is None else pfn
    return world.on(tdh_mem_page_demote, gfn, level, pfn=pfn, lp=world.lps[0], **options)


def promote(world, gfn=BIG, level=PG_LEVEL_2M, **options):
    return world.on(tdh_mem_page_promote, gfn, level, lp=world.lps[0], **options)


def split(**options):
    """A TD whose 2M leaf at BIG has been demoted, and the frame of the S-EPT page."""
    world = large(**options)
    pfn = world.page()
    assert demote(world, pfn=pfn).ok
    return world, pfn


def block_and_track(world, gfn=BIG, level=PG_LEVEL_2M):
    assert world.on(tdh_mem_range_block, gfn, level).ok
    assert world.do(tdh_mem_track, td=world.td).ok


CHILD = {
    SeptState.MAPPED: SeptState.MAPPED,
    SeptState.BLOCKED: SeptState.MAPPED,
    SeptState.PENDING: SeptState.PENDING,
    SeptState.PENDING_BLOCKED: SeptState.PENDING,
}


@pytest.mark.parametrize("state", CHILD, ids=lambda state: state.name)
def test_children_are_open_and_map_the_same_frames(state):
    """512 equal entries but for consecutive frames, whatever the parent was; 512 PAMT entries with BEPOCH 0; one page more."""
    world = large(state, counter=77 if state is SeptState.PENDING else 0)
    before = world.module.chldcnt(world.td)
    for n in (0, 100, 511):
        world.module.pamt.entry(DATA + n, 1).bepoch.v = 9
    pfn = world.page()
    ret = demote(world, pfn=pfn)

    assert ret.ok
    assert (ret.rcx, ret.rdx) == (0, 0)
    assert word(world, BIG, PG_LEVEL_2M) == make(SeptState.NL_MAPPED, pfn)
    assert [word(world, BIG + n) for n in range(512)] == [make(CHILD[state], DATA + n) for n in range(512)]
    assert [world.module.pamt.leaf(DATA + n).bepoch.peek() for n in range(512)] == [0] * 512
    assert world.module.pamt.leaf(pfn).kind is PageType.PT_EPT
    assert world.module.chldcnt(world.td) == before + 1
    kept(world)


@pytest.mark.parametrize("state", [SeptState.MAPPED, SeptState.PENDING], ids=lambda state: state.name)
def test_a_merge_undoes_a_split(state):
    """The same leaf, the same PAMT, the same count; the S-EPT page is nobody's and its address comes back."""
    world = large(state)
    before = word(world, BIG, PG_LEVEL_2M), world.module.chldcnt(world.td)
    pfn = world.page()
    demote(world, pfn=pfn)
    ret = promote(world)

    assert ret.ok
    assert ret.rcx == gpa_of(pfn)
    assert (word(world, BIG, PG_LEVEL_2M), world.module.chldcnt(world.td)) == before
    assert world.module.pamt_type(pfn) is PageType.PT_NDA
    assert world.module.pamt.leaf(DATA + 5).level == PG_LEVEL_2M
    assert pfn not in world.module.sept_pages
    kept(world)


def test_1g_splits_into_2m_leaves_and_merges_back():
    """Both ways at the larger size: PAMT entries are of 2M, the child count changes by the one S-EPT page."""
    world = huge()
    count = world.module.chldcnt(world.td)
    ret = promote(world, HUGE, PG_LEVEL_1G)
    freed = ret.rcx >> 12

    assert ret.ok
    assert word(world, HUGE, PG_LEVEL_1G) == make(SeptState.PENDING, HUGE_DATA)
    assert world.module.pamt.leaf(HUGE_DATA + 70000).level == PG_LEVEL_1G
    assert world.module.chldcnt(world.td) == count - 1
    kept(world)
    assert demote(world, HUGE, PG_LEVEL_1G, Pfn(freed)).ok
    assert word(world, HUGE + 512 * 9, PG_LEVEL_2M) == make(SeptState.PENDING, HUGE_DATA + 512 * 9)
    assert world.module.pamt.leaf(HUGE_DATA + 70000).level == PG_LEVEL_2M
    assert world.module.chldcnt(world.td) == count
    kept(world)


def test_quirk_15_an_unfinished_accept_does_not_keep_2m_children_apart():
    """Counters are not compared; that of child 0 gets into the 1G leaf, and DEMOTE computes frames without it."""
    world = huge()
    put(world, HUGE, PG_LEVEL_2M, word(world, HUGE, PG_LEVEL_2M).with_accept_counter(300))
    put(world, HUGE + 512, PG_LEVEL_2M, word(world, HUGE + 512, PG_LEVEL_2M).with_accept_counter(5))

    assert promote(world, HUGE, PG_LEVEL_1G).ok
    merged = word(world, HUGE, PG_LEVEL_1G)
    assert merged == make(SeptState.PENDING, HUGE_DATA).with_accept_counter(300)
    assert merged.pfn_at(PG_LEVEL_1G) == HUGE_DATA
    assert demote(world, HUGE, PG_LEVEL_1G).ok
    assert word(world, HUGE, PG_LEVEL_2M) == make(SeptState.PENDING, HUGE_DATA)


# What stops a merge.


def child(index, change):
    return lambda world: put(world, BIG + index, PG_LEVEL_4K, change(word(world, BIG + index)))


OFFENCES = {
    "child 0 free": child(0, lambda _entry: make(SeptState.FREE)),
    "a child free": child(300, lambda _entry: make(SeptState.FREE)),
    "a child removed": child(7, lambda _entry: make(SeptState.REMOVED)),
    "a child blocked": child(511, lambda entry: entry.become(SeptState.BLOCKED, 1)),
    "a child pending": child(33, lambda entry: entry.become(SeptState.PENDING, 1)),
    "a frame out of stride": child(2, lambda entry: entry.with_pfn(DATA + 4)),
    "child 0 misaligned": child(0, lambda entry: entry.with_pfn(DATA + 1)),
    "a child with another alias": child(9, lambda entry: entry.with_alias(2)),
    "a child without suppress-#VE": child(9, lambda entry: entry & ~SVE),
    "all children exported": lambda world: [
        child(n, lambda entry: entry.become(SeptState.EXPORTED_DIRTY, 1))(world) for n in range(512)
    ],
}
STEPS = pytest.mark.parametrize("step", [1, 32, 500, 512])


@STEPS
@pytest.mark.parametrize("offence", OFFENCES)
def test_children_that_differ_are_not_merged(offence, step):
    """EPT_INVALID_PROMOTE_CONDITIONS with the parent's details, and every word is what it was."""
    world, _ = split(promote_step_children=step)
    OFFENCES[offence](world)
    before = [word(world, BIG + n) for n in range(512)]
    ret = promote(world)

    assert (ret.status, ret.operand) == (Status.TDX_EPT_INVALID_PROMOTE_CONDITIONS, Operand.RCX)
    assert ret.rdx == 1 | SeptState.NL_MAPPED.public << 8
    assert [word(world, BIG + n) for n in range(512)] == before
    assert word(world, BIG, PG_LEVEL_2M).state is SeptState.NL_MAPPED


@STEPS
@pytest.mark.parametrize(("held", "differs"), [(0, None), (40, None), (40, 41), (511, None)])
def test_a_child_that_is_held_is_busy_and_gets_host_priority(held, differs, step):
    """The first offender decides, whatever comes after it; all locks that were taken are given back."""
    world, _ = split(promote_step_children=step)
    child(held, lambda entry: entry | TDEL)(world)
    if differs is not None:
        child(differs, lambda _entry: make(SeptState.FREE))(world)
    ret = promote(world)

    assert (ret.status, ret.operand) == (Status.TDX_OPERAND_BUSY, Operand.RCX)
    assert ret.rdx == 1 | SeptState.NL_MAPPED.public << 8
    bits = {n: word(world, BIG + n) & (TDEL | TDHP) for n in range(512)}
    assert {n: bit for n, bit in bits.items() if bit} == {held: TDEL | TDHP}


@STEPS
def test_a_child_after_the_first_offender_is_not_tried(step):
    """A held child behind one that differs keeps its word: no host priority is left on it."""
    world, _ = split(promote_step_children=step)
    child(40, lambda _entry: make(SeptState.FREE))(world)
    child(41, lambda entry: entry | TDEL)(world)
    ret = promote(world)

    assert ret.status is Status.TDX_EPT_INVALID_PROMOTE_CONDITIONS
    assert word(world, BIG + 41) & (TDEL | TDHP) == TDEL


def test_host_priority_from_the_past_stops_no_merge():
    """PROMOTE's own lock takes it away."""
    world, _ = split()
    child(40, lambda entry: entry | TDHP)(world)

    assert promote(world).ok


def test_a_release_that_locks_no_children_ignores_host_priority_on_them():
    """2.0 compares without it, and does not copy it."""
    world, _ = split(profile=TDX_2_0)
    child(0, lambda entry: entry | TDHP)(world)

    assert promote(world).ok
    assert not word(world, BIG, PG_LEVEL_2M).has_host_priority


@pytest.mark.parametrize("profile", [TDX_1_0, None], ids=["1.0", "1.5.01"])
def test_only_1_0_refuses_to_merge_pending_children(profile):
    """1.0 wants all children mapped."""
    world = large(SeptState.PENDING, profile=profile)
    block_and_track(world)
    assert demote(world).ok
    block_and_track(world)
    expected = Status.TDX_SUCCESS if profile is None else Status.TDX_EPT_INVALID_PROMOTE_CONDITIONS

    assert promote(world).status is expected


# When blocking and tracking are asked for.


@pytest.mark.parametrize(
    ("profile", "finalize", "wanted"),
    [(None, False, False), (None, True, True), (TDX_1_0, False, True), (NBR, True, False)],
    ids=["1.5.01 building", "1.5.01 running", "1.0 building", "nbr running"],
)
def test_who_wants_the_range_blocked_and_tracked(profile, finalize, wanted):
    """First NOT_BLOCKED with details, then TLB_TRACKING_NOT_DONE without, then success; or success at once."""
    world = large(finalize=finalize, profile=profile)
    for resize in (demote, promote):
        if wanted:
            assert resize(world).status is Status.TDX_GPA_RANGE_NOT_BLOCKED
            world.on(tdh_mem_range_block, BIG, PG_LEVEL_2M)
            ret = resize(world)
            assert (ret.status, ret.rcx, ret.rdx) == (Status.TDX_TLB_TRACKING_NOT_DONE, 0, 0)
            world.do(tdh_mem_track, td=world.td)
        assert resize(world).ok
    kept(world)


def test_details_of_an_unblocked_pending_leaf_hide_its_accept_counter():
    """DEMOTE looks at the entry without it; a wrong state is shown as it is."""
    world = large(SeptState.PENDING, finalize=True, counter=77)
    ret = demote(world)

    assert ret.status is Status.TDX_GPA_RANGE_NOT_BLOCKED
    assert ret.rcx == make(SeptState.PENDING, DATA).arch


# Interrupts.


def interrupt(world, after=0):
    """An interrupt that comes after so many tests."""
    seen = []

    def pending():
        seen.append(None)
        return len(seen) > after

    world.lps[0].interrupt_pending = pending
    return seen


def test_quirk_18_an_interrupted_split_has_written_its_page_and_nothing_else():
    """RESTARTABLE: the same call works later; any other use of the page needs a write-back under that key."""
    world = large(finalize=True)
    block_and_track(world)
    before = word(world, BIG, PG_LEVEL_2M)
    pfn = world.page()
    interrupt(world)
    ret = demote(world, pfn=pfn, l2_sept_add_mode=True)

    assert (ret.status, ret.operand) == (Status.TDX_INTERRUPTED_RESTARTABLE, None)
    assert (ret.rcx, ret.rdx) == (gpa_of(BIG) | 1, gpa_of(world.td.tdr_pfn) | 1)
    assert word(world, BIG, PG_LEVEL_2M) == before
    assert world.module.pamt_type(pfn) is PageType.PT_NDA
    assert world.module.pamt_type(DATA + 3) is PageType.PT_REG
    assert world.module.overwritten == {pfn: 32}
    kept(world)
    world.do(tdh_phymem_page_wbinvd, pfn=pfn, hkid=33)
    assert world.module.overwritten == {pfn: 32}
    world.do(tdh_phymem_page_wbinvd, pfn=pfn, hkid=32)
    assert world.module.overwritten == {}


def test_an_interrupted_split_goes_on_with_the_same_operands():
    """Nothing is left over once it has committed."""
    world = large(finalize=True)
    block_and_track(world)
    pfn = world.page()
    interrupt(world)
    demote(world, pfn=pfn)
    world.lps[0].interrupt_pending = lambda: False

    assert demote(world, pfn=pfn).ok
    assert world.module.overwritten == {}
    kept(world)


@pytest.mark.parametrize("version", [0, 1])
def test_an_interrupted_merge_leaves_nothing(version):
    """The last test is after all comparisons; children are let go of, and version 1 returns no L2 pages."""
    world, pfn = split()
    before = [word(world, BIG + n) for n in range(512)]
    interrupt(world)
    ret = promote(world, version=version)

    assert ret.status is Status.TDX_INTERRUPTED_RESTARTABLE
    assert (ret.rcx, ret.rdx) == (gpa_of(BIG) | 1, gpa_of(world.td.tdr_pfn))
    assert (ret.r9, ret.r10, ret.r11) == ((1 << 64) - 1 if version else 0,) * 3
    assert [word(world, BIG + n) for n in range(512)] == before
    assert world.module.pamt_type(pfn) is PageType.PT_EPT
    kept(world)


@pytest.mark.parametrize(
    ("profile", "l2_vms", "tests"),
    [(None, 0, 1), (TDX_1_5_28, 0, 0), (TDX_1_5_28, 1, 1), (TDX_1_0, 0, 0)],
    ids=["1.5.01", "1.5.28", "1.5.28 with an L2 VM", "1.0"],
)
def test_how_often_a_split_looks_at_interrupts(profile, l2_vms, tests):
    """1.5.01 always, 1.5.28 only with L2 VMs, 1.0 never; no L2 pages are given here."""
    world = large(profile=profile, l2_vms=l2_vms)
    if profile is TDX_1_0:
        block_and_track(world)
    seen = interrupt(world, after=99)

    assert demote(world).ok
    assert len(seen) == tests


def test_a_busy_pamt_entry_comes_after_the_page_was_written():
    """The split page's PAMT entry is the last thing that can refuse; merging finds the same at the end."""
    world = large()
    entry = world.module.pamt.entry(DATA, PG_LEVEL_2M)
    entry.lock.v = 4
    pfn = world.page()
    ret = demote(world, pfn=pfn)

    assert (ret.status, ret.operand, ret.rcx) == (Status.TDX_OPERAND_BUSY, Operand.RCX, 0)
    assert world.module.overwritten == {pfn: 32}
    entry.lock.v = 0
    assert demote(world, pfn=pfn).ok
    entry.lock.v = 4
    ret = promote(world)
    assert (ret.status, ret.operand, ret.rcx) == (Status.TDX_OPERAND_BUSY, Operand.RCX, 0)
    assert not any(word(world, BIG + n).is_locked for n in range(512))


# RELOCATE.


def test_a_relocated_page_keeps_its_bytes_and_comes_back_open():
    """Contents move, the old frame is nobody's, the entry is no longer blocked."""
    world = World()
    world.aug()
    put(world, GFN, PG_LEVEL_4K, make(SeptState.MAPPED, DATA))
    world.module.memory.qword(gpa_of(DATA) + 16).v = 0xABC
    world.module.memory.qword(gpa_of(DATA + 1) + 16).v = 0xDEF
    world.module.pamt.entry(DATA + 1, PG_LEVEL_4K).bepoch.v = 5
    moved = []
    world.module.on_page_relocated = lambda old, new: moved.append((old, new))
    block_and_track(world, GFN, PG_LEVEL_4K)
    ret = world.on(tdh_mem_page_relocate, pfn=Pfn(DATA + 1))

    assert ret.ok
    assert ret.rcx == gpa_of(DATA)
    assert moved == [(DATA, DATA + 1)]
    assert world.module.memory.contents(DATA + 1) == {16: 0xABC}
    assert word(world, GFN) == make(SeptState.MAPPED, DATA + 1)
    assert world.module.pamt_type(DATA) is PageType.PT_NDA
    assert world.module.pamt.leaf(DATA + 1).bepoch.peek() == 0
    kept(world)


def test_a_pending_page_is_relocated_without_its_bytes():
    """There is nothing to keep: ACCEPT zeroes it."""
    world = World(finalize=False)
    world.aug()
    world.module.memory.qword(gpa_of(DATA)).v = 0xABC

    assert world.on(tdh_mem_page_relocate, pfn=Pfn(DATA + 1)).ok
    assert world.module.memory.contents(DATA + 1) == {}
    assert word(world, GFN) == make(SeptState.PENDING, DATA + 1)


@pytest.mark.parametrize(
    "state", [state for state in SeptState if state.is_leaf], ids=lambda state: state.name
)
def test_quirk_12_an_exported_write_blocked_page_moves_without_tracking(state):
    """Only it and its pending twin: the guest may still read the old frame."""
    world = World()
    world.aug()
    put(world, GFN, PG_LEVEL_4K, make(state, DATA))
    world.module.pamt.leaf(DATA).bepoch.v = 1
    world.module.tdcs(world.td).op_state = OpState.LIVE_EXPORT
    ret = world.on(tdh_mem_page_relocate, pfn=Pfn(DATA + 1))

    assert ret.ok == (state in (SeptState.EXPORTED_BLOCKEDW, SeptState.PENDING_EXPORTED_BLOCKEDW))
    assert word(world, GFN) == make(state, DATA + ret.ok)
