"""The defences against zero-stepping and single-stepping."""

from dataclasses import replace

import pytest

from sim import Kernel
from tdx.module import (
    Access,
    ExitReason,
    LastTdExit,
    Registers,
    SeptState,
    Status,
    TdExit,
    VirtualizationException,
    interrupt_exit,
    private_ept_violation,
    tdcall,
    tdh_mem_page_aug,
)
from tdx.module.septe import make
from tdx.module.stepping import STEPPING_BYTES, STEPS_MAX
from tests.tdx.module.test_enter import GPA, by_registers, epoch_of, leave_as
from tests.tdx.module.test_guest import septe_cell, violate
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import PG_LEVEL_4K, Pfn, gpa_of

# The zero-step defence.


def arm(world, rip=0x400):
    """Seven violations at one place."""
    for _ in range(7):
        assert run(world.kernel, world.enter(violate(world, rip))).operand == ExitReason.EPT_VIOLATION
    assert world.vcpu().last_epf_gpa_list == [GPA]


@pytest.mark.parametrize("state", [None, *(state for state in SeptState if state.is_leaf)])
def test_a_suspect_keeps_the_guest_out_until_every_access_would_succeed(state):
    """Only a leaf with R, W and X lets it in: not a pending page (quirk 16), not a write-blocked one. The tree lock is free after."""
    world = World()
    arm(world)
    if state is not None:
        septe_cell(world).v = int(make(state, DATA))
    entered = by_registers(world)

    let_in = state is not None and state.is_guest_fully_accessible_leaf
    assert entered.operand == (ExitReason.EXTERNAL_INTERRUPT if let_in else ExitReason.EPT_VIOLATION)
    if not let_in:
        assert (entered.rcx, entered.rdx, entered.r8) == (Access.WRITE, 0, GPA)
        assert world.vcpu().last_td_exit is LastTdExit.ASYNC_FAULT
    assert world.module.tdcs(world.td).sept_tree_lock.peek() == 0
    assert (epoch_of(world).refcount0, epoch_of(world).refcount1) == (0, 0)


def test_two_suspects_of_one_page_are_two_and_the_list_ends_at_32():
    """The whole address counts; the host is told the page."""
    world = World()
    arm(world)
    for offset in range(40):
        left = run(
            world.kernel,
            private_ept_violation(world.module, world.td, world.vcpu(), GPA + offset, Access.READ, 0x400),
        )
        assert left.gpa == GPA
    world.vcpu().rip_compared = False

    assert world.vcpu().last_epf_gpa_list == [GPA + offset for offset in range(32)]
    septe_cell(world).v = int(make(SeptState.BLOCKED, DATA))
    assert by_registers(world).r8 == GPA


def test_a_vcpu_under_suspicion_holds_the_tree_until_the_guest_runs():
    """Beside it, AUG is busy on the tree; once the guest runs, it is not."""
    world = World(vcpus=2)
    kernel, module = world.kernel, world.module
    seen = []
    for _ in range(2):
        arm(world)
        septe_cell(world).v = int(make(SeptState.MAPPED, DATA))
    tree = module.tdcs(world.td).sept_tree_lock

    def guest():
        yield module.state.read_once()
        assert tree.peek() == 0
        return TdExit.external_interrupt(0x400)

    def host():
        yield tree.wait_until(bool)
        seen.append(
            (
                yield from tdh_mem_page_aug(
                    module, td=world.td, gpa=gpa_of(GFN + 1), level=PG_LEVEL_4K, pfn=Pfn(DATA + 1)
                )
            )
        )

    def pick(kernel, candidates):
        """The host from the moment that the tree is taken."""
        names = [thread.name for thread in candidates]
        want = "host" if tree.v and "host" in names else "vcpu"
        return names.index(want) if want in names else 0

    kernel.thread("vcpu", world.enter(guest))
    kernel.thread("host", host())
    kernel.execute(pick)

    assert [str(ret) for ret in seen] == ["TDX_OPERAND_BUSY|SEPT_TREE"]


def test_a_tdcall_elsewhere_is_progress():
    """Every VM exit compares the place, not only those that reach the host."""
    world = World()
    vcpu = world.vcpu()
    for _ in range(6):
        run(world.kernel, world.enter(violate(world, 0x400)))
    assert vcpu.possibly_epf_stepping == 6

    def guest():
        yield from tdcall(world.module, vcpu, Registers(3), rip=0x500)
        return (yield from violate(world, 0x400)())

    run(world.kernel, world.enter(guest))
    assert (vcpu.possibly_epf_stepping, vcpu.last_epf_gpa_list) == (1, [])


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("last", ["violation", "interrupt", "ve pending"])
def test_a_guest_that_wants_to_know_gets_a_ve(enabled, last):
    """NOTIFY_ENABLES bit 0: if all suspects translate, the last VM exit was a private violation, and no #VE waits already."""
    world = World()
    vcpu, tdcs = world.vcpu(), world.module.tdcs(world.td)
    tdcs.notify_enables = int(enabled)
    arm(world)
    septe_cell(world).v = int(make(SeptState.MAPPED, DATA))
    if last == "interrupt":
        run(world.kernel, world.enter(leave_as(world, TdExit.external_interrupt(0x400))))
        vcpu.injected, vcpu.ve_info = None, None
    if last == "ve pending":
        vcpu.ve_info = vcpu.last_violation
    assert by_registers(world).ok

    told = enabled and last == "violation"
    assert (vcpu.injected == VirtualizationException(GPA, Access.WRITE)) is told
    if told:
        info = run(world.kernel, tdcall(world.module, vcpu, Registers(3))).ret
        assert (info.rcx, info.rdx, info.r8, info.r9) == (48, Access.WRITE, 0, GPA)


# The single-step defence.


def interrupted(world, rip, after_ns=0, reason=ExitReason.EXTERNAL_INTERRUPT, lp=None):
    """How many instructions the guest executes until an interrupt, that waits, leaves; and the exit that does."""
    lp, vcpu = lp or world.lps[0], world.vcpu()
    vcpu.entry_rip = 0x1000
    lp.single_step.entered_ns = world.kernel.now_ns - after_ns
    instructions = 0
    left = interrupt_exit(world.module, vcpu, lp, TdExit(reason, rip=rip))
    while left is None:
        if lp.single_step.stepping:
            instructions += 1
            left = interrupt_exit(world.module, vcpu, lp, TdExit(ExitReason.MTF, rip=rip + instructions))
        else:
            left = interrupt_exit(world.module, vcpu, lp, TdExit(reason, rip=rip + instructions))
    return instructions, left


def test_an_interrupt_right_after_entry_waits_for_1_to_32_instructions():
    """All numbers occur, the same for the same seed; it leaves in the end."""

    def delays(seed):
        world = World(Kernel(seed=seed))
        return [interrupted(world, 0x1004)[0] for _ in range(400)]

    assert set(delays(1)) == set(range(1, STEPS_MAX + 1))
    assert delays(1) == delays(1) != delays(2)
    _, left = interrupted(World(), 0x1000)
    assert (left.reason, left.status) == (ExitReason.EXTERNAL_INTERRUPT, Status.TDX_SUCCESS)


def test_an_interrupt_leaves_at_once_when_the_guest_has_come_far_or_run_long():
    """33 bytes or 4097 cycles, either is enough."""
    world = World()
    edge_ns = 4096 * 1000 // world.lps[0].tsc_mhz

    assert interrupted(world, 0x1000 + STEPPING_BYTES + 1)[0] == 0
    assert interrupted(world, 0x1000 - STEPPING_BYTES)[0] > 0
    assert interrupted(world, 0x1000, edge_ns)[0] > 0
    assert interrupted(world, 0x1000, edge_ns + 1)[0] == 0


def test_an_exit_of_another_kind_ends_the_stepping():
    """The guest leaves by itself in the middle: the mode is off at the next entry; and it is nobody's who asks for it wrongly."""
    world = World()
    lp, vcpu = world.lps[0], world.vcpu()

    def guest():
        yield world.module.state.read_once()
        vcpu.entry_rip = 0x1000
        assert interrupt_exit(world.module, vcpu, lp, TdExit.external_interrupt(0x1000)) is None
        assert lp.single_step.stepping
        return (yield from private_ept_violation(world.module, world.td, vcpu, GPA, Access.READ, 0x1001))

    assert by_registers(world, guest=guest).operand == ExitReason.EPT_VIOLATION
    assert (lp.single_step.stepping, lp.single_step.left) == (False, 0)
    with pytest.raises(ValueError, match="EPT_VIOLATION"):
        interrupt_exit(world.module, vcpu, lp, TdExit.ept_violation(GPA, Access.READ))


def test_without_a_local_apic_stepping_kills_the_td():
    """Interrupts could not be re-posted: WRONG_APIC_MODE, and the TD is fatal."""
    world = World()
    lp = replace(world.lps[0], apic_enabled=False)
    _, left = interrupted(world, 0x1000, lp=lp)
    result = by_registers(world, guest=leave_as(world, left), lp=lp)

    assert result.rax == Status.TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE + ExitReason.EXTERNAL_INTERRUPT
    assert world.module.tdr(world.td).fatal
    assert epoch_of(world).refcount1 == 0
