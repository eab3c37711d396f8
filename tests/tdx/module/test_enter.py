"""TDH.VP.ENTER: the order of its checks, what stays when it fails, and what exits leave behind."""

import pytest

from tdx.module import (
    ExitReason,
    LastTdExit,
    LogicalProcessor,
    Registers,
    SeptState,
    Status,
    TdExit,
    dispatch,
    tdcall,
    tdg_vp_vmcall,
    tdh_mem_track,
    tdh_mng_vpflushdone,
    tdh_vp_flush,
)
from tdx.module.objects import VcpuState
from tdx.module.septe import make
from tests.tdx.module.test_guest import septe_cell
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_4K, gpa_of

HINT = 1 << 52
RESUME_L1 = 1 << 53
GPA = gpa_of(GFN)


def by_registers(world, flags=0, guest=None, n=0, lp=None):
    """TDH.VP.ENTER with its real RCX."""
    rcx = world.tdvprs[n] << PAGE_SHIFT | flags
    context = {"lp": lp or world.lps[n], "guest": guest or world.leave}
    return run(world.kernel, dispatch(world.module, Registers(0, rcx), **context))


def epoch_of(world):
    return world.module.tdcs(world.td).epoch.peek()


def leave_as(world, left):
    """A guest that leaves in that way."""

    def guest():
        yield world.module.state.read_once()
        return left

    return guest


def timeout(world):
    """A guest that lost to host priority for too long."""
    world.vcpu().guest_rax = 0x8000020000000001
    return leave_as(world, TdExit.host_priority_timeout())


# Checks, in their order.


def test_checks_come_in_intel_s_order():
    """Each row repairs what the row before it named; reserved bits before the page, state before association, and so on."""
    world = World()
    module, vcpu, tdr = world.module, world.vcpu(), world.module.tdr(world.td)
    tdcs = tdr.tdcs
    elsewhere = LogicalProcessor(7)
    vcpu.state.v = VcpuState.DISABLED
    pages, vcpu.tdcx = vcpu.tdcx, vcpu.tdcx[:3]
    tdr.fatal = True
    tdcs.op_state_lock.v = 1
    tdcs.epoch_lock.v = 1
    module.pamt.entry(tdr.pfn, PG_LEVEL_4K).lock.v = 1

    def answer(flags=0, lp=None):
        return str(by_registers(world, flags, lp=lp))

    assert answer(1 << 54) == "TDX_OPERAND_INVALID|RCX"
    assert answer(1) == "TDX_OPERAND_INVALID|RCX"
    assert answer() == "TDX_OPERAND_BUSY|TDR"
    module.pamt.entry(tdr.pfn, PG_LEVEL_4K).lock.v = 0
    assert answer() == "TDX_TD_FATAL"
    tdr.fatal = False
    assert answer() == "TDX_OPERAND_BUSY|OP_STATE"
    tdcs.op_state_lock.v = 0
    assert answer() == "TDX_TDCX_NUM_INCORRECT"
    vcpu.tdcx = pages
    for state in (VcpuState.DISABLED, VcpuState.IMPORT, VcpuState.ACTIVE, VcpuState.UNINITIALIZED):
        vcpu.state.v = state
        assert answer(HINT, lp=elsewhere) == "TDX_VCPU_STATE_INCORRECT"
    vcpu.state.v = VcpuState.READY
    assert answer(HINT, lp=elsewhere) == "TDX_VCPU_ASSOCIATED"
    assert answer(HINT) == "TDX_OPERAND_INVALID|RCX"
    assert answer(RESUME_L1) == "TDX_OPERAND_INVALID|RCX"
    assert answer() == "TDX_OPERAND_BUSY|TD_EPOCH"
    tdcs.epoch_lock.v = 0
    assert by_registers(world).ok
    assert (epoch_of(world).refcount0, epoch_of(world).refcount1) == (0, 0)


@pytest.mark.parametrize("why", ["flags", "epoch", "tree", "suspect"])
def test_whatever_fails_after_it_leaves_the_vcpu_associated(why):
    """Quirk 17: the guest never ran, yet no other LP may have the vCPU until it is flushed; and no count is left."""
    world = World()
    vcpu, tdcs = world.vcpu(), world.module.tdcs(world.td)
    assert world.do(tdh_vp_flush, tdvpr_pfn=world.tdvprs[0], lp=world.lps[0]).ok
    first, second = LogicalProcessor(3), LogicalProcessor(4)
    flags = HINT if why == "flags" else 0
    if why == "epoch":
        tdcs.epoch_lock.v = 1
    if why in ("tree", "suspect"):
        vcpu.last_epf_gpa_list.append(GPA)
    if why == "tree":
        tdcs.sept_tree_lock.v = 1
    failed = by_registers(world, flags, lp=first)
    tdcs.epoch_lock.v = tdcs.sept_tree_lock.v = 0

    assert (failed.status is not Status.TDX_SUCCESS) or failed.exit.gpa == GPA
    assert vcpu.assoc_lpid.peek() == first.lpid
    assert tdcs.num_assoc_vcpus.peek() == 1
    assert str(by_registers(world, lp=second)) == "TDX_VCPU_ASSOCIATED"
    assert (epoch_of(world).refcount0, epoch_of(world).refcount1) == (0, 0)
    assert str(world.do(tdh_mng_vpflushdone, td=world.td)) == "TDX_FLUSHVP_NOT_DONE"
    assert world.do(tdh_vp_flush, tdvpr_pfn=world.tdvprs[0], lp=first).ok
    vcpu.last_epf_gpa_list.clear()
    assert by_registers(world, lp=second).ok


# What an exit leaves behind.


def test_the_host_s_hint_reaches_the_guest_after_a_trap_like_exit_only():
    """Bit 60 of the status that the interrupted TDCALL returns, as the host says now; any other exit makes the flag an error."""
    world = World()
    vcpu = world.vcpu()
    for flags, bit in ((HINT, 1), (0, 0)):
        left = by_registers(world, guest=timeout(world))
        assert (left.rax, vcpu.last_td_exit) == (
            Status.TDX_HOST_PRIORITY_BUSY_TIMEOUT,
            LastTdExit.ASYNC_TRAP,
        )
        assert by_registers(world, flags).ok
        assert vcpu.guest_rax >> 60 & 1 == bit
        assert str(by_registers(world, HINT)) == "TDX_OPERAND_INVALID|RCX"

    def vmcall():
        yield world.module.state.read_once()
        return tdg_vp_vmcall(world.module, vcpu=vcpu, args=(0, 12))

    assert by_registers(world, guest=vmcall).rax == ExitReason.TDCALL
    assert vcpu.last_td_exit is LastTdExit.TDVMCALL
    assert str(by_registers(world, HINT)) == "TDX_OPERAND_INVALID|RCX"


def test_an_entry_that_was_answered_for_the_guest_is_a_fault_like_exit():
    """The trap-like exit before it is forgotten: the host's hint is an error then, and never reaches the guest."""
    world = World()
    vcpu = world.vcpu()
    by_registers(world, guest=timeout(world))
    vcpu.last_epf_gpa_list.append(GPA)
    assert by_registers(world, HINT).exit.gpa == GPA
    vcpu.last_epf_gpa_list.clear()
    assert str(by_registers(world, HINT)) == "TDX_OPERAND_INVALID|RCX"
    assert not vcpu.guest_rax >> 60 & 1


def test_what_is_held_while_the_guest_runs():
    """TDVPR with the pages around it, and the TDR alone, shared, until the exit; OP_STATE and the tree not any more."""
    world = World()
    module, tdr = world.module, world.module.tdr(world.td)
    world.vcpu().last_epf_gpa_list.append(GPA)
    septe_cell(world).v = int(make(SeptState.MAPPED, DATA))
    held = []

    def words():
        around = [module.pamt.entry(world.tdvprs[0], level).lock.peek() for level in (1, 2, 3)]
        own = module.pamt.entry(tdr.pfn, 1).lock.peek()
        return [*around, own, tdr.tdcs.op_state_lock.peek(), tdr.tdcs.sept_tree_lock.peek()]

    def guest():
        held.append(words())
        return (yield from world.leave())

    assert by_registers(world, guest=guest).ok
    assert held == [[4, 4, 4, 4, 0, 0]]
    assert words() == [0] * 6


def test_a_triple_fault_ends_the_vcpu_and_not_the_td():
    """NON_RECOVERABLE_VCPU with the reason; the vCPU is DISABLED, its count is given back, others run on."""
    world = World(vcpus=2)
    left = by_registers(world, guest=leave_as(world, TdExit.triple_fault()))

    assert left.rax == Status.TDX_NON_RECOVERABLE_VCPU + ExitReason.TRIPLE_FAULT
    assert world.vcpu().state.peek() is VcpuState.DISABLED
    assert epoch_of(world).refcount1 == 0
    assert str(by_registers(world)) == "TDX_VCPU_STATE_INCORRECT"
    assert by_registers(world, n=1).ok
    assert world.do(tdh_vp_flush, tdvpr_pfn=world.tdvprs[0], lp=world.lps[0]).ok


def test_a_fatal_td_takes_its_other_vcpus_with_it_and_can_be_torn_down():
    """The vCPU that met the error gives its count back; one inside learns it at its next exit, saves nothing, keeps the count."""
    world = World(vcpus=2)
    kernel, module = world.kernel, world.module
    results = {}
    dead = kernel.cell("dead", 0)

    def second():
        yield dead.wait_until(bool)
        result = yield from tdcall(module, world.vcpu(1), Registers(6, GPA))
        assert result.ret is None
        return result.exit

    def first():
        yield module.tdcs(world.td).epoch.wait_until(lambda unit: unit.refcount1 == 2)
        return TdExit(ExitReason.TDCALL, status=Status.TDX_NON_RECOVERABLE_TD)

    def host(n, guest):
        results[n] = yield from world.enter(guest, n)
        yield dead.write_once(1)

    kernel.thread("first", host(0, first))
    kernel.thread("second", host(1, second))
    kernel.execute()

    assert results[0].rax == Status.TDX_NON_RECOVERABLE_TD + ExitReason.TDCALL
    assert results[1].rax == Status.TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE + ExitReason.TDCALL
    assert [world.vcpu(n).state.peek() for n in (0, 1)] == [VcpuState.ACTIVE] * 2
    assert epoch_of(world).refcount1 == 1
    assert module.tdr(world.td).fatal
    assert str(by_registers(world)) == "TDX_TD_FATAL"
    assert str(world.do(tdh_mem_track, td=world.td)) == "TDX_TD_FATAL"
    for n in (0, 1):
        assert world.do(tdh_vp_flush, tdvpr_pfn=world.tdvprs[n], lp=world.lps[n]).ok
    assert world.do(tdh_mng_vpflushdone, td=world.td).ok


def test_a_blocked_entry_flushes_no_tlb_and_a_run_does():
    """The LP counts as the vCPU's only when the guest is about to run; VP.FLUSH forgets it."""
    world = World()
    lp, flushed = world.lps[0], []
    lp.flush_tlb = flushed.append
    world.vcpu().last_epf_gpa_list.append(GPA)
    world.vcpu().vcpu_epoch = 1
    assert by_registers(world).exit.gpa == GPA
    assert (flushed, lp.last_tdvpr) == ([], None)
    world.vcpu().last_epf_gpa_list.clear()
    assert by_registers(world).ok
    assert (len(flushed), lp.last_tdvpr) == (1, world.tdvprs[0])
    assert world.do(tdh_vp_flush, tdvpr_pfn=world.tdvprs[0], lp=lp).ok
    assert lp.last_tdvpr is None


def test_both_entries_agree_on_what_runs():
    """The typed call and the one by registers are the same call."""
    world = World()

    assert run(world.kernel, world.enter(world.leave)) == by_registers(world)
