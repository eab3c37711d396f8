"""TDH.MEM.RANGE.BLOCK: no new translations through an entry; the old ones still have to be tracked away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.guest_lock import GUEST_LOCK, guest_lets_go
from tdx.module.l2 import block_aliases
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept_states import next_state
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status
from tdx.module.walk import check_page_info, lock_entry, named_page, wrong_state
from vcpu.addresses import Gpa, PgLevel

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td
    from tdx.module.septe import Septe
    from tdx.module.walk import Walk


@seamcall("TDH.MEM.RANGE.BLOCK", leaf=7, cost="tdh_mem_range_block", rcx="page_info", rdx="td")
def tdh_mem_range_block(
    module: TdxModule, held: Held, *, td: Td, gpa: Gpa, level: PgLevel
) -> Steps[SeamcallReturn]:
    """Any mapped or pending leaf, or table -> its blocked state. GPA_RANGE_ALREADY_BLOCKED is a warning.

    The entry is written first and stays locked, then its aliases in the L2 trees: an L2 VM that faults in between is found
    blocked. TD_EPOCH is sampled last, without the epoch's lock: a TRACK in between costs the host one more TRACK. BEPOCH goes
    to the page the entry names, whose PAMT entry is not locked.
    Source: tdh_mem_range_block.c; reference 8.8, section 7.
    """
    _, tdcs = yield from lock_td(held, td, "TDH.MEM.RANGE.BLOCK", Operand.RDX)
    gfn = check_page_info(tdcs, gpa, level, highest=tdcs.root.level)
    yield from held.tree(tdcs, exclusive=True)
    walk, entry = yield from lock_entry(module, held, tdcs, gfn, level)
    if entry.state.is_blocked:
        raise Refused(Status.TDX_GPA_RANGE_ALREADY_BLOCKED, Operand.RCX, *walk.details(entry))
    after = next_state("TDH.MEM.RANGE.BLOCK", entry.state)
    if after is None:
        raise wrong_state(module, "TDH.MEM.RANGE.BLOCK", walk, entry)
    # All checks passed.
    yield from _write(module, walk, entry, entry.become(after, level))
    yield from block_aliases(module, tdcs, entry, gfn, level)
    unit = yield tdcs.epoch.read_once()
    page = named_page(module, entry, level)
    yield page.bepoch.write_once(unit.epoch)
    return SUCCESS


def _write(module: TdxModule, walk: Walk, entry: Septe, blocked: Septe) -> Steps[None]:
    """Write the locked entry; in 1.0, where a guest may hold it or be faster, by compare-exchange, which may be refused."""
    if module.profile.relaxed_concurrency:
        yield module.write_entry(walk.septe, blocked)
        return
    unlocked = entry & ~GUEST_LOCK
    if (yield walk.septe.cmpxchg(unlocked, blocked)) != unlocked:
        module.kernel.reached("sept_entry_busy")
        raise Refused(
            Status.TDX_OPERAND_BUSY, Operand.RCX, *walk.details(), awaited=(walk.septe, guest_lets_go)
        )
