"""TDH.MR.EXTEND: measure 256 bytes of a page that was added."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import measured
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import NEXT_STATE
from tdx.module.septe import RWX
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status, require
from tdx.module.walk import secure_ept_walk
from vcpu.addresses import PAGE_SHIFT, Gpa, gfn_of

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

CHUNK = 256
"""Bytes that one call measures."""


@seamcall("TDH.MR.EXTEND", leaf=16, cost="", rcx="gpa", rdx="td")
def tdh_mr_extend(module: TdxModule, held: Held, *, td: Td, gpa: Gpa) -> Steps[SeamcallReturn]:
    """Extend the measurement by 256 bytes of a page: its name and address in a block of 128 bytes, then the contents.

    Cost: a sixteenth of the cost of a page, which is sixteen of these calls. Source: tdh_mr_extend.c; reference 8.13.
    """
    _, tdcs = yield from lock_td(held, td, "TDH.MR.EXTEND", Operand.RDX, exclusive=True)
    require(not gpa % CHUNK and 0 <= gpa < tdcs.private_end, Status.TDX_OPERAND_INVALID, Operand.RCX)
    walk = yield from secure_ept_walk(module, tdcs, gfn_of(gpa), 1)
    if not (walk.entry.is_leaf and walk.entry & RWX):
        raise Refused(Status.TDX_EPT_ENTRY_NOT_PRESENT, Operand.RCX, *walk.details())
    require(walk.entry.state in NEXT_STATE["TDH.MR.EXTEND"], Status.TDX_EPT_ENTRY_NOT_PRESENT)
    # All checks passed.
    hpa = (walk.entry.pfn_at(walk.level) << PAGE_SHIFT) + (gpa & (walk.level.size - 1))
    tdcs.measurement.update(measured(b"MR.EXTEND", gpa) + module.memory.read(hpa, CHUNK))
    kernel = module.kernel
    if kernel.costs is not None:
        kernel.spend(kernel.costs.draw("tdh_mr_extend_4k") // 16)
    return SUCCESS
