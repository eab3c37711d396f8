"""What is in the pages: MEM.RD and MEM.WR, PAGE.ADD and MR.EXTEND, ACCEPT; and what the PAMT says of them."""

from hashlib import sha384

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import Kernel, explore
from tdx.module import (
    PageType,
    Registers,
    SeptState,
    Td,
    TdxModule,
    dispatch,
    tdh_mem_page_add,
    tdh_mem_range_block,
    tdh_mem_rd,
    tdh_mem_track,
    tdh_mem_wr,
    tdh_mng_key_reclaimid,
    tdh_mr_extend,
    tdh_phymem_page_rdmd,
)
from tdx.module.objects import DEBUG, measured
from tdx.module.septe import make
from tests.tdx.module.test_guest import accept, septe_cell
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_2M, PG_LEVEL_4K, Gpa, Pfn, gpa_of

GPA = gpa_of(GFN)
HPA = DATA << PAGE_SHIFT


def mapped(state=SeptState.MAPPED, **options):
    """A debug TD with one page in that state."""
    world = World(attributes=DEBUG, **options)
    world.aug()
    septe_cell(world).v = int(make(state, DATA))
    return world


def test_a_debugger_reads_what_it_wrote_and_the_old_data_comes_back():
    """WR returns what was there; a page of 2M is reached anywhere inside."""
    world = mapped()
    first = world.do(tdh_mem_wr, td=world.td, gpa=Gpa(GPA + 8), data=0xABCD)
    second = world.do(tdh_mem_wr, td=world.td, gpa=Gpa(GPA + 8), data=1)
    read = world.do(tdh_mem_rd, td=world.td, gpa=Gpa(GPA + 8))

    assert (first.r8, second.r8, read.r8) == (0, 0xABCD, 1)
    assert world.module.memory.contents(DATA) == {8: 1}
    assert not septe_cell(world).v & 1 << 11

    world.aug(GFN + 512, DATA + 512, PG_LEVEL_2M)
    run(world.kernel, accept(world, GFN + 512, PG_LEVEL_2M))
    inside = Gpa(gpa_of(GFN + 512 + 37) + 16)
    assert world.do(tdh_mem_wr, td=world.td, gpa=inside, data=5).ok
    assert world.module.memory.contents(DATA + 512 + 37) == {16: 5}


@pytest.mark.parametrize("state", [state for state in SeptState if state.is_leaf])
def test_what_a_debugger_may_do_follows_what_the_guest_may_do(state):
    """Read: any leaf that the guest can read. Write: only one it can write. Nothing else is even found."""
    world = mapped(state)
    read = world.do(tdh_mem_rd, td=world.td, gpa=GPA)
    write = world.do(tdh_mem_wr, td=world.td, gpa=GPA, data=7)

    missing = "TDX_EPT_ENTRY_NOT_PRESENT|RCX"
    assert str(read) == ("TDX_SUCCESS" if state.is_guest_accessible_leaf else missing)
    if state.is_guest_fully_accessible_leaf:
        assert (str(write), world.module.memory.contents(DATA)) == ("TDX_SUCCESS", {0: 7})
        return
    assert str(write) == ("TDX_EPT_ENTRY_STATE_INCORRECT|RCX" if state.is_guest_accessible_leaf else missing)
    assert write.rdx >> 8 == state.public
    assert world.module.memory.contents(DATA) == {}


def test_a_td_that_is_not_debugged_is_closed_whatever_the_address():
    """NON_DEBUG comes before the address; alignment before the tree's lock; privateness after it."""
    closed = World()
    closed.aug()
    open_ = mapped()
    tree = open_.module.tdcs(open_.td).sept_tree_lock
    shared = Gpa(1 << 47)

    assert str(closed.do(tdh_mem_rd, td=closed.td, gpa=Gpa(GPA + 1))) == "TDX_TD_NON_DEBUG"
    assert str(closed.do(tdh_mem_wr, td=closed.td, gpa=shared, data=0)) == "TDX_TD_NON_DEBUG"
    assert str(open_.do(tdh_mem_rd, td=open_.td, gpa=shared)) == "TDX_OPERAND_INVALID|RCX"
    tree.v = 1
    assert str(open_.do(tdh_mem_rd, td=open_.td, gpa=Gpa(GPA + 4))) == "TDX_OPERAND_INVALID|RCX"
    assert str(open_.do(tdh_mem_rd, td=open_.td, gpa=shared)) == "TDX_OPERAND_BUSY|SEPT_TREE"


def test_memory_calls_by_registers():
    """RCX address, RDX the TD, R8 the data; a level in the address's low bits is misalignment."""
    world = mapped()
    tdr = world.td.tdr_pfn << PAGE_SHIFT

    def call(*words):
        return run(world.kernel, dispatch(world.module, Registers(*words)))

    assert call(14, GPA, tdr, 99).ok
    assert call(12, GPA, tdr).r8 == 99
    assert str(call(12, GPA | 1, tdr)) == "TDX_OPERAND_INVALID|RCX"
    assert str(call(12 | 1 << 16, GPA, tdr)) == "TDX_OPERAND_INVALID|RAX"
    with pytest.raises(ValueError, match="does not fit"):
        tdh_mem_wr(world.module, td=world.td, gpa=GPA, data=1 << 64).send(None)


@given(st.dictionaries(st.integers(0, 511), st.integers(1, (1 << 64) - 1), max_size=6))
def test_a_page_that_is_added_is_a_copy_and_is_measured_as_intel_does(contents):
    """MRTD: blocks of 128 bytes with name and address, and for EXTEND 256 bytes of the page; a SHA-384 made by hand agrees."""
    world = World(Kernel(), finalize=False)
    source = Pfn(DATA + 9)
    for index, value in contents.items():
        world.module.memory.qword((source << PAGE_SHIFT) + 8 * index).v = value
    before = world.module.tdcs(world.td).measurement.copy()
    assert world.do(tdh_mem_page_add, td=world.td, gpa=GPA, pfn=Pfn(DATA), source_pfn=source).ok
    assert world.do(tdh_mr_extend, td=world.td, gpa=Gpa(GPA + 256)).ok

    page = b"".join(contents.get(index, 0).to_bytes(8, "little") for index in range(512))
    before.update(b"MEM.PAGE.ADD" + bytes(4) + GPA.to_bytes(8, "little") + bytes(104))
    before.update(b"MR.EXTEND" + bytes(7) + (GPA + 256).to_bytes(8, "little") + bytes(104))
    before.update(page[256:512])
    assert world.module.memory.read(HPA, 4096) == page
    assert world.module.tdcs(world.td).measurement.digest() == before.digest()
    assert len(measured(b"MR.EXTEND", 0)) == 128
    assert before.digest() != sha384().digest()


def test_the_source_of_a_page_is_one_of_the_host_s_own():
    """R9: unaligned, beyond the CPU's addresses, or under a private key: OPERAND_INVALID|R9, before R8 is looked at."""
    world = World(finalize=False)
    tdr, bad_target = world.td.tdr_pfn << PAGE_SHIFT, 1

    def add(source, target=HPA):
        return str(run(world.kernel, dispatch(world.module, Registers(2, GPA, tdr, target, source))))

    assert add(HPA + 1, bad_target) == "TDX_OPERAND_INVALID|R9"
    assert add(1 << 52, bad_target) == "TDX_OPERAND_INVALID|R9"
    assert add(32 << 46, bad_target) == "TDX_OPERAND_INVALID|R9"
    assert add(31 << 46, bad_target) == "TDX_OPERAND_INVALID|R8"
    assert add(31 << 46 | HPA) == "TDX_SUCCESS"


def test_accept_leaves_zeros_and_an_interrupted_one_as_many_as_it_came_to():
    """Contents that the host had put into a page are gone when the guest gets it."""
    world = World()
    world.aug(GFN + 512, DATA, PG_LEVEL_2M)
    for page in range(512):
        world.module.memory.qword((DATA + page) << PAGE_SHIFT).v = page + 1
    dirty = lambda: [page for page in range(512) if world.module.memory.contents(DATA + page)]  # noqa: E731
    assert run(world.kernel, accept(world, GFN + 512, PG_LEVEL_2M, lambda: True)).interrupted
    assert dirty() == list(range(32, 512))
    assert run(world.kernel, accept(world, GFN + 512, PG_LEVEL_2M)).ok
    assert dirty() == []


def test_the_metadata_of_a_page_is_its_type_owner_size_and_epoch():
    """RDMD for every kind of page, a page inside a 2M mapping included; BEPOCH for data and tables only."""
    world = World()
    td, module = world.td, world.module
    world.aug()
    world.aug(GFN + 512, DATA + 512, PG_LEVEL_2M)
    assert world.do(tdh_mem_track, td=td).ok
    assert world.on(tdh_mem_range_block).ok
    owner = td.tdr_pfn << PAGE_SHIFT

    def shown(pfn):
        ret = world.do(tdh_phymem_page_rdmd, pfn=Pfn(pfn))
        return PageType(ret.rcx), ret.rdx, ret.r8, ret.r9

    assert shown(DATA) == (PageType.PT_REG, owner, 0, 2)
    assert shown(DATA + 600) == (PageType.PT_REG, owner, 1, 0)
    assert shown(td.tdr_pfn) == (PageType.PT_TDR, 0, 0, 0)
    assert shown(world.tdcx[0]) == (PageType.PT_TDCX, owner, 0, 0)
    assert shown(world.tdvprs[0]) == (PageType.PT_TDVPR, owner, 0, 0)
    assert world.on(tdh_mem_range_block, GFN, PG_LEVEL_2M).ok
    below = module.peek_septe(td, GFN, 2).pfn_at(2)
    assert shown(below) == (PageType.PT_EPT, owner, 0, 2)
    assert shown(DATA + 1) == (PageType.PT_NDA, 0, 0, 0)
    module.pamt.entry(DATA, 2).lock.v = 1
    assert str(world.do(tdh_phymem_page_rdmd, pfn=Pfn(DATA))) == "TDX_OPERAND_BUSY|RCX"


def test_reclaimid_does_nothing_to_anybody():
    """Success, with no TD at all."""
    module = TdxModule(Kernel(), tdmr=[(0x1000, 0x2000)])

    assert run(module.kernel, dispatch(module, Registers(27, 12345))).ok
    assert run(module.kernel, tdh_mng_key_reclaimid(module, td=Td(Pfn(5)))).ok
    assert module.pamt.assigned() == []


def reader_and_writer(kernel):
    """MEM.RD beside MEM.WR beside BLOCK: the entry's lock and the tree keep them apart."""
    world = World(kernel, attributes=DEBUG)
    world.aug()
    septe_cell(world).v = int(make(SeptState.MAPPED, DATA))
    results = []

    def debugger(call, **operands):
        results.append((yield from call(world.module, td=world.td, gpa=GPA, **operands)))

    kernel.thread("reader", debugger(tdh_mem_rd))
    kernel.thread("writer", debugger(tdh_mem_wr, data=3))
    kernel.thread("blocker", debugger(tdh_mem_range_block, level=PG_LEVEL_4K))
    kernel.always(
        "a reader sees old or new",
        lambda: all(ret.r8 in (0, 3) for ret in results if ret.ok),
    )
    for status in ("sept_entry_busy", "sept_tree_busy"):
        kernel.sometimes(status)
    kernel.sometimes("the page was blocked first", lambda: world.state() is SeptState.BLOCKED)
    kernel.at_end("no lock is left", lambda: not septe_cell(world).v & 1 << 11)


def test_readers_writers_and_blockers_exclude_each_other():
    """Random orders: busy in both ways is met, and no lock stays."""
    report = explore(reader_and_writer, executions=150, seed=1)

    assert (report.findings, report.unmet) == ([], [])
