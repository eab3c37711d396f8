"""Keys of migration calls that were interrupted and are made again: as they were, or otherwise."""

from __future__ import annotations

from tdx.module import LEAVES, Registers, Status, dispatch
from tdx.module.migration import Interrupted
from tdx.module.objects import VcpuState
from tests.conformance.keys_more import only
from tests.conformance.keys_more_migration import COMMAND, MEM_CALLS, STATE_CALLS, Context
from tests.conformance.sessions import started
from tests.conformance.situation import NotExpressible, Situation, Words
from tests.conformance.vocabulary import key
from tests.conformance.world import World
from vcpu.addresses import PAGE_SIZE


@key("resumed", _1="", wrong="operands list epoch leaf", nothing="", never_interrupted="", not_started="")
def resumed(want: Situation, value: str, how: str) -> None:
    """The call was interrupted and goes on: as it was, with other operands, in another epoch, after another call; or it never was."""
    only(want, *STATE_CALLS, *MEM_CALLS)
    if want.call.has_list:
        want.list_entries = 2

    def change(world: World, words: Words, context: Context) -> None:
        if value in ("1", "wrong"):
            _interrupt(world, words, context)
        elif value == "not_started":
            world.tdcs.migration.forward(0).initialized = False
        else:
            started(world)
        words["r10"] |= COMMAND
        if how:
            _go_on_wrongly(world, words, how)

    want.hand(change)


def _interrupt(world: World, words: Words, context: Context) -> None:
    """Make the call while an interrupt waits."""
    want = world.want
    want.interrupt = True
    leaf = LEAVES[want.call.name]
    known = {name: value for name, value in context.items() if name in leaf.parameters}
    ret = world.run(dispatch(world.module, Registers(**words), lp=world.lp, **known))
    want.interrupt = False
    if ret.status is not Status.TDX_INTERRUPTED_RESUMABLE:
        raise NotExpressible(f"{want.call.name} cannot be interrupted: {ret}")
    if want.call.has_list:
        words["rcx"] = ret.rcx
        world.raced = world.entry.v  # what the call finds now


def _go_on_wrongly(world: World, words: Words, how: str) -> None:
    want, migration = world.want, world.tdcs.migration
    stopped = migration.forward(0).interrupted
    assert stopped is not None
    if how == "operands":
        words["r9"] += PAGE_SIZE
    elif how == "list":
        if not want.call.has_list:
            words["r9"] += 2 * PAGE_SIZE
        else:
            words["r11"] += PAGE_SIZE
    elif how == "epoch":
        if want.call.has_list:
            migration.mig_epoch += 1
        else:
            words["r9"] += 3 * PAGE_SIZE
    else:
        migration.forward(0).interrupted = Interrupted(
            "TDH.EXPORT.BLOCKW", stopped.operands, stopped.pages, stopped.mig_epoch
        )


@key("resumed_vcpu", **{state.name.lower(): "" for state in VcpuState})
def resumed_vcpu(want: Situation, value: str, how: str) -> None:
    """The vCPU's state when IMPORT.STATE.VP goes on; a TD whose vCPU was flushed meanwhile has it DISABLED."""
    only(want, "TDH.IMPORT.STATE.VP")
    want.hand(lambda world, _words, _context: setattr(world.vcpu.state, "v", VcpuState[value.upper()]))


@key("resumed_on", same_lp="", other_lp="")
def resumed_on(want: Situation, value: str, how: str) -> None:
    """Where IMPORT.STATE.VP goes on."""
    only(want, "TDH.IMPORT.STATE.VP")
    if value == "other_lp":
        want.hand(lambda world, _words, _context: setattr(world.vcpu.assoc_lpid, "v", 7))
