"""TDG.MEM.PAGE.ATTR.RD: what the L2 VMs may do with a page, and whether it is pending."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.exits import TdcallResult, TdExit
from tdx.module.guest_lock import guest_lock_entry, guest_unlock_entry
from tdx.module.l2 import aliases, l2_entry, pack_attributes
from tdx.module.operands import mapping_and_flags
from tdx.module.sept_states import next_state
from tdx.module.septe import TDEL, Septe
from tdx.module.status import Operand, SeamcallReturn, Status
from tdx.module.tdcall import guest_call
from tdx.module.walk import secure_ept_walk
from vcpu.addresses import PG_LEVEL_4K, Gpa, gfn_of

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdvps

LEAF = "TDG.MEM.PAGE.ATTR.RD"


@guest_call(LEAF, leaf=23, rcx="gpa")
def tdg_mem_page_attr_rd(
    module: TdxModule, *, vcpu: Tdvps, gpa: Gpa, rip: int | None = None
) -> Steps[TdcallResult]:
    """Read the attributes of the page around any private address, in whatever size it is mapped. Changes nothing.

    The entry where the walk stops is locked and read again; one that is no leaf, or is blocked, is a plain EPT violation.

    Yields: one read per level; the lock and the look at host priority; the word again; per alias a walk; the release.
    Returns: RCX the page's address with its level in 2:0 and bit 62 if it is pending, RDX the attributes, 16 bits for each VM.
    Cost: `tdcall_null`. Source: tdg_mem_page_attr_rd.c; reference 12.2.
    """
    module.kernel.charge("tdcall_null")
    tdcs = vcpu.tdcs
    if not 0 <= gpa < tdcs.private_end:
        yield module.state.read_once()  # a call always is a step
        return TdcallResult(SeamcallReturn(Status.TDX_OPERAND_INVALID, Operand.RCX))
    gfn = gfn_of(gpa)
    walk = yield from secure_ept_walk(module, tdcs, gfn, PG_LEVEL_4K)
    lost = yield from guest_lock_entry(module, walk.septe)
    if lost is not None:
        return TdcallResult(lost)
    word: int = yield walk.septe.read_once()
    entry = Septe(word & ~TDEL)
    state = entry.state
    if next_state(LEAF, state) is None:
        yield guest_unlock_entry(module, walk.septe)
        return TdcallResult(exit=TdExit.ept_violation(gpa, 0, rip=rip))
    # All checks passed.
    attributes = [0, 0, 0, 0]
    for vm in aliases(tdcs, entry):
        alias = yield from l2_entry(module, tdcs, vm, gfn, walk.level, guest_side=True)
        attributes[vm] = alias.entry.attributes(is_write_blocked=state.is_write_blocked)
    yield guest_unlock_entry(module, walk.septe)
    rcx = mapping_and_flags(gpa, walk.level, pending=state.is_pending)
    return TdcallResult(SeamcallReturn(Status.TDX_SUCCESS, rcx=rcx, rdx=pack_attributes(attributes)))
