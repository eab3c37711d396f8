"""Aliases: what L2 VMs may do with a page follows the page, and the guest's calls that say what they may."""

import pytest

from sim import explore
from tdx.module import (
    Operand,
    SeptState,
    Status,
    tdg_mem_page_attr_rd,
    tdg_mem_page_attr_wr,
    tdh_mem_page_remove,
    tdh_mem_range_block,
    tdh_mem_range_unblock,
    tdh_mem_sept_rd,
    tdh_mem_track,
)
from tdx.module.dispatch import Registers
from tdx.module.exits import Access, ExtendedType
from tdx.module.l2 import (
    ATTR_R,
    ATTR_VALID,
    ATTR_W,
    ATTR_XS,
    ATTR_XU,
    HPA,
    L2_FREE,
    L2State,
    aliases_agree,
    l2_leaf,
)
from tdx.module.leaves import tdh_mem_page_remove as remove_file
from tdx.module.objects import DEBUG, EPT_VIOLATION_ON_L2_SEPT_WALK_FAILURE
from tdx.module.operands import page_info
from tdx.module.status import ModuleShutdown
from tdx.module.tdcall import TDCALLS, tdcall
from tests.tdx.module.l2_worlds import ALL, READ_WRITE, L2World, mapped, of_vm
from tests.tdx.module.worlds import DATA, GFN, run
from vcpu.addresses import LEVELS, PG_LEVEL_2M, PG_LEVEL_4K, PG_LEVEL_512G, Pfn, gpa_of

# Aliases of pages.


def test_an_alias_follows_its_page():
    """Made by ATTR.WR, blocked and unblocked with the page, gone with it; what it grants never changes on the way."""
    world = mapped()
    seen = [(world.l2_entry().state, world.l2_entry().attributes())]
    for call in (tdh_mem_range_block, None, tdh_mem_range_unblock, tdh_mem_range_block, None):
        ret = world.on(call) if call else world.do(tdh_mem_track, td=world.td)
        assert ret.ok
        seen.append((world.l2_entry().state, world.l2_entry().attributes()))
        world.check()
    assert world.on(tdh_mem_page_remove).ok

    blocked, open_ = (L2State.L2_BLOCKED, READ_WRITE), (L2State.L2_MAPPED, READ_WRITE)
    assert seen == [open_, blocked, blocked, open_, blocked, blocked]
    assert world.l2_entry() == L2_FREE
    assert not world.l1_entry().is_aliased(1)
    world.check()


def test_an_alias_of_a_pending_page_waits_for_accept():
    """L2_BLOCKED until the page is accepted; UNBLOCK of a pending page leaves it blocked."""
    world = L2World()
    world.aug()
    ret = world.attr_wr(READ_WRITE).ret

    assert (ret.rcx, ret.rdx) == (gpa_of(GFN) | 1 << 62, of_vm(READ_WRITE))
    assert world.l2_entry().state is L2State.L2_BLOCKED
    world.check()
    assert world.accept().ok
    assert world.l2_entry() == l2_leaf(READ_WRITE, Pfn(DATA), blocked=False)
    world.check()


def test_blocking_a_pending_page_forgets_what_its_alias_grants():
    """BLOCK saves the permissions of an entry that is blocked already, which are none: after ACCEPT the alias grants nothing."""
    world = L2World()
    world.aug()
    assert world.attr_wr(READ_WRITE).ok
    assert world.on(tdh_mem_range_block).ok
    assert world.do(tdh_mem_track, td=world.td).ok
    assert world.on(tdh_mem_range_unblock).ok
    assert world.accept().ok

    assert world.l2_entry().state is L2State.L2_MAPPED
    assert world.attr_rd().ret.rdx == of_vm(ATTR_VALID)
    world.check()


def test_an_alias_of_a_half_accepted_page_has_the_counter_in_its_address():
    """ATTR.WR copies the frame of a PENDING 2M leaf with the accept counter in it; the module's own entry is clean after ACCEPT."""
    world = L2World(accept_step_pages=1)
    gfn, pfn = GFN + 512, Pfn(DATA + 512)
    world.aug(gfn, pfn, PG_LEVEL_2M)
    assert world.accept(gfn, PG_LEVEL_2M, interrupt_pending=lambda: True).interrupted
    assert world.attr_wr(READ_WRITE, gfn=gfn, level=PG_LEVEL_2M).ok
    assert world.accept(gfn, PG_LEVEL_2M).ok

    assert world.l1_entry(gfn, 2).pfn_at(1) == pfn
    assert world.l2_entry(1, gfn, 2).pfn == pfn + 1
    assert aliases_agree(world.module)() is not True


def test_attributes_are_changed_bit_by_bit():
    """Only what the mask names changes; granting nothing takes the alias away."""
    world = mapped()
    added = world.attr_wr(ATTR_VALID | ATTR_XS | ATTR_XU, mask=ATTR_XS | ATTR_XU).ret
    taken = world.attr_wr(ATTR_VALID, mask=ATTR_W).ret

    assert added.rdx == of_vm(READ_WRITE | ATTR_XS | ATTR_XU)
    assert taken.rdx == of_vm(ATTR_VALID | ATTR_R | ATTR_XS | ATTR_XU)
    assert world.attr_rd().ret.rdx == taken.rdx
    world.check()
    gone = world.attr_wr(ATTR_VALID).ret
    assert (gone.ok, gone.rdx, world.l2_entry()) == (True, of_vm(ATTR_VALID), L2_FREE)
    assert (world.attr_rd().ret.rdx, world.l1_entry().is_aliased(1)) == (0, False)
    world.check()


def test_a_vm_that_was_not_asked_for_is_left_alone():
    """Without VALID nothing changes and nothing of it is returned; what the mask hides of a new alias is echoed."""
    world = mapped(l2_vms=2)
    ret = world.attr_wr(READ_WRITE, vm=2, mask=0).ret

    assert (ret.ok, ret.rdx) == (True, of_vm(READ_WRITE, 2))
    assert world.l2_entry(2) == L2_FREE
    assert world.attr_rd().ret.rdx == of_vm(READ_WRITE)


def test_an_illegal_combination_changes_nothing_anywhere():
    """PAGE_ATTR_INVALID: the offender's attributes come back as they are, the other VM's as they would have become."""
    world = mapped(l2_vms=2)
    call = tdg_mem_page_attr_wr(
        world.module,
        vcpu=world.vcpu(),
        gpa=gpa_of(GFN),
        level=PG_LEVEL_4K,
        attributes=of_vm(ATTR_VALID, 1) | of_vm(ATTR_VALID | ATTR_R, 2),
        flags=of_vm(ATTR_R, 1) | of_vm(ALL, 2),
    )
    ret = run(world.kernel, call).ret

    assert str(ret) == "TDX_PAGE_ATTR_INVALID"
    assert (ret.rcx, ret.rdx) == (0, of_vm(READ_WRITE, 1) | of_vm(ATTR_VALID | ATTR_R, 2))
    assert world.attr_rd().ret.rdx == of_vm(READ_WRITE)
    assert world.l2_entry(2) == L2_FREE
    assert not world.l1_entry().is_locked
    world.check()


@pytest.mark.parametrize(
    ("attributes", "flags", "gpa", "level", "operand"),
    [
        (1, 0, gpa_of(GFN), 1, Operand.RDX),
        (0, 1, gpa_of(GFN), 1, Operand.R8),
        (of_vm(ATTR_R), 0, gpa_of(GFN), 1, Operand.RDX),
        (of_vm(READ_WRITE, 2), 0, gpa_of(GFN), 1, Operand.RDX),
        (0, of_vm(1 << 15, 3), gpa_of(GFN), 1, Operand.R8),
        (0, 0, gpa_of(GFN), 4, Operand.RCX),
        (0, 0, gpa_of(GFN + 1), 2, Operand.RCX),
        (0, 0, 1 << 47, 1, Operand.RCX),
    ],
)
def test_operands_of_attr_wr(attributes, flags, gpa, level, operand):
    """Attributes of the TD itself, of no VM, without VALID; flags of no VM; a page that is none."""
    world = mapped()
    call = TDCALLS["TDG.MEM.PAGE.ATTR.WR"].call(
        world.module, vcpu=world.vcpu(), gpa=gpa, level=LEVELS[level], attributes=attributes, flags=flags
    )

    assert str(run(world.kernel, call).ret) == f"TDX_OPERAND_INVALID|{operand.name}"


def test_a_missing_l2_table_is_told_to_the_guest_or_to_the_host():
    """VM_CTLS decides: L2_SEPT_WALK_FAILED, or an EPT violation of type 2 with VM and level."""
    world = L2World(l2_vms=2, tables=False)
    world.aug()
    assert world.accept().ok
    told = world.attr_wr(READ_WRITE, vm=2).ret
    world.module.tdcs(world.td).vm_ctls[1] = EPT_VIOLATION_ON_L2_SEPT_WALK_FAILURE
    left = world.attr_wr(READ_WRITE, vm=2)

    assert (told.status, told.operand) == (Status.TDX_L2_SEPT_WALK_FAILED, 2 << 16 | 3)
    assert (left.ret, left.exit.extended_type, left.exit.qualification) == (
        None,
        ExtendedType.GPA_DETAILS,
        Access.WRITE,
    )
    assert (left.exit.extended >> 35 & 7, left.exit.extended >> 52 & 3, left.exit.gpa) == (3, 2, gpa_of(GFN))
    assert not world.l1_entry().is_locked
    world.check()


def test_attr_wr_wants_the_page_in_the_size_it_asks_for():
    """Larger: an exit of type 5, so that the host splits it. Smaller: PAGE_SIZE_MISMATCH. Missing or blocked: the exit."""
    world = L2World()
    gfn = GFN + 512
    world.aug(gfn, DATA + 512, PG_LEVEL_2M)
    larger = world.attr_wr(READ_WRITE, gfn=gfn + 3).exit
    smaller = world.attr_wr(READ_WRITE, level=PG_LEVEL_2M).ret
    missing = world.attr_wr(READ_WRITE).exit
    world.on(tdh_mem_range_block, gfn, PG_LEVEL_2M)
    blocked = world.attr_wr(READ_WRITE, gfn=gfn, level=PG_LEVEL_2M).exit

    assert [left.extended_type for left in (larger, missing, blocked)] == [ExtendedType.ATTR_WR] * 3
    assert (larger.extended >> 32 & 7, larger.extended >> 35 & 7) == (0, 1)
    assert blocked.extended >> 38 & 0xFF == SeptState.PENDING_BLOCKED.public
    assert (smaller.status, smaller.operand) == (Status.TDX_PAGE_SIZE_MISMATCH, 1)


def test_attr_rd_finds_the_page_in_whatever_size():
    """RCX says where the page begins and how large it is; no leaf, or a blocked one, is a plain EPT violation."""
    world = L2World()
    gfn = GFN + 512
    world.aug(gfn, DATA + 512, PG_LEVEL_2M)
    assert world.attr_wr(READ_WRITE, gfn=gfn, level=PG_LEVEL_2M).ok
    found = world.attr_rd(gfn + 77).ret
    missing = world.attr_rd().exit
    world.on(tdh_mem_range_block, gfn, PG_LEVEL_2M)
    blocked = world.attr_rd(gfn).exit

    assert (found.rcx, found.rdx) == (gpa_of(gfn) | 1 | 1 << 62, of_vm(READ_WRITE))
    for left in (missing, blocked):
        assert (left.extended, left.qualification) == (ExtendedType.NONE, 0)


def test_attributes_by_registers():
    """TDCALL 24 and 23: the words of one are those of the other; without a VM there is nothing to change."""
    world = mapped()

    def call(*words):
        return run(world.kernel, tdcall(world.module, world.vcpu(), Registers(*words))).ret

    written = call(24, page_info(gpa_of(GFN), PG_LEVEL_4K), of_vm(READ_WRITE | ATTR_XS), of_vm(ALL))
    read = call(23, gpa_of(GFN) + 0x123)
    wrong = call(24, page_info(gpa_of(GFN), PG_LEVEL_512G), 0, 0)

    assert (written.ok, read.ok) == (True, True)
    assert (written.rcx, written.rdx) == (read.rcx, read.rdx) == (gpa_of(GFN), of_vm(READ_WRITE | ATTR_XS))
    assert (str(wrong), wrong.rcx, wrong.rdx) == ("TDX_OPERAND_INVALID|RCX", 0, 0)


def test_the_host_reads_attributes_of_a_debug_td_only():
    """SEPT.RD with the flag: R8 as ATTR.RD's RDX; of another TD OPERAND_INVALID."""
    secret, debug = mapped(), mapped(attributes=READ_WRITE)
    debug.module.tdcs(debug.td).attributes |= DEBUG
    plain = secret.on(tdh_mem_sept_rd)
    refused = secret.on(tdh_mem_sept_rd, read_l2_attributes=True)
    shown = debug.on(tdh_mem_sept_rd, read_l2_attributes=True)

    assert (str(refused), plain.r8) == ("TDX_OPERAND_INVALID|RDX", 0)
    assert shown.r8 == debug.attr_rd().ret.rdx == of_vm(READ_WRITE)


# Races.


def accept_or_read_race(kernel, steps, outcomes):
    """The host blocks the table above a page while the guest is on the way to the page's alias."""
    world = L2World(kernel)
    world.aug()
    assert world.attr_wr(READ_WRITE).ok

    def guest():
        try:
            yield from steps(world)
        except ModuleShutdown:
            outcomes.add("shutdown")
        else:
            outcomes.add("returned")

    def host():
        yield from tdh_mem_range_block(world.module, td=world.td, gpa=gpa_of(GFN), level=PG_LEVEL_2M)

    kernel.thread("guest", guest())
    kernel.thread("host", host())


def test_accept_shuts_the_module_down_if_its_l2_table_is_blocked_meanwhile():
    """ACCEPT walks the L2 tree as the host does and stops at a blocked table, which it holds to be impossible."""
    outcomes = set()
    explore(
        lambda kernel: accept_or_read_race(kernel, lambda world: world.accept_steps(), outcomes),
        strategy="dpor",
    )

    assert outcomes == {"returned", "shutdown"}


def test_attr_rd_passes_an_l2_table_that_is_blocked_meanwhile():
    """The attribute calls walk on through blocked tables: tracking keeps them until the guest leaves."""
    outcomes = set()

    def steps(world):
        return tdg_mem_page_attr_rd(world.module, vcpu=world.vcpu(), gpa=gpa_of(GFN))

    report = explore(lambda kernel: accept_or_read_race(kernel, steps, outcomes), strategy="dpor")

    assert report.exhausted
    assert report.findings == []
    assert outcomes == {"returned"}


def test_a_page_removed_with_its_alias_left_behind_is_noticed(monkeypatch):
    """The checker of this file sees an L2 entry that nobody speaks of any more."""

    def forgets(*_args):
        return iter(())

    monkeypatch.setattr(remove_file, "free_aliases", forgets)
    world = mapped()
    for call in (tdh_mem_range_block, None, tdh_mem_page_remove):
        ret = world.on(call) if call else world.do(tdh_mem_track, td=world.td)
        assert ret.ok

    broken = aliases_agree(world.module)()
    assert broken is not True
    assert world.l2_entry() & HPA == DATA << 12
