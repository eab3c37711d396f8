"""TDH.EXPORT.BLOCKW: take write access from pages, so that they can be copied while the guest runs."""

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

LEAF = "TDH.EXPORT.BLOCKW"


@seamcall(LEAF, leaf=65, rcx="list_info", rdx="td")
def tdh_export_blockw(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    gpa_list: list[GpaListEntry] | None = None,
    list_info: int | None = None,
    lp: LogicalProcessor | None = None,
) -> Steps[SeamcallReturn]:
    """MAPPED, PENDING and their exported and dirty forms -> write-blocked, for each MIGRATE or REMIGRATE entry of the list.

    The entry stays locked until BW_EPOCH is TD_EPOCH: one word for the whole TD, so each BLOCKW postpones the export of all pages
    until one more TRACK.

    Args:
        gpa_list: the list in shared memory; `migration_data` says how list calls are made.
        list_info: RCX, or None for the whole list.
        lp: whose interrupts end the call between two entries.
    Returns: RCX the list-info word with the next entry; the count of entries that failed is added to TDX_SUCCESS.
    Cost: no row in the table, `seamcall_null`. Source: tdh_export_blockw.c; reference 16.
    """
    gpa_list = [] if gpa_list is None else gpa_list
    cursor = ListCursor(list_info, gpa_list)
    try:
        _, tdcs = yield from lock_td(held, td, LEAF, Operand.RDX)
        yield from held.tree(tdcs)
        cursor.check(module, gpa_list)

        def block(walk: Walk, entry: Septe, after: SeptState) -> Steps[None]:
            yield module.write_entry(walk.septe, entry.become(after, PG_LEVEL_4K))
            unit = yield tdcs.epoch.read_once()
            yield tdcs.migration.bw_epoch.write_once(unit.epoch)

        return (yield from process_list(module, held, tdcs, LEAF, cursor, gpa_list, lp, block))
    except Refused as refused:
        raise cursor.refused(refused) from None
