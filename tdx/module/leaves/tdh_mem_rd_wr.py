"""TDH.MEM.RD and TDH.MEM.WR: a debugger's look into private memory, 8 bytes at a time.

Source: TDX module 1.5.01, tdh_mem_rd_wr.c; reference 8.13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Cell, Steps
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import next_state
from tdx.module.septe import RWX
from tdx.module.status import Operand, Refused, SeamcallReturn, Status, require
from tdx.module.walk import secure_ept_walk, wrong_state
from vcpu.addresses import PAGE_SHIFT, Gpa, gfn_of

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

QWORD = 8


@seamcall("TDH.MEM.RD", leaf=12, rcx="gpa", rdx="td")
def tdh_mem_rd(module: TdxModule, held: Held, *, td: Td, gpa: Gpa) -> Steps[SeamcallReturn]:
    """Read 8 bytes of a debug TD's page that the guest may read; R8 returns them.

    Cost: `seamcall_null`, the table has no row.
    """
    qword = yield from _lock_qword(module, held, td, gpa, "TDH.MEM.RD")
    data: int = yield qword.read_once()
    return SeamcallReturn(Status.TDX_SUCCESS, r8=data)


@seamcall("TDH.MEM.WR", leaf=14, rcx="gpa", rdx="td", r8="data")
def tdh_mem_wr(module: TdxModule, held: Held, *, td: Td, gpa: Gpa, data: int) -> Steps[SeamcallReturn]:
    """Write 8 bytes of a debug TD's page that the guest may write; R8 returns what was there.

    Yields at the end: the read, then the write: a guest that writes between them is lost, as in the real module.
    Cost: `seamcall_null`, the table has no row.
    """
    qword = yield from _lock_qword(module, held, td, gpa, "TDH.MEM.WR")
    before: int = yield qword.read_once()
    yield qword.write_once(data)
    return SeamcallReturn(Status.TDX_SUCCESS, r8=before)


def _lock_qword(module: TdxModule, held: Held, td: Td, gpa: Gpa, leaf: str) -> Steps[Cell[int]]:
    """Both calls' checks: the debug attribute first, then the address, around the tree's lock; and the entry, whatever its size."""
    _, tdcs = yield from lock_td(held, td, leaf, Operand.RDX)
    require(tdcs.is_debug, Status.TDX_TD_NON_DEBUG)
    require(gpa % QWORD == 0, Status.TDX_OPERAND_INVALID, Operand.RCX)
    yield from held.shared(tdcs.sept_tree_lock, Operand.SEPT_TREE, met="sept_tree_busy")
    require(0 <= gpa < tdcs.private_end, Status.TDX_OPERAND_INVALID, Operand.RCX)
    walk = yield from secure_ept_walk(module, tdcs, gfn_of(gpa), 1)
    if not (walk.entry.is_leaf and walk.entry & RWX):
        raise Refused(Status.TDX_EPT_ENTRY_NOT_PRESENT, Operand.RCX, *walk.details())
    entry = yield from held.entry(walk)
    if next_state(leaf, entry.state) is None:
        raise wrong_state(module, leaf, walk, entry)
    # All checks passed.
    within = gpa & (walk.level.size - 1)
    return module.memory.qword((entry.pfn_at(walk.level) << PAGE_SHIFT) + within)
