"""TDCALL by registers, and what all TDCALLs share."""

from tdx.module import (
    ExitReason,
    Registers,
    SeptState,
    Status,
    tdcall,
)
from tdx.module.septe import TDHP, make
from tests.tdx.module.test_enter import GPA
from tests.tdx.module.test_guest import septe_cell
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import gpa_of

# TDCALLs by registers.


def test_unknown_tdcalls_are_refused_in_rax():
    """No such leaf, a version that no leaf has, a reserved bit."""
    world = World()
    for rax in (99, 6 | 1 << 16, 6 | 1 << 24, 6 | 1 << 40, 25):
        result = run(world.kernel, tdcall(world.module, world.vcpu(), Registers(rax, GPA)))
        assert str(result.ret) == "TDX_OPERAND_INVALID|RAX"


def test_accept_by_registers_is_the_typed_call():
    """RCX holds address and level; an interrupt ends a 2M accept; a level that is none is OPERAND_INVALID."""
    world = World()
    world.aug()
    call = lambda rcx, **more: run(  # noqa: E731
        world.kernel, tdcall(world.module, world.vcpu(), Registers(6, rcx), **more)
    )

    assert str(call(GPA | 2).ret) == "TDX_OPERAND_INVALID|RCX"
    assert str(call(GPA | 7).ret) == "TDX_OPERAND_INVALID|RCX"
    assert str(call(GPA | 1 << 11).ret) == "TDX_OPERAND_INVALID|RCX"
    assert str(call(GPA | 1 << 47).ret) == "TDX_OPERAND_INVALID|RCX"
    assert str(call(GPA | 1).ret) == "TDX_PAGE_SIZE_MISMATCH|1"
    assert call(GPA).ok
    gpa_2m = gpa_of(GFN + 512)
    septe_cell(world, GFN + 512, 2).v = int(make(SeptState.PENDING, DATA + 512))
    assert call(gpa_2m | 1, interrupt_pending=lambda: True).interrupted
    assert call(gpa_2m | 1).ok


def test_vmcall_by_registers_hands_over_what_the_mask_selects():
    """Ascending by register; RAX, RCX, RSP never, RBP not with NO_RBP_MOD; the guest will find success."""
    world = World()
    vcpu = world.vcpu()
    call = lambda mask: run(  # noqa: E731
        world.kernel, tdcall(world.module, vcpu, Registers(0, mask, rdx=2, r8=8, r10=10, r11=11))
    )
    both = call(1 << 2 | 1 << 10 | 1 << 11)

    assert both.exit.args == (2, 10, 11)
    assert both.ret.ok
    for bit in (0, 1, 4, 32, 63):
        assert str(call(1 << bit).ret) == "TDX_OPERAND_INVALID|RCX"
    assert call(1 << 5).exit is not None
    world.module.tdcs(world.td).config_flags = 1 << 2
    assert str(call(1 << 5).ret) == "TDX_OPERAND_INVALID|RCX"


def test_the_host_priority_clock_runs_for_all_tdcalls_and_only_returns_stop_it():
    """Losses start it; a return of any other kind clears it; a TDCALL that leaves to the host does neither."""
    world = World()
    world.aug()
    kernel, vcpu, cell = world.kernel, world.vcpu(), septe_cell(world)
    second = 1_000_000_000
    call = lambda rax, rcx=0: run(kernel, tdcall(world.module, vcpu, Registers(rax, rcx)))  # noqa: E731

    def lose(after_ns=0):
        cell.v |= TDHP
        kernel.run(until=kernel.now_ns + after_ns) if after_ns else None
        return call(6, GPA)

    assert lose().exit is None
    assert call(3).status is Status.TDX_NO_VALID_VE_INFO  # stops it
    assert lose(second).exit is None
    assert call(0, 0xFC00).exit.trap_like  # leaves: the clock runs on
    missing = call(6, gpa_of(GFN + 5))
    assert missing.exit.reason is ExitReason.EPT_VIOLATION  # leaves, too
    timed_out = lose(second)
    assert (str(timed_out.ret), timed_out.exit.details) == ("TDX_OPERAND_BUSY|RCX", None)
    assert vcpu.guest_rax == timed_out.ret.rax
    assert lose().exit is None  # it was stopped by the exit, and started anew
    assert lose(second).exit is not None
