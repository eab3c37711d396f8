"""L2 VMs of a TD: their own S-EPT trees, and the aliases that tie an L2 entry to the L1 entry of the same range.

A TD may be partitioned into up to three L2 VMs. Each has an S-EPT of its own over the same private memory: the same levels, the
same pages, other permissions. Its pages are of type EPT and belong to the TD. An L1 entry has one alias bit per L2 VM
(`Septe.is_aliased`): set on a table when the L2 tree has a table there too (SEPT.ADD, DEMOTE), and on a leaf when the L2 tree
maps the page (TDG.MEM.PAGE.ATTR.WR). L2 entries have no lock: whoever changes one holds the L1 entry of that range and level, so
the last read of a walk is also the value that will be written to.

An L2 entry is one word with Intel's layout: permissions R, W, Xs, Xu; while a leaf is blocked they are kept in TDRD, TDWR, TDXS
and TDXU, three of which are the bits of the memory type. There is one blocked state: an alias of a pending page is L2_BLOCKED too.
What the guest gives and gets is one 16-bit word of attributes per VM (`gpa_attr_single_vm_t`): the permissions, VGP, PWA, SSS, SVE,
and VALID.

What is not modelled: running an L2 VM (TDG.VP.ENTER), hence L2 translations, their TLB and the INVEPT that ATTR.WR can ask for.
Source: TDX module 1.5.01, sept_manager.c and .h, helpers.c:l2_sept_walk, x86_defs.h:ia32e_sept_t; reference 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING

from sim import Broken, Cell, Steps
from tdx.module.objects import L2_VMS_MAX
from tdx.module.septe import HPA, IPAT, MT, MT_WB, PS, RWX, SVE, TDB, R, Septe, W, X
from tdx.module.status import ModuleShutdown
from vcpu.addresses import PG_LEVEL_4K, Pfn, PgLevel

if TYPE_CHECKING:
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdcs
    from tdx.module.sept import SeptPage

TDRD, TDXS, TDXU = 1 << 3, 1 << 4, 1 << 5
"""A blocked leaf's R, Xs and Xu: where the memory type is otherwise."""
XU = 1 << 10
VGP, PWA = 1 << 57, 1 << 58
TDWR = 1 << 59
"""A blocked leaf's W."""
SSS = 1 << 60
PERMISSIONS = RWX | XU
SAVED = TDRD | TDWR | TDXS | TDXU
STATE_BITS = R | IPAT | PS | TDB
LEAF_STATE_BITS = IPAT | PS | TDB
"""R of a leaf is a permission, not state."""

ATTR_R, ATTR_W, ATTR_XS, ATTR_XU, ATTR_VGP, ATTR_PWA, ATTR_SSS, ATTR_SVE = (1 << bit for bit in range(8))
ATTR_RWX = ATTR_R | ATTR_W | ATTR_XS | ATTR_XU
ATTR_RESERVED = 0x7F00
ATTR_VALID = 1 << 15
ATTR_BITS = 16
_KEPT = ((ATTR_VGP, VGP), (ATTR_PWA, PWA), (ATTR_SSS, SSS), (ATTR_SVE, SVE))
_GRANTED = ((ATTR_R, R), (ATTR_W, W), (ATTR_XS, X), (ATTR_XU, XU))
_SAVED = ((ATTR_R, TDRD), (ATTR_W, TDWR), (ATTR_XS, TDXS), (ATTR_XU, TDXU))

_Bits = tuple[tuple[int, int], ...]


def _spread(attributes: int, bits: _Bits) -> int:
    return sum(bit for attribute, bit in bits if attributes & attribute)


def _gather(word: int, bits: _Bits) -> int:
    return sum(attribute for attribute, bit in bits if word & bit)


class L2State(Enum):
    """The state of an L2 entry: its bits, R included where it counts, and the public number."""

    L2_FREE = (0, 64)
    L2_NL_MAPPED = (R, 196)
    L2_NL_BLOCKED = (TDB, 193)
    L2_MAPPED = (IPAT | PS, 68)
    L2_BLOCKED = (IPAT | PS | TDB, 65)

    def __init__(self, bits: int, public: int) -> None:
        self.bits = bits
        self.public = public
        self.is_leaf = bits & PS != 0


_BY_BITS = {state.bits: state for state in L2State}

L2_FREE = 0
"""What a fresh L2 S-EPT page is filled with."""


class L2Septe(int):
    """A view on an L2 entry's word."""

    __slots__ = ()

    @property
    def state(self) -> L2State:
        """The state. Raises KeyError for a word that the module never writes."""
        return _BY_BITS[self & (LEAF_STATE_BITS if self & PS else STATE_BITS)]

    @property
    def is_free(self) -> bool:
        """Whether nothing is mapped here."""
        return not self & STATE_BITS

    @property
    def is_leaf(self) -> bool:
        """Whether it maps a page, blocked or not."""
        return self & PS != 0

    @property
    def pfn(self) -> Pfn:
        """The frame of the page, or of the L2 S-EPT page below."""
        return Pfn((self & HPA) >> 12)

    def blocked(self, *, was_write_blocked: bool = False) -> L2Septe:
        """What RANGE.BLOCK makes of it: permissions saved and taken away.

        `was_write_blocked`: of the L1 entry, whose W has been saved before. Nothing asks whether the entry is blocked already: then
        the saved permissions are overwritten with none (see `block_aliases`). Source: tdh_mem_range_block.c:block_l2_sept_entry.
        """
        if not self & PS:
            return L2Septe(self & ~(STATE_BITS | PERMISSIONS) | L2State.L2_NL_BLOCKED.bits)
        saved = SAVED & ~TDWR if was_write_blocked else SAVED
        permissions = _spread(_gather(self, _GRANTED), _SAVED) & saved
        return L2Septe(self & ~(saved | PERMISSIONS) | permissions | L2State.L2_BLOCKED.bits)

    def unblocked(self) -> L2Septe:
        """What UNBLOCK and ACCEPT make of it; the same if it is not blocked. Source: sept_manager.h:sept_l2_unblock."""
        if self.state is L2State.L2_NL_BLOCKED:
            return l2_table(self.pfn)
        if self.state is not L2State.L2_BLOCKED:
            return self
        permissions = _spread(_gather(self, _SAVED), _GRANTED)
        return L2Septe(self & ~(SAVED | TDB | PERMISSIONS) | permissions | MT_WB)

    def with_pfn(self, pfn: int) -> L2Septe:
        """The same entry naming another frame."""
        return L2Septe(self & ~HPA | pfn << 12)

    def attributes(self, *, is_write_blocked: bool = False) -> int:
        """The architectural attributes; `is_write_blocked` is the L1 entry's. Source: sept_manager.h:l2_sept_get_gpa_attr."""
        if self.is_free:
            return _gather(self, ((ATTR_SVE, SVE),))
        if not self & PS:
            return ATTR_VALID | ATTR_RWX
        permissions = _gather(self, _GRANTED)
        if self.state is L2State.L2_BLOCKED:
            saved = _gather(self, _SAVED)
            permissions = permissions & ~ATTR_W | saved & ATTR_W if is_write_blocked else saved
        return ATTR_VALID | permissions | _gather(self, _KEPT)

    def with_attributes(self, attributes: int) -> L2Septe:
        """A leaf with other attributes, blocked or not as before. Source: sept_manager.h:l2_sept_update_gpa_attr."""
        kept = self & ~(PERMISSIONS | VGP | PWA | SSS | SVE) | _spread(attributes, _KEPT)
        if self.state is L2State.L2_BLOCKED:
            return L2Septe(kept & ~SAVED | _spread(attributes, _SAVED))
        return L2Septe(kept | _spread(attributes, _GRANTED))

    def arch(self, *, debug: bool) -> int:
        """What the host is shown of it; attributes only of a debug TD. Source: sept_manager.c:set_arch_l2_septe_details_in_vmm_regs."""
        if self.is_free:
            return SVE
        if not self & PS:
            return self & (PERMISSIONS | PS)
        shown = self & (MT | HPA | IPAT | PS | SVE)
        if debug:
            return shown | self & (PERMISSIONS | VGP | PWA | SSS)
        return shown | PERMISSIONS if self.state is L2State.L2_MAPPED else shown

    def __str__(self) -> str:
        return f"{self.state.name} pfn {self.pfn:#x}"

    __repr__ = __str__


def l2_table(pfn: Pfn) -> L2Septe:
    """An L2_NL_MAPPED entry. Source: sept_manager.c:sept_l2_set_mapped_non_leaf."""
    return L2Septe(PERMISSIONS | pfn << 12)


def l2_leaf(attributes: int, pfn: Pfn, *, blocked: bool) -> L2Septe:
    """A leaf with these attributes. Source: sept_manager.c:sept_l2_set_leaf."""
    page = IPAT | PS | pfn << 12 | _spread(attributes, _KEPT)
    if blocked:
        return L2Septe(page | TDB | _spread(attributes, _SAVED))
    return L2Septe(page | MT_WB | _spread(attributes, _GRANTED))


def are_legal(attributes: int) -> bool:
    """Whether a VM may have such attributes. Source: helpers.h:is_gpa_attr_legal."""
    if attributes & (ATTR_RESERVED | ATTR_SVE) or (attributes and not attributes & ATTR_VALID):
        return False
    return attributes & ATTR_R != 0 or not attributes & (ATTR_W | ATTR_PWA)


def are_present(attributes: int) -> bool:
    """Whether they grant anything, so that there is an alias."""
    return attributes & ATTR_RWX != 0


def unpack_attributes(word: int) -> list[int]:
    """The attributes by VM out of a register (`gpa_attr_t`); VM 0 is the TD itself, which has none."""
    return [word >> ATTR_BITS * vm & 0xFFFF for vm in range(L2_VMS_MAX + 1)]


def pack_attributes(attributes: Sequence[int]) -> int:
    """The register's word for the attributes by VM."""
    return sum(of_vm << ATTR_BITS * vm for vm, of_vm in enumerate(attributes))


class L2Walk:
    """Where a walk of an L2 tree ended: the cell, the word read there, and the level."""

    __slots__ = ("entry", "level", "septe", "vm")

    def __init__(self, vm: int, septe: Cell[int], entry: L2Septe, level: PgLevel) -> None:
        self.vm = vm
        self.septe = septe
        self.entry = entry
        self.level = level

    @property
    def operand(self) -> int:
        """What a status about this walk carries in its low half: VM and level reached."""
        return self.vm << 16 | self.level.tdx

    def details(self, tdcs: Tdcs) -> tuple[int, int]:
        """RCX and RDX as the host gets them: the filtered entry; level, state and VM."""
        entry = self.entry
        return entry.arch(debug=tdcs.is_debug), self.level.tdx | entry.state.public << 8 | self.vm << 16


def l2_sept_walk(
    module: TdxModule, tdcs: Tdcs, vm: int, gfn: int, level: int, *, guest_side: bool = False
) -> Steps[L2Walk]:
    """Walk VM `vm`'s tree towards `level`; ends earlier at a leaf or an entry that gives no access.

    On the guest's side it goes on through blocked tables: they have been blocked after the L1 walk, and tracking keeps them there
    until this guest leaves.
    Yields: one read per level. Source: helpers.c:l2_sept_walk, l2_sept_walk_guest_side.
    """
    page = tdcs.l2_roots[vm - 1]
    pages = module.sept_pages
    while True:
        septe = page.septe(gfn)
        entry = L2Septe((yield septe.read_once()))
        ends = entry.is_leaf or (entry.is_free if guest_side else not entry & RWX)
        if page.level == level or ends:
            return L2Walk(vm, septe, entry, page.level)
        page = pages[entry.pfn]


def l2_entry(
    module: TdxModule, tdcs: Tdcs, vm: int, gfn: int, level: int, *, guest_side: bool = False
) -> Steps[L2Walk]:
    """The L2 entry of an aliased range, which is there.

    Raises: ModuleShutdown: it cannot be reached; Intel's FATAL_ERROR().
    """
    walk = yield from l2_sept_walk(module, tdcs, vm, gfn, level, guest_side=guest_side)
    if walk.level != level:
        raise ModuleShutdown(
            f"no way to the alias of {gfn:#x} in L2 VM {vm}: {walk.entry} at {walk.level.short}"
        )
    return walk


def aliases(tdcs: Tdcs, entry: Septe) -> Iterator[int]:
    """The L2 VMs that have an alias of the L1 entry's range."""
    return (vm for vm in range(1, tdcs.num_l2_vms + 1) if entry.is_aliased(vm))


def block_aliases(module: TdxModule, tdcs: Tdcs, entry: Septe, gfn: int, level: int) -> Steps[None]:
    """Block the aliases of an L1 entry that had the value `entry` before it was blocked, after it.

    An alias of a pending page is L2_BLOCKED already; blocking it again loses its saved permissions, so that it comes back from
    UNBLOCK and ACCEPT as a mapping that grants nothing. Yields: per alias a walk and the write.
    """
    write_blocked = entry.state.is_write_blocked
    for vm in aliases(tdcs, entry):
        walk = yield from l2_entry(module, tdcs, vm, gfn, level)
        yield walk.septe.write_once(walk.entry.blocked(was_write_blocked=write_blocked))


def unblock_aliases(module: TdxModule, tdcs: Tdcs, entry: Septe, gfn: int, level: int) -> Steps[None]:
    """Unblock the aliases of an L1 entry, before it (UNBLOCK) or before it becomes mapped (ACCEPT).

    Yields: per alias a walk, and a write if it was blocked.
    """
    for vm in aliases(tdcs, entry):
        walk = yield from l2_entry(module, tdcs, vm, gfn, level)
        after = walk.entry.unblocked()
        if after != walk.entry:
            yield walk.septe.write_once(after)


def free_aliases(module: TdxModule, tdcs: Tdcs, entry: Septe, gfn: int, level: int) -> Steps[None]:
    """Take the aliases of a page away that is being removed. Yields: per alias a walk and the write."""
    for vm in aliases(tdcs, entry):
        walk = yield from l2_entry(module, tdcs, vm, gfn, level)
        yield walk.septe.write_once(L2_FREE)


def relocate_aliases(module: TdxModule, tdcs: Tdcs, entry: Septe, gfn: int, pfn: Pfn) -> Steps[None]:
    """Point the aliases of a 4K page to its new frame, before the L1 entry; unblock them unless the page is pending.

    Yields: per alias a walk and the write. Source: tdh_mem_page_relocate.c.
    """
    for vm in aliases(tdcs, entry):
        walk = yield from l2_entry(module, tdcs, vm, gfn, PG_LEVEL_4K)
        moved = walk.entry.with_pfn(pfn)
        yield walk.septe.write_once(moved if entry.state.is_pending else moved.unblocked())


Twin = tuple[Pfn | None, bool]
"""What an L1 entry and its L2 twin agree in: the page of a leaf, and whether they give no access."""


def aliases_agree(module: TdxModule) -> Callable[[], bool | Broken]:
    """For observers: alias bits and L2 trees say the same, asked while no call is in flight.

    An L1 entry has a VM's alias bit exactly when the VM's entry of that range and level is not FREE. Both are tables or map the same
    page, and the L2 entry is blocked exactly when the L1 entry is blocked or pending.
    """

    def holds() -> bool | Broken:
        if module.in_flight:
            return True
        for tdr in module.tds():
            for vm, root in enumerate(tdr.tdcs.l2_roots, 1):
                l1 = {
                    (gfn, level): _l1_twin(entry, level)
                    for gfn, level, entry in module.entries(tdr.tdcs)
                    if entry.is_aliased(vm)
                }
                l2 = dict(_l2_twins(module, root))
                if l1 != l2:
                    return Broken(td=hex(tdr.pfn), vm=vm, l1=l1, l2=l2)
        return True

    return holds


def _l1_twin(entry: Septe, level: PgLevel) -> Twin:
    state = entry.state
    return entry.pfn_at(level) if state.is_leaf else None, state.is_blocked or state.is_pending


def _l2_twins(module: TdxModule, page: SeptPage) -> Iterator[tuple[tuple[int, PgLevel], Twin]]:
    for index, cell in sorted(page.entries.items()):
        entry = L2Septe(cell.peek())
        if entry.is_free:
            continue
        blocked = entry.state in (L2State.L2_BLOCKED, L2State.L2_NL_BLOCKED)
        yield (page.gfn(index), page.level), (entry.pfn if entry.is_leaf else None, blocked)
        if not entry.is_leaf:
            yield from _l2_twins(module, module.sept_pages[entry.pfn])


def l2_tables(module: TdxModule, tdcs: Tdcs) -> Iterator[SeptPage]:
    """Every S-EPT page of the L2 VMs below their roots. For observers."""
    todo = list(tdcs.l2_roots)
    while todo:
        page = todo.pop()
        for _, cell in sorted(page.entries.items()):
            entry = L2Septe(cell.peek())
            if not entry.is_free and not entry.is_leaf:
                below = module.sept_pages[entry.pfn]
                yield below
                todo.append(below)
