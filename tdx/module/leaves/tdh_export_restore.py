"""TDH.EXPORT.RESTORE: make ordinary pages of exported ones, after an export was aborted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration_data import GpaListEntry
from tdx.module.migration_steps import ListCursor, process_list
from tdx.module.objects import LogicalProcessor
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.septe import Septe, SeptState
from tdx.module.status import Operand, Refused, SeamcallReturn
from tdx.module.walk import Walk
from vcpu.addresses import PG_LEVEL_4K

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td

LEAF = "TDH.EXPORT.RESTORE"


@seamcall(LEAF, leaf=66, rcx="list_info", rdx="td")
def tdh_export_restore(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    gpa_list: list[GpaListEntry] | None = None,
    list_info: int | None = None,
    lp: LogicalProcessor | None = None,
) -> Steps[SeamcallReturn]:
    """Any exported state -> MAPPED or PENDING, MIG_COUNT -= 1, for each MIGRATE or REMIGRATE entry of the list.

    No tracking: access only widens. DIRTY_COUNT stays what it was; the next session begins with 0. Pages that were write-blocked
    and not exported are UNBLOCKW's. Arguments, returns and cost: as EXPORT.BLOCKW. Source: tdh_export_restore.c; reference 16.
    """
    gpa_list = [] if gpa_list is None else gpa_list
    cursor = ListCursor(list_info, gpa_list)
    try:
        _, tdcs = yield from lock_td(held, td, LEAF, Operand.RDX)
        yield from held.tree(tdcs)
        cursor.check(module, gpa_list)

        def restore(walk: Walk, entry: Septe, after: SeptState) -> Steps[None]:
            yield tdcs.migration.mig_count.fetch_add(-1)
            yield module.write_entry(walk.septe, entry.become(after, PG_LEVEL_4K))

        return (yield from process_list(module, held, tdcs, LEAF, cursor, gpa_list, lp, restore))
    except Refused as refused:
        raise cursor.refused(refused) from None
