"""Whether a mapping may be taken away: the range blocked, and no LP able to have it cached any more.

Asked only in the op_states in which a TD may run; while it is being built its host need not. Source: TDX module 1.5.01, the same
lines in tdh_mem_page_remove.c, tdh_mem_page_relocate.c, tdh_mem_page_demote.c, tdh_mem_page_promote.c; reference section 7.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.sept_states import TRACKED_OP_STATES
from tdx.module.status import Operand, Refused, Status

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdcs
    from tdx.module.pamt import PamtEntry
    from tdx.module.septe import Septe
    from tdx.module.walk import Walk


def check_blocked_and_tracked(
    module: TdxModule, tdcs: Tdcs, walk: Walk, entry: Septe, page: PamtEntry, *, always: bool = False
) -> Steps[None]:
    """Refuse unless the locked `entry` is blocked and the epoch of its block is over.

    Yields: nothing where it need not ask; else what `check_tracked` does.
    Args:
        page: what BLOCK wrote BEPOCH to: the page of a leaf, the S-EPT page below a table entry.
        always: ask whatever the op_state is.
    Raises: Refused: GPA_RANGE_NOT_BLOCKED with details, TLB_TRACKING_NOT_DONE without, both on RCX.
    """
    state = entry.state
    if not state.is_tlb_tracking_required or not (always or tdcs.op_state in TRACKED_OP_STATES):
        return
    if not state.is_blocked:
        raise Refused(Status.TDX_GPA_RANGE_NOT_BLOCKED, Operand.RCX, *walk.details(entry))
    yield from check_tracked(module, tdcs, page, Operand.RCX)


def check_tracked(module: TdxModule, tdcs: Tdcs, page: PamtEntry, operand: Operand) -> Steps[None]:
    """Refuse unless no translation from before `page` was blocked can be cached any more.

    Yields: BEPOCH of `page` and TD_EPOCH, one read each.
    """
    bepoch = yield page.bepoch.read_once()
    unit = yield tdcs.epoch.read_once()
    if not unit.is_tlb_tracked(bepoch):
        module.kernel.reached("tracking_not_done")
        raise Refused(Status.TDX_TLB_TRACKING_NOT_DONE, operand)
