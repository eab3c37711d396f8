"""The calls that build and unbuild the S-EPT: what a sequence of them does to the tree, the PAMT and the epochs."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import explore
from tdx.module import (
    Operand,
    SeptState,
    Status,
    hardware_walk,
    tdg_mem_page_accept,
    tdh_mem_page_aug,
    tdh_mem_page_remove,
    tdh_mem_range_block,
    tdh_mem_range_unblock,
    tdh_mem_sept_add,
    tdh_mem_sept_rd,
    tdh_mem_sept_remove,
    tdh_mem_track,
)
from tdx.module.invariants import INVARIANTS
from tdx.module.leaves.tdh_mem_track import EPOCH_MAX
from tdx.module.objects import Epoch
from tdx.module.pamt import PageType
from tdx.module.profile import TDX_1_5_01, TDX_1_5_28, TDX_2_0
from tdx.module.sept_states import OpState
from tdx.module.septe import ACCEPT_COUNTER, SVE, TDHP, Septe, make
from tdx.module.status import ModuleShutdown
from tests.tdx.module.test_guest import septe_cell
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, PG_LEVEL_512G, Pfn, align_down, gpa_of

TABLE = align_down(GFN, PG_LEVEL_2M)
GPA = gpa_of(GFN)


def check(world):
    """Everything that must hold when no call is in flight."""
    for text, invariant in INVARIANTS.items():
        assert invariant(world.module)() is True, text


def track(world):
    assert world.do(tdh_mem_track, td=world.td).ok


def accept_steps(world, gfn=GFN, level=PG_LEVEL_4K, interrupt_pending=lambda: False):
    return tdg_mem_page_accept(
        world.module,
        td=world.td,
        vcpu=world.vcpu(),
        gpa=gpa_of(gfn),
        level=level,
        interrupt_pending=interrupt_pending,
    )


def bepoch(world, pfn=DATA, level=PG_LEVEL_4K):
    return world.module.pamt.entry(pfn, level).bepoch.peek()


def epoch(world):
    return world.module.tdcs(world.td).epoch.peek().epoch


def in_op_state(world, op_state):
    world.module.tdcs(world.td).op_state = op_state
    return world


def mapped_1g(world, gfn=0x40000, pfn=0x40000):
    """A mapped 1G leaf, put into the tables by hand: no call makes one but PROMOTE of 512 smaller ones."""
    run(world.kernel, world.tables(gfn, PG_LEVEL_512G))
    page = world.module.tdcs(world.td).root
    while page.level != PG_LEVEL_1G:
        page = world.module.sept_pages[Septe(page.septe(gfn).peek()).pfn_at(0)]
    page.septe(gfn).v = int(make(SeptState.MAPPED, pfn))
    world.module.pamt.entry(pfn, PG_LEVEL_1G).assign(PageType.PT_REG, world.td.tdr_pfn)
    world.module.tdr(world.td).chldcnt.v += PG_LEVEL_1G.pages
    return gfn, pfn


# SEPT.ADD and SEPT.REMOVE.


def test_an_existing_table_keeps_its_page():
    """ALLOW_EXISTING makes success of it; the page that was given is not touched, and not counted."""
    world = World()
    pfn = world.page()
    before = (world.module.peek_septe(world.td, TABLE, 2), world.module.chldcnt(world.td))
    refused = world.on(tdh_mem_sept_add, TABLE, PG_LEVEL_2M, pfn=pfn)
    allowed = world.on(tdh_mem_sept_add, TABLE, PG_LEVEL_2M, pfn=pfn, allow_existing=True)
    again = world.on(tdh_mem_sept_add, TABLE, PG_LEVEL_2M, pfn=pfn, allow_existing=True, version=1)

    assert (str(refused), refused.rdx) == (
        "TDX_EPT_ENTRY_STATE_INCORRECT|RCX",
        1 | SeptState.NL_MAPPED.public << 8,
    )
    assert (allowed.ok, again.ok, again.r8) == (True, True, pfn << 12 | 1 << 63)
    assert (world.module.peek_septe(world.td, TABLE, 2), world.module.chldcnt(world.td)) == before
    assert world.module.pamt_type(pfn) is PageType.PT_NDA
    check(world)


def test_no_page_for_a_table():
    """Version 0 wants one always; version 1 only if the table is not there yet."""
    world = World()
    gfn = TABLE + 512
    results = [
        str(world.on(tdh_mem_sept_add, at, PG_LEVEL_2M, pfn=None, version=version))
        for at in (gfn, TABLE)
        for version in (0, 1)
    ]

    assert results == [
        "TDX_OPERAND_INVALID|R8",
        "TDX_EPT_ENTRY_STATE_INCORRECT|RCX",
        "TDX_OPERAND_INVALID|R8",
        "TDX_SUCCESS",
    ]


def test_a_table_comes_and_goes():
    """Block, track, remove: the page is nobody's, its entry FREE; then it can be a table of something else."""
    world = World()
    gfn, pfn = TABLE + 512, world.page()
    before = world.module.chldcnt(world.td)
    for at in (gfn, gfn + 512):
        assert world.on(tdh_mem_sept_add, at, PG_LEVEL_2M, pfn=pfn).ok
        assert str(world.on(tdh_mem_sept_remove, at, PG_LEVEL_2M)) == "TDX_GPA_RANGE_NOT_BLOCKED|RCX"
        assert world.on(tdh_mem_range_block, at, PG_LEVEL_2M).ok
        assert str(world.on(tdh_mem_sept_remove, at, PG_LEVEL_2M)) == "TDX_TLB_TRACKING_NOT_DONE|RCX"
        track(world)
        ret = world.on(tdh_mem_sept_remove, at, PG_LEVEL_2M)
        assert (ret.ok, ret.rcx, world.state(at, 2)) == (True, pfn << 12, SeptState.FREE)
        assert world.module.pamt_type(pfn) is PageType.PT_NDA
        assert world.module.chldcnt(world.td) == before
        check(world)


@pytest.mark.parametrize("in_the_way", [SeptState.PENDING, SeptState.REMOVED, SeptState.NL_MAPPED])
def test_a_table_in_use_stays(in_the_way):
    """One entry that is not FREE keeps the page: a leaf, a table below, or REMOVED."""
    world = in_op_state(World(), OpState.POST_IMPORT)
    gfn, level = TABLE, PG_LEVEL_2M
    if in_the_way is SeptState.NL_MAPPED:
        gfn, level = align_down(GFN, PG_LEVEL_1G), PG_LEVEL_1G
    else:
        in_op_state(world, OpState.RUNNABLE)
        world.aug(TABLE + 511)
        in_op_state(world, OpState.POST_IMPORT)
        if in_the_way is SeptState.REMOVED:
            assert world.on(tdh_mem_page_remove, TABLE + 511).ok
    ret = world.on(tdh_mem_sept_remove, gfn, level)

    assert str(ret) == "TDX_EPT_PAGE_NOT_FREE|RCX"
    assert ret.rdx == level.tdx | SeptState.NL_MAPPED.public << 8
    assert not world.module.peek_septe(world.td, gfn, level).is_locked


def test_host_priority_on_a_free_entry_does_not_keep_the_table():
    """Only the state counts: an entry that somebody lost on once is FREE all the same."""
    world = in_op_state(World(), OpState.POST_IMPORT)
    septe_cell(world).v |= TDHP

    assert world.on(tdh_mem_sept_remove, TABLE, PG_LEVEL_2M).ok


def test_a_removed_page_leaves_a_place_for_aug_only():
    """While an import is in progress REMOVE leaves REMOVED with the migration epoch: no table fits there, a new page does."""
    world = World()
    gfn, pfn = TABLE + 512, Pfn(DATA + 512)
    world.aug(gfn, pfn, PG_LEVEL_2M)
    tdcs = world.module.tdcs(world.td)
    tdcs.migration.mig_epoch = 7
    in_op_state(world, OpState.POST_IMPORT)
    assert world.on(tdh_mem_page_remove, gfn, PG_LEVEL_2M).ok
    entry = world.module.peek_septe(world.td, gfn, 2)
    in_op_state(world, OpState.LIVE_IMPORT)
    refused = world.on(tdh_mem_sept_add, gfn, PG_LEVEL_2M, pfn=world.page())

    assert (entry.state, entry.mig_epoch) == (SeptState.REMOVED, 7)
    assert (str(refused), refused.rdx >> 8) == ("TDX_EPT_ENTRY_STATE_INCORRECT|RCX", 5)
    assert world.on(tdh_mem_page_aug, gfn, PG_LEVEL_2M, pfn=pfn).ok
    assert world.module.peek_septe(world.td, gfn, 2) == make(SeptState.PENDING, pfn)
    check(world)


# BLOCK, UNBLOCK, TRACK.


def test_a_blocked_table_hides_what_is_below_and_changes_nothing_there():
    """Neither the CPU nor a call gets past it; unblocked, the page is there as before."""
    world = World()
    world.aug()
    run(world.kernel, accept_steps(world))
    page = world.module.peek_septe(world.td, GFN)
    assert world.on(tdh_mem_range_block, TABLE, PG_LEVEL_2M).ok
    hidden = [
        world.on(tdh_mem_page_remove),
        world.on(tdh_mem_range_block),
        world.on(tdh_mem_page_aug, GFN + 1, pfn=Pfn(DATA + 1)),
        world.on(tdh_mem_sept_rd),
    ]

    assert {str(ret) for ret in hidden} == {"TDX_EPT_WALK_FAILED|RCX"}
    assert {ret.rdx for ret in hidden} == {1 | SeptState.NL_BLOCKED.public << 8}
    assert run(world.kernel, hardware_walk(world.module, world.td, GFN)) is None
    assert septe_cell(world).peek() == page
    assert bepoch(world) == 0
    track(world)
    assert world.on(tdh_mem_range_unblock, TABLE, PG_LEVEL_2M).ok
    assert run(world.kernel, hardware_walk(world.module, world.td, GFN)) == (page, PG_LEVEL_4K)


@pytest.mark.parametrize("profile", [TDX_1_5_01, TDX_2_0], ids=lambda profile: profile.name)
def test_unblock_before_tracking_is_refused(profile):
    """1.5 names the tree, 2.0 the range; nothing of the entry is shown, and it stays blocked and unlocked."""
    world = World(profile=profile)
    world.aug()
    assert world.on(tdh_mem_range_block).ok
    ret = world.on(tdh_mem_range_unblock)

    operand = Operand.SEPT_TREE if profile is TDX_1_5_01 else Operand.RCX
    assert (ret.status, ret.operand) == (Status.TDX_TLB_TRACKING_NOT_DONE, operand)
    assert (ret.rcx, ret.rdx) == (0, 0)
    assert world.module.peek_septe(world.td, GFN) == make(SeptState.PENDING_BLOCKED, DATA)
    track(world)
    assert world.on(tdh_mem_range_unblock).ok
    assert world.state() is SeptState.PENDING


def test_blocking_again_is_a_warning_and_no_new_epoch():
    """GPA_RANGE_ALREADY_BLOCKED, no error; BEPOCH stays, so that what was tracked is still tracked."""
    world = World()
    world.aug()
    assert world.on(tdh_mem_range_block).ok
    first = bepoch(world)
    track(world)
    ret = world.on(tdh_mem_range_block)

    assert (str(ret), ret.is_error, ret.ok) == ("TDX_GPA_RANGE_ALREADY_BLOCKED|RCX", False, False)
    assert ret.rdx >> 8 == SeptState.PENDING_BLOCKED.public
    assert (first, bepoch(world), epoch(world)) == (1, 1, 2)
    assert world.on(tdh_mem_page_remove).ok


@pytest.mark.parametrize(
    ("before", "blocked", "after"),
    [
        (SeptState.MAPPED, SeptState.BLOCKED, SeptState.MAPPED),
        (SeptState.BLOCKEDW, SeptState.BLOCKED, SeptState.MAPPED),
        (SeptState.PENDING, SeptState.PENDING_BLOCKED, SeptState.PENDING),
        (SeptState.PENDING_BLOCKEDW, SeptState.PENDING_BLOCKED, SeptState.PENDING),
    ],
)
def test_block_and_unblock_restore_the_whole_word(before, blocked, after):
    """The words are those that a fresh entry of that state has; write-blocking is forgotten."""
    world = World()
    world.aug()
    septe_cell(world).v = int(make(before, DATA))
    assert world.on(tdh_mem_range_block).ok
    while_blocked = septe_cell(world).peek()
    track(world)
    assert world.on(tdh_mem_range_unblock).ok

    assert while_blocked == make(blocked, DATA)
    assert septe_cell(world).peek() == make(after, DATA)


def test_bepoch_goes_to_the_page_that_the_entry_names():
    """Of a 2M leaf into the 2M PAMT entry, of a table into that of the S-EPT page, of the root's entry too."""
    world = World()
    gfn, pfn = TABLE + 512, Pfn(DATA + 512)
    world.aug(gfn, pfn, PG_LEVEL_2M)
    track(world)
    assert world.on(tdh_mem_range_block, gfn, PG_LEVEL_2M).ok
    track(world)
    root = world.module.tdcs(world.td).root
    table = Septe(root.septe(GFN).peek()).pfn_at(0)
    assert world.on(tdh_mem_range_block, 0, root.level).ok

    assert (bepoch(world, pfn, PG_LEVEL_2M), bepoch(world, pfn)) == (2, 0)
    assert bepoch(world, table) == 3


def test_blocking_a_half_accepted_page_starts_acceptance_over():
    """SEPT.RD shows the accept counter in the address; BLOCK clears it, and it stays clear."""
    world = World(accept_step_pages=1)
    gfn, pfn = TABLE + 512, Pfn(DATA + 512)
    world.aug(gfn, pfn, PG_LEVEL_2M)
    assert run(world.kernel, accept_steps(world, gfn, PG_LEVEL_2M, lambda: True)).interrupted
    seen = world.on(tdh_mem_sept_rd, gfn, PG_LEVEL_2M)
    assert world.on(tdh_mem_range_block, gfn, PG_LEVEL_2M).ok
    track(world)
    assert world.on(tdh_mem_range_unblock, gfn, PG_LEVEL_2M).ok

    assert (seen.rcx & ACCEPT_COUNTER) >> 12 == 1
    assert world.module.peek_septe(world.td, gfn, 2) == make(SeptState.PENDING, pfn)


@given(st.integers(1, EPOCH_MAX), st.integers(0, 3), st.integers(0, 3))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_track_waits_for_the_other_parity(now, even, odd):
    """A vCPU inside from the epoch before stops it, one from the current epoch does not."""
    world = World(vcpus=0, finalize=False)
    tdcs = world.module.tdcs(world.td)
    tdcs.epoch.v = Epoch(now, even, odd)
    ret = world.do(tdh_mem_track, td=world.td)
    before = even if now & 1 else odd

    assert str(ret) == ("TDX_PREVIOUS_TLB_EPOCH_BUSY" if before else "TDX_SUCCESS")
    assert tdcs.epoch.peek() == Epoch(now if before else now + 1, even, odd)


def test_the_last_epoch():
    """1.5.01 goes on into the BEPOCHs of migration; later releases shut the module down."""
    worlds = [World(profile=profile) for profile in (TDX_1_5_01, TDX_1_5_28)]
    for world in worlds:
        world.module.tdcs(world.td).epoch.v = Epoch(EPOCH_MAX - 1, 0, 0)
    old, new = worlds
    track(old)

    assert epoch(old) == EPOCH_MAX
    with pytest.raises(ModuleShutdown, match="TD_EPOCH"):
        track(new)


def race_of_block_and_track(kernel, worlds):
    """One BLOCK and one TRACK, no vCPU inside."""
    world = World(kernel)
    world.aug()
    worlds.append(world)
    kernel.thread("blocker", tdh_mem_range_block(world.module, td=world.td, gpa=GPA, level=PG_LEVEL_4K))
    kernel.thread("tracker", tdh_mem_track(world.module, td=world.td))


def test_a_track_that_overtakes_block_must_be_repeated():
    """BLOCK samples the epoch last: after a TRACK that came before, the page is blocked and not tracked; never the reverse."""
    worlds, seen = [], set()

    def after(_kernel):
        world = worlds[-1]
        unit = world.module.tdcs(world.td).epoch.peek()
        assert world.state() is SeptState.PENDING_BLOCKED
        seen.add((unit.epoch, bepoch(world), unit.is_tlb_tracked(bepoch(world))))

    report = explore(lambda kernel: race_of_block_and_track(kernel, worlds), strategy="dpor", after=after)

    assert report.exhausted
    assert report.findings == []
    assert seen == {(2, 1, True), (2, 2, False)}


# AUG and REMOVE.


@pytest.mark.parametrize("level", [PG_LEVEL_4K, PG_LEVEL_2M, PG_LEVEL_1G])
def test_remove_gives_the_whole_page_back(level):
    """FREE, NDA in its size, counted off in 4K pages; the address comes back. BEPOCH stays as BLOCK wrote it."""
    world = World()
    before = world.module.chldcnt(world.td)
    gfn, pfn = TABLE + 512 * (level > PG_LEVEL_4K), Pfn(DATA + 512)
    if level is PG_LEVEL_1G:
        before += 1  # the table of 1G entries
        gfn, pfn = mapped_1g(world, 1 << 27, 0x40000)
    else:
        world.aug(gfn, pfn, level)
    assert world.module.chldcnt(world.td) - before >= level.pages
    assert str(world.on(tdh_mem_page_remove, gfn, level)) == "TDX_GPA_RANGE_NOT_BLOCKED|RCX"
    assert world.on(tdh_mem_range_block, gfn, level).ok
    assert str(world.on(tdh_mem_page_remove, gfn, level)) == "TDX_TLB_TRACKING_NOT_DONE|RCX"
    track(world)
    ret = world.on(tdh_mem_page_remove, gfn, level)

    assert (ret.ok, ret.rcx, world.state(gfn, level)) == (True, pfn << 12, SeptState.FREE)
    assert world.module.pamt.entry(pfn, level).kind is PageType.PT_NDA
    assert bepoch(world, pfn, level) == 1
    assert world.module.chldcnt(world.td) == before
    check(world)


def test_a_2m_page_must_be_nobodys_as_a_whole():
    """One 4K page in use inside it: PAGE_METADATA_INCORRECT, and the entry stays FREE and unlocked."""
    world = World()
    world.aug(GFN, DATA + 512 + 77)
    ret = world.on(tdh_mem_page_aug, TABLE + 512, PG_LEVEL_2M, pfn=Pfn(DATA + 512))

    assert str(ret) == "TDX_PAGE_METADATA_INCORRECT|R8"
    assert world.module.peek_septe(world.td, TABLE + 512, 2) == make(SeptState.FREE)
    check(world)


def race_of_aug_and_accept(kernel):
    """A guest that accepts the page, and looks at once whose it is."""
    world = World(kernel)
    page = world.module.pamt.entry(DATA, PG_LEVEL_4K)
    kernel.sometimes("accepted before it was owned")

    def guest():
        result = yield from accept_steps(world)
        if result.ok and world.module.pamt.kind_of(page) is PageType.PT_NDA:
            kernel.reached("accepted before it was owned")

    kernel.thread(
        "host",
        tdh_mem_page_aug(world.module, td=world.td, gpa=GPA, level=PG_LEVEL_4K, pfn=Pfn(DATA)),
    )
    kernel.thread("guest", guest())


def test_a_page_can_be_accepted_before_the_pamt_knows_it():
    """AUG lets the entry go with the write that makes it PENDING; type and owner follow, under the page's PAMT lock."""
    report = explore(race_of_aug_and_accept, strategy="dpor", time_limit_s=20)

    assert report.findings == []
    assert report.unmet == []


def race_of_aug_and_remove(kernel, outcomes):
    """Before the TD is finalized nothing need be blocked: REMOVE may follow AUG at once."""
    world = World(kernel, finalize=False)

    def remover():
        ret = yield from tdh_mem_page_remove(world.module, td=world.td, gpa=GPA, level=PG_LEVEL_4K)
        outcomes.add((str(ret), ret.rcx))

    kernel.thread(
        "adder",
        tdh_mem_page_aug(world.module, td=world.td, gpa=GPA, level=PG_LEVEL_4K, pfn=Pfn(DATA)),
    )
    kernel.thread("remover", remover())
    for text, invariant in INVARIANTS.items():
        kernel.at_end(text, invariant(world.module))


def test_remove_meets_aug_in_the_entry_or_in_the_pamt():
    """Busy on the entry comes with details, busy on the page's PAMT entry without: then AUG has let go of the entry already."""
    outcomes = set()
    report = explore(
        lambda kernel: race_of_aug_and_remove(kernel, outcomes), strategy="dpor", time_limit_s=20
    )

    assert report.findings == []
    assert outcomes == {
        ("TDX_EPT_ENTRY_STATE_INCORRECT|RCX", SVE),
        ("TDX_OPERAND_BUSY|RCX", SVE),
        ("TDX_OPERAND_BUSY|RCX", 0),
        ("TDX_SUCCESS", DATA << 12),
    }


def race_of_losers(kernel, profile, left):
    """AUG, and a call that loses to it on the entry while it is held: what is left of its host priority?"""
    world = World(kernel, profile=profile)
    cell = septe_cell(world)
    asked = []

    def loser():
        yield from tdh_mem_sept_rd(world.module, td=world.td, gpa=GPA, level=PG_LEVEL_4K)
        entry = Septe(cell.peek())
        asked.append(entry.is_locked and entry.has_host_priority)

    def winner():
        yield from tdh_mem_page_aug(world.module, td=world.td, gpa=GPA, level=PG_LEVEL_4K, pfn=Pfn(DATA))
        if asked == [True]:
            left.add(Septe(cell.peek()).has_host_priority)

    kernel.thread("winner", winner())
    kernel.thread("loser", loser())


@pytest.mark.parametrize("keeps", [False, True])
def test_a_write_of_the_whole_entry_wipes_host_priority(keeps):
    """In 1.5 who loses to AUG never has priority over the guest afterwards; in 2.0 it may, unless it asked too soon.

    Too soon: between AUG's two accesses that take the lock and clear the priority of earlier losers.
    """
    left = set()
    profile = replace(TDX_1_5_01, writes_drop_tdhp=not keeps)
    report = explore(lambda kernel: race_of_losers(kernel, profile, left), strategy="dpor", time_limit_s=20)

    assert report.findings == []
    assert left == ({False, True} if keeps else {False})
