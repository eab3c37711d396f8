"""DEMOTE, PROMOTE and RELOCATE of ranges that L2 VMs share."""

import pytest

from tdx.module import (
    Operand,
    PageType,
    SeptState,
    Status,
    tdh_mem_page_demote,
    tdh_mem_page_promote,
    tdh_mem_page_relocate,
    tdh_mem_range_block,
    tdh_mem_track,
)
from tdx.module.l2 import ATTR_R, ATTR_VALID, ATTR_W, ATTR_XS, L2State, l2_leaf
from tdx.module.septe import TDEL
from tdx.module.status import NULL_PA
from tests.tdx.module.test_l2 import L2World
from tests.tdx.module.worlds import DATA, GFN
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, Gfn, Pfn, gpa_of

BIG = Gfn(GFN + 512)
READ_WRITE = ATTR_VALID | ATTR_R | ATTR_W
UNUSED = 1 << 63


class SharedWorld(L2World):
    """A TD with two L2 VMs; a 2M leaf at BIG has an alias in the first."""

    def __init__(self, *, accepted=True, **options):
        super().__init__(l2_vms=2, **options)
        self.aug(BIG, DATA, PG_LEVEL_2M)
        if accepted:
            assert self.accept(BIG, PG_LEVEL_2M).ret.ok
        ret = self.attr_wr(READ_WRITE, gfn=BIG, level=PG_LEVEL_2M)
        assert ret.ret.ok, ret
        assert self.l1_entry(BIG, 2).is_aliased(1)

    def block_and_track(self, gfn=BIG, level=PG_LEVEL_2M):
        assert self.on(tdh_mem_range_block, gfn, level).ok
        assert self.do(tdh_mem_track, td=self.td).ok

    def demote(self, *, l2=(), sparse=True, **options):
        pfn, *given = self.pfns = [self.page() for _ in range(3)]
        pages = {f"l2_{vm}_pfn": given[vm - 1] for vm in l2}
        return self.on(
            tdh_mem_page_demote,
            BIG,
            PG_LEVEL_2M,
            pfn=pfn,
            lp=self.lps[0],
            l2_sept_add_mode=sparse,
            **pages,
            **options,
        )

    def children_locked(self):
        entries = self.module.sept_pages[self.pfns[0]].entries
        return [entries[n].peek() & TDEL for n in range(512)]

    def promote(self, version=1):
        return self.on(tdh_mem_page_promote, BIG, PG_LEVEL_2M, lp=self.lps[0], version=version)


def test_an_alias_is_split_with_its_range():
    """Sparse: the VM with an alias gets its page, 512 open aliases of the same attributes; the other's page stays unused."""
    world = SharedWorld()
    count = world.module.chldcnt(world.td)
    world.block_and_track()
    ret = world.demote(l2=(1, 2))
    _, one, two = world.pfns

    assert ret.ok
    assert (ret.r9, ret.r10, ret.r11) == (gpa_of(one), gpa_of(two) | UNUSED, NULL_PA)
    assert [world.l2_entry(1, BIG + n) for n in range(512)] == [
        l2_leaf(READ_WRITE, Pfn(DATA + n), blocked=False) for n in range(512)
    ]
    assert [world.l1_entry(BIG, level).is_aliased(1) for level in (1, 2)] == [True, True]
    assert not world.l1_entry(BIG, 2).is_aliased(2)
    assert world.module.pamt_type(two) is PageType.PT_NDA
    assert world.module.chldcnt(world.td) == count + 2
    world.check()


def test_a_page_can_be_added_where_there_is_no_alias():
    """Not sparse: a VM without an alias gets a table of free entries; its alias bit is the table's, not the children's."""
    world = SharedWorld()
    world.block_and_track()
    ret = world.demote(l2=(1, 2), sparse=False)

    assert ret.ok
    assert (ret.r9, ret.r10) == (gpa_of(world.pfns[1]), gpa_of(world.pfns[2]))
    assert world.l2_entry(2, BIG, 2).state is L2State.L2_NL_MAPPED
    assert world.l2_entry(2, BIG).is_free
    assert [world.l1_entry(BIG, level).is_aliased(2) for level in (1, 2)] == [False, True]
    world.check()


def test_an_alias_needs_its_page():
    """None given where there is an alias: refused before anything is written."""
    world = SharedWorld()
    world.block_and_track()
    ret = world.demote(l2=(2,))

    assert (ret.status, ret.operand) == (Status.TDX_L2_SEPT_PAGE_NOT_PROVIDED, Operand.R9)
    assert world.module.overwritten == {}


def test_aliases_of_a_pending_page_stay_blocked():
    """There is one blocked state of an L2 entry, for pending pages too: ACCEPT opens it."""
    world = SharedWorld(accepted=False, finalize=False)
    ret = world.demote(l2=(1,))

    assert ret.ok
    assert world.l1_entry(BIG + 9).state is SeptState.PENDING
    assert world.l2_entry(1, BIG + 9) == l2_leaf(READ_WRITE, Pfn(DATA + 9), blocked=True)


def test_a_vm_without_a_way_to_the_range_cannot_get_a_page():
    """The walk fails after the pages before it have been written; VM and level come back in the status."""
    world = SharedWorld()
    world.block_and_track()
    world.module.tdcs(world.td).l2_roots[1].septe(BIG).v = 0
    ret = world.demote(l2=(1, 2), sparse=False)

    assert (ret.status, ret.operand) == (Status.TDX_L2_SEPT_WALK_FAILED, 2 << 16 | 3)
    assert ret.rdx == 3 | L2State.L2_FREE.public << 8 | 2 << 16
    assert sorted(world.module.overwritten) == world.pfns[:2]


@pytest.mark.parametrize(("test", "written"), [(0, 1), (1, 2), (2, 3)])
def test_each_page_of_a_vm_has_its_own_look_at_interrupts(test, written):
    """Before each L2 page and at the end; what comes before has been written, and nothing else."""
    world = SharedWorld()
    world.block_and_track()
    seen = []
    world.lps[0].interrupt_pending = lambda: seen.append(None) or len(seen) > test
    ret = world.demote(l2=(1, 2), sparse=False)

    assert ret.status is Status.TDX_INTERRUPTED_RESTARTABLE
    assert sorted(world.module.overwritten) == world.pfns[:written]
    world.check()


@pytest.mark.parametrize("sparse", [True, False])
def test_a_merge_gives_the_tables_back(sparse):
    """The alias is a leaf again, a table of free entries a free entry; version 1 tells which pages are nobody's now."""
    world = SharedWorld()
    before = world.l1_entry(BIG, 2), world.l2_entry(1, BIG, 2), world.module.chldcnt(world.td)
    world.block_and_track()
    world.demote(l2=(1, 2), sparse=sparse)
    pfns = world.pfns
    world.block_and_track()
    ret = world.promote()

    assert ret.ok
    assert (ret.rcx, ret.r9) == (gpa_of(pfns[0]), gpa_of(pfns[1]))
    assert (ret.r10, ret.r11) == (NULL_PA if sparse else gpa_of(pfns[2]), NULL_PA)
    assert (world.l1_entry(BIG, 2), world.l2_entry(1, BIG, 2), world.module.chldcnt(world.td)) == before
    assert world.l2_entry(2, BIG, 2).is_free
    assert {world.module.pamt_type(pfn) for pfn in pfns} == {PageType.PT_NDA}
    world.check()


def test_version_0_says_nothing_of_l2_pages():
    """They are freed all the same."""
    world = SharedWorld()
    world.block_and_track()
    world.demote(l2=(1,))
    world.block_and_track()
    ret = world.promote(version=0)

    assert ret.ok
    assert (ret.r9, ret.r10, ret.r11) == (0, 0, 0)
    assert world.module.pamt_type(world.pfns[1]) is PageType.PT_NDA


def test_aliases_that_differ_are_not_merged():
    """One with other attributes: refused with the parent's details, and everything is let go of."""
    world = SharedWorld()
    world.block_and_track()
    world.demote(l2=(1,))
    assert world.attr_wr(ATTR_VALID | ATTR_R | ATTR_XS, gfn=BIG + 100).ret.ok
    world.block_and_track()
    ret = world.promote()

    assert (ret.status, ret.operand) == (Status.TDX_EPT_INVALID_PROMOTE_CONDITIONS, Operand.RCX)
    assert ret.rdx == 1 | SeptState.NL_BLOCKED.public << 8
    assert (ret.r9, ret.r10, ret.r11) == (NULL_PA,) * 3
    assert not any(world.children_locked())
    world.check()


def test_an_l2_table_whose_pamt_entry_is_busy_stops_a_merge():
    """BUSY on RCX without details."""
    world = SharedWorld()
    world.block_and_track()
    world.demote(l2=(1,))
    world.block_and_track()
    lock = world.module.pamt.entry(world.pfns[1], PG_LEVEL_4K).lock
    lock.v = 4
    ret = world.promote()

    assert (ret.status, ret.operand, ret.rcx) == (Status.TDX_OPERAND_BUSY, Operand.RCX, 0)
    assert not any(world.children_locked())


def test_an_alias_follows_a_relocated_page():
    """It names the new frame, and is open again."""
    world = SharedWorld()
    world.aug(pfn=DATA + 512)
    assert world.accept().ret.ok
    assert world.attr_wr(READ_WRITE).ret.ok
    world.block_and_track(GFN, PG_LEVEL_4K)

    assert world.l2_entry(1).state is L2State.L2_BLOCKED
    assert world.on(tdh_mem_page_relocate, pfn=Pfn(DATA + 1)).status is Status.TDX_PAGE_METADATA_INCORRECT
    assert world.on(tdh_mem_page_relocate, pfn=Pfn(DATA + 513)).ok
    assert world.l2_entry(1) == l2_leaf(READ_WRITE, Pfn(DATA + 513), blocked=False)
    world.check()
