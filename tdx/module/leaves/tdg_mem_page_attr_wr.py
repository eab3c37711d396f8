"""TDG.MEM.PAGE.ATTR.WR: give a page to L2 VMs, change what they may do with it, or take it away from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.exits import Access, ExtendedType, TdcallResult, TdExit, sept_violation
from tdx.module.guest_lock import guest_lock_entry, guest_unlock_entry
from tdx.module.l2 import (
    ATTR_VALID,
    L2_FREE,
    XU,
    L2Walk,
    are_legal,
    are_present,
    l2_entry,
    l2_leaf,
    l2_sept_walk,
    pack_attributes,
    unpack_attributes,
)
from tdx.module.objects import EPT_VIOLATION_ON_L2_SEPT_WALK_FAILURE
from tdx.module.operands import mapping_and_flags
from tdx.module.sept_states import next_state
from tdx.module.septe import RWX, TDEL, Septe, SeptState
from tdx.module.status import Operand, SeamcallReturn, Status
from tdx.module.tdcall import guest_call
from tdx.module.walk import Walk, secure_ept_walk
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_4K, Gpa, PgLevel, gfn_of

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdcs, Tdvps

LEAF = "TDG.MEM.PAGE.ATTR.WR"


@guest_call(LEAF, leaf=24, rcx="page_info", rdx="attributes", r8="flags")
def tdg_mem_page_attr_wr(
    module: TdxModule,
    *,
    vcpu: Tdvps,
    gpa: Gpa,
    level: PgLevel,
    attributes: int,
    flags: int,
    rip: int | None = None,
) -> Steps[TdcallResult]:
    """Change the aliases of a 4K, 2M or 1G page that is mapped or pending; the page's own entry only gets or loses alias bits.

    An alias is made when a VM without one is granted something, and goes when nothing is granted any more; that of a pending page
    is L2_BLOCKED. All entries are found and judged before the first is written. An alias that is made for a 2M page whose ACCEPT
    was interrupted gets the accept counter into its address: the module does not clean it off the word it copies.

    Args:
        attributes: 16 bits for each VM, see `l2`; without VALID nothing is asked of that VM.
        flags: 16 bits for each VM: which of the attributes to change; bit 15 asks for an INVEPT, which has nothing to do here.
    Yields: one read per level; the lock and the look at host priority; the word again; per VM a walk; per change two accesses to
        the entry for its alias bit and the write of the L2 entry; the release.
    Returns: RCX as ATTR.RD, RDX the attributes after the call, of the VMs that were asked for. PAGE_ATTR_INVALID returns RDX too.
        L2_SEPT_WALK_FAILED carries VM and level, or is an EPT violation of type 2 if VM_CTLS says so; a page that is in no state to
        be given away, or of larger size, is one of type 5: the host is expected to split or map it.
    Cost: `tdcall_null`. Source: tdg_mem_page_attr_wr.c; reference 12.2.
    """
    module.kernel.charge("tdcall_null")
    tdcs = vcpu.tdcs
    wrong = _wrong_operand(tdcs, gpa, level, attributes, flags)
    if wrong is not None:
        yield module.state.read_once()  # a call always is a step
        return TdcallResult(SeamcallReturn(Status.TDX_OPERAND_INVALID, wrong))
    gfn = gfn_of(gpa)
    walk = yield from secure_ept_walk(module, tdcs, gfn, level)
    if walk.level != level:
        return TdcallResult(exit=sept_violation(ExtendedType.ATTR_WR, walk, gpa, level, rip=rip))
    lost = yield from guest_lock_entry(module, walk.septe)
    if lost is not None:
        return TdcallResult(lost)
    word: int = yield walk.septe.read_once()
    walk.entry = entry = Septe(word & ~TDEL)
    result = _refusal(walk, gpa, level, rip)
    if result is None:
        plan = _Plan(attributes, flags)
        result = yield from _judge(module, tdcs, entry, gpa, level, plan, rip)
        if result is None:
            yield from _commit(module, walk, plan)
            rcx = mapping_and_flags(gpa, level, pending=entry.state.is_pending)
            rdx = pack_attributes(plan.attributes)
            result = TdcallResult(SeamcallReturn(Status.TDX_SUCCESS, rcx=rcx, rdx=rdx))
    yield guest_unlock_entry(module, walk.septe)
    return result


class _Plan:
    """What the call will leave behind: attributes by VM, and the L2 entries to write, by VM."""

    __slots__ = ("attributes", "entries", "masks")

    def __init__(self, attributes: int, flags: int) -> None:
        self.attributes = unpack_attributes(attributes)
        self.masks = [mask | ATTR_VALID for mask in unpack_attributes(flags)]
        self.entries: dict[int, L2Walk] = {}


def _wrong_operand(tdcs: Tdcs, gpa: Gpa, level: PgLevel, attributes: int, flags: int) -> Operand | None:
    """The first operand that makes no sense by itself."""
    for vm, (asked, flagged) in enumerate(
        zip(unpack_attributes(attributes), unpack_attributes(flags), strict=True)
    ):
        if 1 <= vm <= tdcs.num_l2_vms:
            if asked and not asked & ATTR_VALID:
                return Operand.RDX
        elif asked:
            return Operand.RDX
        elif flagged:
            return Operand.R8
    fits = PG_LEVEL_4K <= level <= PG_LEVEL_1G and not gpa & (level.size - 1)
    return None if fits and 0 <= gpa < tdcs.private_end else Operand.RCX


def _refusal(walk: Walk, gpa: Gpa, level: PgLevel, rip: int | None) -> TdcallResult | None:
    """Why the locked entry is none whose aliases may change, if so."""
    state = walk.entry.state
    if not state.is_leaf and state is not SeptState.FREE:
        return TdcallResult(SeamcallReturn(Status.TDX_PAGE_SIZE_MISMATCH, walk.level.tdx))
    if next_state(LEAF, state) is None:
        return TdcallResult(exit=sept_violation(ExtendedType.ATTR_WR, walk, gpa, level, rip=rip))
    return None


def _judge(
    module: TdxModule,
    tdcs: Tdcs,
    entry: Septe,
    gpa: Gpa,
    level: PgLevel,
    plan: _Plan,
    rip: int | None,
) -> Steps[TdcallResult | None]:
    """Find the L2 entries and work out their attributes; returns why not, if one cannot be.

    An illegal combination does not end the search: the attributes of all VMs are returned with it, those of the offender as they
    are, those of the others as they would have become. A VM that is granted nothing of what was asked keeps no alias, and its
    answer is what was asked. Source: tdg_mem_page_attr_wr.c:get_all_l2_sept_entries.
    """
    gfn = gfn_of(gpa)
    legal = True
    for vm in range(1, tdcs.num_l2_vms + 1):
        mask = plan.masks[vm]
        asked = plan.attributes[vm] & mask
        if not asked & ATTR_VALID:
            continue
        if entry.is_aliased(vm):
            alias = yield from l2_entry(module, tdcs, vm, gfn, level, guest_side=True)
            plan.entries[vm] = alias
            current = alias.entry.attributes(is_write_blocked=entry.state.is_write_blocked)
            after = current & ~mask | asked
            if are_present(after) and not are_legal(after):
                legal = False
                after = current
            plan.attributes[vm] = after
        elif are_present(asked):
            if not are_legal(asked):
                legal = False
                plan.attributes[vm] = 0
                continue
            plan.attributes[vm] = asked
            alias = yield from l2_sept_walk(module, tdcs, vm, gfn, level, guest_side=True)
            if alias.level != level:
                return _no_way(tdcs, alias, gpa, rip)
            plan.entries[vm] = alias
    if legal:
        return None
    return TdcallResult(SeamcallReturn(Status.TDX_PAGE_ATTR_INVALID, rdx=pack_attributes(plan.attributes)))


def _no_way(tdcs: Tdcs, walk: L2Walk, gpa: Gpa, rip: int | None) -> TdcallResult:
    """An L2 S-EPT page is missing: the guest is told, or the host if the VM's controls say so."""
    if not tdcs.vm_ctls[walk.vm - 1] & EPT_VIOLATION_ON_L2_SEPT_WALK_FAILURE:
        return TdcallResult(SeamcallReturn(Status.TDX_L2_SEPT_WALK_FAILED, walk.operand))
    user_executable = walk.entry & XU != 0
    qualification = Access.WRITE | (walk.entry & RWX) << 3 | user_executable << 6
    extended = ExtendedType.GPA_DETAILS | walk.level.tdx << 35 | walk.vm << 52
    return TdcallResult(exit=TdExit.ept_violation(gpa, qualification, extended=extended, rip=rip))


def _commit(module: TdxModule, walk: Walk, plan: _Plan) -> Steps[None]:
    """Write what `_judge` has found: an L2 entry before the alias bit that speaks of it."""
    entry = walk.entry
    for vm, alias in plan.entries.items():
        after = plan.attributes[vm]
        if not entry.is_aliased(vm):
            frame = entry.pfn_at(PG_LEVEL_4K)
            yield alias.septe.write_once(l2_leaf(after, frame, blocked=entry.state.is_pending))
            yield from _set_alias(module, walk, vm, aliased=True)
        elif are_present(after):
            yield alias.septe.write_once(alias.entry.with_attributes(after))
        else:
            yield alias.septe.write_once(L2_FREE)
            yield from _set_alias(module, walk, vm, aliased=False)
            plan.attributes[vm] = ATTR_VALID


def _set_alias(module: TdxModule, walk: Walk, vm: int, *, aliased: bool) -> Steps[None]:
    """Change an alias bit of the locked entry: the word is read again and written whole."""
    word: int = yield walk.septe.read_once()
    yield module.write_entry(walk.septe, Septe(word).with_alias(vm, aliased=aliased))
