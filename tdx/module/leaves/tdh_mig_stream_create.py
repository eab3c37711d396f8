"""TDH.MIG.STREAM.CREATE: give a TD a page for one more migration stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.migration import MAX_MIGS
from tdx.module.pamt import PageType
from tdx.module.seamcall import lock_new_page, lock_td, seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from vcpu.addresses import Pfn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MIG.STREAM.CREATE", leaf=96, rcx="pfn", rdx="td")
def tdh_mig_stream_create(module: TdxModule, held: Held, *, td: Td, pfn: Pfn) -> Steps[SeamcallReturn]:
    """Make a free page a MIGSC, of type TDCX; the first goes backwards, all later ones forwards.

    The page's counters are set when a session first uses the stream. Cost: no row in the table, `seamcall_null`.
    Source: tdh_mig_stream_create.c; reference 4.4, group O.
    """
    tdr, tdcs = yield from lock_td(held, td, "TDH.MIG.STREAM.CREATE", Operand.RDX, op_state_exclusive=True)
    migration = tdcs.migration
    yield from held.exclusive(migration.lock, Operand.MIG)
    require(migration.num_migs < MAX_MIGS, Status.TDX_MAX_MIGS_NUM_EXCEEDED)
    page = yield from lock_new_page(held, pfn, Operand.RCX)
    # All checks passed.
    yield tdr.chldcnt.fetch_add(1)
    page.assign(PageType.PT_TDCX, td.tdr_pfn)
    yield from module.pamt.count_in(page)
    stream = migration.stream(migration.num_migs)
    stream.pfn = pfn
    stream.initialized = False
    migration.num_migs += 1
    return SUCCESS
