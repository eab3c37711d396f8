"""TDH.MEM.SEPT.RD: show an entry to the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.status import Operand, SeamcallReturn, Status
from tdx.module.walk import check_page_info, lock_entry
from vcpu.addresses import Gpa, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MEM.SEPT.RD", leaf=25, cost="tdh_mem_sept_rd", rcx="page_info", rdx="td")
def tdh_mem_sept_rd(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel
) -> Steps[SeamcallReturn]:
    """Read an entry of any state, under its lock; RCX is the filtered entry, RDX its level and state. Reference 8.3."""
    _, tdcs = yield from lock_td(held, td, "TDH.MEM.SEPT.RD", Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=tdcs.root.level)
    yield from held.shared(tdcs.sept_tree_lock, Operand.SEPT_TREE, met="sept_tree_busy")
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    rcx, rdx = walk.details(entry)
    return SeamcallReturn(Status.TDX_SUCCESS, rcx=rcx, rdx=rdx)
