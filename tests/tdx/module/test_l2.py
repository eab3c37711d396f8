"""L2 VMs: their entry words, and the tables that come and go with the TD's own."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tdx.module import (
    LogicalProcessor,
    SeptState,
    Status,
    tdh_mem_range_block,
    tdh_mem_sept_add,
    tdh_mem_sept_remove,
    tdh_mem_track,
    tdh_mng_addcx,
    tdh_mng_create,
    tdh_mng_init,
    tdh_mng_key_config,
    tdh_vp_create,
    tdh_vp_init,
)
from tdx.module import l2 as l2_file
from tdx.module.dispatch import Registers, dispatch
from tdx.module.l2 import (
    ATTR_PWA,
    ATTR_R,
    ATTR_RWX,
    ATTR_SSS,
    ATTR_SVE,
    ATTR_VALID,
    ATTR_VGP,
    ATTR_W,
    ATTR_XS,
    ATTR_XU,
    L2_FREE,
    PERMISSIONS,
    L2Septe,
    L2State,
    are_legal,
    l2_leaf,
    l2_table,
)
from tdx.module.operands import Td, page_info
from tdx.module.septe import SVE
from tdx.module.status import NULL_PA
from tests.tdx.module.l2_worlds import READ_WRITE, L2World
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_512G, Pfn, gpa_of

ATTRIBUTES = st.integers(0, 0xFF).map(lambda bits: ATTR_VALID | bits)


# Words.


@given(ATTRIBUTES, st.integers(0, 1 << 30))
@settings(derandomize=True, deadline=None)
def test_a_blocked_leaf_grants_nothing_and_comes_back_whole(attributes, pfn):
    """Block and unblock is no change; in between there is no permission, and the attributes read the same."""
    leaf = l2_leaf(attributes, pfn, blocked=False)
    blocked = leaf.blocked()

    assert leaf.state is L2State.L2_MAPPED
    assert (blocked.state, blocked & PERMISSIONS) == (L2State.L2_BLOCKED, 0)
    assert leaf.attributes() == blocked.attributes() == attributes
    assert blocked.unblocked() == leaf
    assert blocked == l2_leaf(attributes, pfn, blocked=True)
    assert (leaf.pfn, blocked.pfn) == (pfn, pfn)


@given(ATTRIBUTES, ATTRIBUTES, st.booleans())
@settings(derandomize=True, deadline=None)
def test_new_attributes_replace_all_old_ones(before, after, blocked):
    """Blocked or not, a leaf whose attributes change is the leaf that would have been made with the new ones."""
    changed = l2_leaf(before, DATA, blocked=blocked).with_attributes(after)

    assert changed == l2_leaf(after, DATA, blocked=blocked)


def test_tables_block_and_unblock():
    """A table has no attributes of its own: it grants everything, blocked or not."""
    table = l2_table(Pfn(DATA))

    assert (table.state, table.blocked().state) == (L2State.L2_NL_MAPPED, L2State.L2_NL_BLOCKED)
    assert table.blocked() & PERMISSIONS == 0
    assert table.blocked().unblocked() == table
    assert table.attributes() == table.blocked().attributes() == ATTR_VALID | ATTR_RWX


def test_a_leaf_keeps_w_that_was_saved_when_writing_was_blocked():
    """BLOCK of a write-blocked page saves all but W, which has been saved and taken before."""
    write_blocked = L2Septe(l2_leaf(READ_WRITE & ~ATTR_W, DATA, blocked=False) | l2_file.TDWR)
    blocked = write_blocked.blocked(was_write_blocked=True)

    assert blocked.attributes(is_write_blocked=False) == READ_WRITE
    assert blocked.unblocked().attributes() == READ_WRITE


@pytest.mark.parametrize(
    ("attributes", "legal"),
    [
        (0, True),
        (READ_WRITE, True),
        (ATTR_VALID | ATTR_XS | ATTR_XU, True),
        (ATTR_R, False),
        (ATTR_VALID | ATTR_W, False),
        (ATTR_VALID | ATTR_PWA | ATTR_XS, False),
        (READ_WRITE | ATTR_SVE, False),
        (READ_WRITE | 1 << 9, False),
        (READ_WRITE | ATTR_VGP | ATTR_PWA | ATTR_SSS, True),
    ],
)
def test_legal_attributes(attributes, legal):
    """W and PWA need R; SVE, reserved bits, and anything without VALID are wrong."""
    assert are_legal(attributes) is legal


def test_only_a_debug_td_shows_the_host_its_attributes():
    """A mapped leaf pretends to grant everything, a blocked one nothing; FREE shows only that #VE is suppressed."""
    leaf = l2_leaf(ATTR_VALID | ATTR_R | ATTR_SSS, DATA, blocked=False)

    assert leaf.arch(debug=False) & PERMISSIONS == PERMISSIONS
    assert leaf.blocked().arch(debug=False) & PERMISSIONS == 0
    assert leaf.arch(debug=True) & (PERMISSIONS | l2_file.SSS) == 1 | l2_file.SSS
    assert L2Septe(L2_FREE).arch(debug=True) == SVE
    assert l2_table(Pfn(DATA)).arch(debug=False) == PERMISSIONS


# Pages of the control structures.


@pytest.mark.parametrize(
    ("l2_vms", "pages", "expected"),
    [
        (1, 7, "TDX_SUCCESS"),
        (1, 6, "TDX_TDCS_NOT_ALLOCATED"),
        (3, 8, "TDX_TDCS_NOT_ALLOCATED"),
        (3, 9, "TDX_SUCCESS"),
        (4, 9, "TDX_OPERAND_INVALID|NUM_L2_VMS"),
    ],
)
def test_each_l2_vm_needs_a_root_page(l2_vms, pages, expected):
    """TDCX pages: six, and the S-EPT root of each L2 VM."""
    world = World(vcpus=0, finalize=False)
    td = Td(world.page())
    for call, operands in [
        (tdh_mng_create, {"hkid": 33}),
        (tdh_mng_key_config, {"package": 0}),
        *[(tdh_mng_addcx, {"pfn": world.page()}) for _ in range(pages)],
    ]:
        assert world.do(call, td=td, **operands).ok

    assert str(world.do(tdh_mng_init, td=td, num_l2_vms=l2_vms)) == expected


def test_a_vcpu_needs_three_pages_more_per_l2_vm():
    """Six TDVPS pages are too few for a TD with an L2 VM."""
    world = L2World(tables=False, finalize=False)
    tdvpr = world.page()
    lp = LogicalProcessor(7)
    assert world.do(tdh_vp_create, td=world.td, tdvpr_pfn=tdvpr).ok

    vcpu = world.module.vcpu(tdvpr)
    vcpu.tdcx = [world.page() for _ in range(7)]
    few = world.do(tdh_vp_init, tdvpr_pfn=tdvpr, lp=lp)
    vcpu.tdcx.append(world.page())
    enough = world.do(tdh_vp_init, tdvpr_pfn=tdvpr, lp=lp)

    assert (str(few), str(enough)) == ("TDX_TDCX_NUM_INCORRECT", "TDX_SUCCESS")


# Tables.


def test_a_table_is_added_to_both_trees_at_once():
    """Version 1 with two pages: two S-EPT pages of the TD, the alias bit set, registers used up."""
    world = L2World()
    gfn = GFN + 512
    own, twin = world.page(), world.page()
    before = world.module.chldcnt(world.td)
    ret = world.on(tdh_mem_sept_add, gfn, PG_LEVEL_2M, pfn=own, version=1, l2_1_pfn=twin)

    assert (ret.ok, ret.r8, ret.r9, ret.r10, ret.r11) == (True, NULL_PA, NULL_PA, NULL_PA, NULL_PA)
    assert world.l1_entry(gfn, 2).is_aliased(1)
    assert world.l1_entry(gfn, 2).pfn_at(2) == own
    assert world.l2_entry(1, gfn, 2) == l2_table(twin)
    assert world.module.chldcnt(world.td) - before == 2
    world.check()


def test_an_l2_table_needs_the_tables_above_it():
    """Without them: L2_SEPT_WALK_FAILED with VM and the level reached; the pages come back, nothing has changed."""
    world = L2World(l2_vms=2, tables=False)
    pfn = world.page()
    ret = world.on(tdh_mem_sept_add, level=PG_LEVEL_2M, pfn=None, version=1, l2_2_pfn=pfn)

    assert (ret.status, ret.operand) == (Status.TDX_L2_SEPT_WALK_FAILED, 2 << 16 | 3)
    assert (ret.rcx, ret.rdx) == (SVE, 3 | L2State.L2_FREE.public << 8 | 2 << 16)
    assert (ret.r8, ret.r9, ret.r10, ret.r11) == (NULL_PA, NULL_PA, pfn << 12, NULL_PA)
    assert world.add_table(1, PG_LEVEL_512G).ok
    world.check()


def test_a_table_that_is_there():
    """L2_SEPT_ENTRY_NOT_FREE; with ALLOW_EXISTING the page that was given comes back with bit 63 set."""
    world = L2World()
    refused = world.add_table(1, PG_LEVEL_2M)
    allowed = world.add_table(1, PG_LEVEL_2M, allow_existing=True)

    assert (refused.status, refused.operand) == (Status.TDX_L2_SEPT_ENTRY_NOT_FREE, 1 << 16 | 1)
    assert refused.rdx == 1 | L2State.L2_NL_MAPPED.public << 8 | 1 << 16
    assert not refused.r9 >> 63
    assert (allowed.ok, allowed.r8, allowed.r9 >> 63) == (True, NULL_PA, 1)
    assert world.module.pamt_type(allowed.r9 >> 12 & (1 << 40) - 1).name == "PT_NDA"


def test_no_page_for_a_vm_that_does_not_exist():
    """OPERAND_INVALID on the register of that VM; NULL_PA there is fine."""
    world = L2World(l2_vms=1)
    ret = world.on(tdh_mem_sept_add, level=PG_LEVEL_2M, pfn=None, version=1, l2_2_pfn=world.page())

    assert str(ret) == "TDX_OPERAND_INVALID|R10"


def test_one_page_cannot_be_two_tables():
    """The second lock on it fails."""
    world = L2World()
    pfn = world.page()
    ret = world.on(tdh_mem_sept_add, GFN + 512, PG_LEVEL_2M, pfn=pfn, version=1, l2_1_pfn=pfn)

    assert str(ret) == "TDX_OPERAND_BUSY|R9"
    assert world.state(GFN + 512, 2) is SeptState.FREE


@given(
    given_to=st.sets(st.sampled_from([0, 1, 2, 3]), min_size=1),
    there=st.sets(st.sampled_from([0, 1, 2, 3])),
    irqs=st.lists(st.booleans(), max_size=4),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_an_interrupted_add_goes_on_with_the_same_registers(given_to, there, irqs):
    """However often it is interrupted: at least one page each time, each page once, those not needed come back."""
    world = L2World(l2_vms=3)
    gfn = GFN + 512
    there |= {0} if 0 not in given_to else set()  # the TD's own table must be there or come first
    for vm in sorted(there):
        operands = {
            "pfn": world.page() if vm == 0 else None,
            **({f"l2_{vm}_pfn": world.page()} if vm else {}),
        }
        if vm == 0 or 0 in there:
            assert world.on(tdh_mem_sept_add, gfn, PG_LEVEL_2M, version=1, **operands).ok
    there = there if 0 in there else set()
    pages = {vm: world.page() for vm in sorted(given_to)}
    before = world.module.chldcnt(world.td)
    pending = iter(irqs)
    lp = LogicalProcessor(0, interrupt_pending=lambda: next(pending, False))
    words = [pages[vm] << 12 if vm in pages else NULL_PA for vm in range(4)]
    rcx, rdx = page_info(gpa_of(gfn), PG_LEVEL_2M), world.td.tdr_pfn << 12 | 1
    for _ in range(4):
        added = world.module.chldcnt(world.td)
        ret = run(world.kernel, dispatch(world.module, Registers(3 | 1 << 16, rcx, rdx, *words), lp=lp))
        words = [ret.r8, ret.r9, ret.r10, ret.r11]
        if ret.ok:
            break
        assert ret.status is Status.TDX_INTERRUPTED_RESUMABLE
        assert (ret.rcx, ret.rdx) == (rcx, rdx)
        assert world.module.chldcnt(world.td) > added

    assert ret.ok
    assert words == [pages[vm] << 12 | 1 << 63 if vm in pages and vm in there else NULL_PA for vm in range(4)]
    assert world.module.chldcnt(world.td) - before == len(given_to - there)
    for vm in range(1, 4):
        assert world.l1_entry(gfn, 2).is_aliased(vm) == (vm in there | given_to)
        if vm in given_to - there:
            assert world.l2_entry(vm, gfn, 2) == l2_table(pages[vm])
    world.check()


def test_sept_remove_takes_the_twins_away():
    """Blocked with the TD's own table, removed with it; version 1 says which pages they were."""
    world = L2World(l2_vms=3)
    gfn = GFN + 512
    pages = [world.page() for _ in range(3)]
    operands = {"pfn": pages[0], "l2_1_pfn": pages[1], "l2_3_pfn": pages[2]}
    assert world.on(tdh_mem_sept_add, gfn, PG_LEVEL_2M, version=1, **operands).ok
    before = world.module.chldcnt(world.td)
    assert world.on(tdh_mem_range_block, gfn, PG_LEVEL_2M).ok
    assert world.l2_entry(3, gfn, 2).state is L2State.L2_NL_BLOCKED
    world.check()
    assert world.do(tdh_mem_track, td=world.td).ok
    ret = world.on(tdh_mem_sept_remove, gfn, PG_LEVEL_2M, version=1)

    assert (ret.ok, ret.rcx) == (True, pages[0] << 12)
    assert (ret.r9, ret.r10, ret.r11) == (pages[1] << 12, NULL_PA, pages[2] << 12)
    assert before - world.module.chldcnt(world.td) == 3
    assert [world.l2_entry(vm, gfn, 2) for vm in (1, 2, 3)] == [L2_FREE] * 3
    assert {world.module.pamt_type(pfn).name for pfn in pages} == {"PT_NDA"}
    world.check()


def test_sept_remove_of_version_0_hides_the_twins_pages():
    """They are gone all the same: a host that knows nothing of L2 VMs loses them."""
    world = L2World()
    own, twin = world.page(), world.page()
    assert world.on(tdh_mem_sept_add, GFN + 512, PG_LEVEL_2M, pfn=own, version=1, l2_1_pfn=twin).ok
    world.on(tdh_mem_range_block, GFN + 512, PG_LEVEL_2M)
    world.do(tdh_mem_track, td=world.td)
    ret = world.on(tdh_mem_sept_remove, GFN + 512, PG_LEVEL_2M)

    assert (ret.ok, ret.rcx, ret.r9) == (True, own << 12, 0)
    assert world.module.pamt_type(twin).name == "PT_NDA"
    world.check()
