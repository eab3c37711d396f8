"""TDH.MEM.RANGE.UNBLOCK: undo a block, once it has been tracked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.l2 import unblock_aliases
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import TRACKED_OP_STATES, next_state
from tdx.module.status import SUCCESS, Operand, SeamcallReturn
from tdx.module.tracking import check_tracked
from tdx.module.walk import check_page_info, lock_entry, named_page, wrong_state
from vcpu.addresses import Gpa, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MEM.RANGE.UNBLOCK", leaf=39, cost="tdh_mem_range_unblock", rcx="page_info", rdx="td")
def tdh_mem_range_unblock(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel
) -> Steps[SeamcallReturn]:
    """A blocked state -> what it was, but for write-blocking, which is forgotten.

    The aliases in the L2 trees are unblocked before the entry, those of a pending page not at all: they stay blocked until the
    guest accepts it. The write that unblocks the entry also lets it go.
    Source: tdh_mem_range_unblock.c; reference 8.9, section 14, row 8.
    """
    _, tdcs = yield from lock_td(held, td, "TDH.MEM.RANGE.UNBLOCK", Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=tdcs.root.level)
    yield from held.tree(tdcs, exclusive=True)
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    after = next_state("TDH.MEM.RANGE.UNBLOCK", entry.state)
    if after is None:
        raise wrong_state(module, "TDH.MEM.RANGE.UNBLOCK", walk, entry)
    if tdcs.op_state in TRACKED_OP_STATES:
        operand = Operand.SEPT_TREE if module.profile.unblock_names_tree else Operand.RCX
        yield from check_tracked(module, tdcs, named_page(module, entry, level), operand)
    # All checks passed.
    if not entry.state.is_pending:
        yield from unblock_aliases(module, tdcs, entry, gfn, level)
    yield from held.commit(walk, entry.become(after, level))
    return SUCCESS
