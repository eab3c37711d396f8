"""TDH.EXPORT.UNBLOCKW: give write access back, usually because the guest wants to write."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import next_state
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status
from tdx.module.walk import check_page_info, walk_to_level
from vcpu.addresses import PG_LEVEL_4K, Gpa, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.EXPORT.UNBLOCKW", leaf=75, rcx="page_info", rdx="td")
def tdh_export_unblockw(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel = PG_LEVEL_4K
) -> Steps[SeamcallReturn]:
    """Write-blocked, not exported -> MAPPED or PENDING; exported -> exported and dirty, to be sent again.

    No tracking: access only widens. A busy entry is reported without details, unlike elsewhere.
    Cost: no row in the table, `seamcall_null`. Source: tdh_export_unblockw.c; reference 16.
    """
    _, tdcs = yield from lock_td(held, td, "TDH.EXPORT.UNBLOCKW", Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=PG_LEVEL_4K)
    yield from held.tree(tdcs)
    walk = yield from walk_to_level(module, tdcs, gfn, level)
    try:
        entry = yield from held.entry(walk)
    except Refused as busy:
        raise Refused(busy.status, busy.operand, awaited=busy.awaited) from None
    state = entry.state
    after = next_state("TDH.EXPORT.UNBLOCKW", state)
    if after is None:
        raise Refused(Status.TDX_EPT_ENTRY_STATE_INCORRECT, Operand.RCX, *walk.details(entry))
    # All checks passed.
    yield module.write_entry(walk.septe, entry.become(after, level))
    if state.is_exported and not state.is_dirty:
        yield tdcs.migration.dirty_count.fetch_add(1)
    return SUCCESS
