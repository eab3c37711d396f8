"""TDH.MEM.SEPT.RD: show an entry to the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.l2 import aliases, l2_entry, pack_attributes
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.septe import SeptState
from tdx.module.status import Operand, SeamcallReturn, Status, require
from tdx.module.walk import check_page_info, lock_entry
from vcpu.addresses import Gpa, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MEM.SEPT.RD", leaf=25, cost="tdh_mem_sept_rd", rcx="page_info", rdx="td+read_l2_attributes")
def tdh_mem_sept_rd(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel, read_l2_attributes: bool = False
) -> Steps[SeamcallReturn]:
    """Read an entry of any state, under its lock.

    Returns: RCX the filtered entry, RDX its level and state; with `read_l2_attributes`, for which the TD must be a debug TD, R8 the
    attributes of its aliases: 16 bits for each L2 VM from bit 16 on.
    Source: tdh_mem_sept_rd.c; reference 8.3.
    """
    _, tdcs = yield from lock_td(held, td, "TDH.MEM.SEPT.RD", Operand.RDX)
    require(tdcs.is_debug or not read_l2_attributes, Status.TDX_OPERAND_INVALID, Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=tdcs.root.level)
    yield from held.shared(tdcs.sept_tree_lock, Operand.SEPT_TREE, met="sept_tree_busy")
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    attributes = [0, 0, 0, 0]
    if read_l2_attributes and entry.state is not SeptState.FREE:
        for vm in aliases(tdcs, entry):
            alias = yield from l2_entry(module, tdcs, vm, gfn, level)
            attributes[vm] = alias.entry.attributes(is_write_blocked=entry.state.is_write_blocked)
    rcx, rdx = walk.details(entry)
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=rcx, rdx=rdx, r8=pack_attributes(attributes))
