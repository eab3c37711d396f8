"""Walks of the S-EPT: the module's own, and the CPU's.

The module reads each entry once and locks nothing on the way; what it saw may be old when it arrives, which is why every
leaf locks the entry and reads it again. Source: TDX module 1.5.01, sept_manager.c:secure_ept_walk; reference 3.4, 3.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Cell, Steps
from tdx.module.sept_states import wrong_state_1_0
from tdx.module.septe import PS, RWX, Septe
from tdx.module.status import Operand, Refused, Status, require
from vcpu.addresses import LEVELS, PG_LEVEL_4K, Gfn, Gpa, PgLevel, gfn_of

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.objects import Tdcs
    from tdx.module.operands import Td
    from tdx.module.pamt import PamtEntry
    from tdx.module.sept import SeptPage


class Walk:
    """Where a walk ended: the cell, the word that was read there (before any lock), the level, and the page."""

    __slots__ = ("entry", "level", "page", "septe")

    def __init__(self, septe: Cell[int], entry: Septe, page: SeptPage) -> None:
        self.septe = septe
        self.entry = entry
        self.level = page.level
        self.page = page

    def details(self, entry: Septe | None = None) -> tuple[int, int]:
        """RCX and RDX as the host gets them: the filtered entry; level and state (reference 3.3)."""
        shown = self.entry if entry is None else entry
        return shown.arch, self.level.tdx | shown.state.public << 8


def secure_ept_walk(module: TdxModule, tdcs: Tdcs, gfn: int, level: int) -> Steps[Walk]:
    """Walk towards `level`; ends earlier at an entry that is a leaf or gives no access.

    Yields: one read per level.
    """
    page = tdcs.root
    pages = module.sept_pages
    while True:
        septe = page.septe(gfn)
        word: int = yield septe.read_once()
        if page.level == level or word & PS or not word & RWX:
            return Walk(septe, Septe(word), page)
        page = pages[Septe(word).pfn_at(0)]


def check_page_info(
    tdcs: Tdcs, gpa: Gpa, level: PgLevel, highest: PgLevel, lowest: PgLevel = LEVELS[1]
) -> Gfn:
    """The frame, if level, alignment and privateness of the page_info operand are right; else refuse."""
    require(
        lowest <= level <= highest and not gpa & (level.size - 1) and 0 <= gpa < tdcs.private_end,
        Status.TDX_OPERAND_INVALID,
        Operand.RCX,
    )
    return gfn_of(gpa)


def lock_entry(
    module: TdxModule, held: Held, tdcs: Tdcs, gfn: Gfn, level: PgLevel
) -> Steps[tuple[Walk, Septe]]:
    """Steps 10 and 11 of a host call: walk to the entry and lock it.

    Returns: where it is, and its word under the lock.
    Raises: Refused: EPT_WALK_FAILED or OPERAND_BUSY, both on RCX with details.
    """
    walk = yield from walk_to_level(module, tdcs, gfn, level)
    entry = yield from held.entry(walk)
    return walk, entry


def walk_to_level(module: TdxModule, tdcs: Tdcs, gfn: Gfn, level: PgLevel) -> Steps[Walk]:
    """Walk, and refuse if the walk ends above `level`."""
    walk = yield from secure_ept_walk(module, tdcs, gfn, level)
    if walk.level != level:
        raise Refused(Status.TDX_EPT_WALK_FAILED, Operand.RCX, *walk.details())
    return walk


def wrong_state(module: TdxModule, leaf: str, walk: Walk, entry: Septe) -> Refused:
    """The refusal of an entry, locked or not, in a state that the leaf may not act on."""
    status = Status.TDX_EPT_ENTRY_STATE_INCORRECT
    if not module.profile.state_incorrect:
        status = wrong_state_1_0(leaf, entry.state)
    return Refused(status, Operand.RCX, *walk.details(entry))


def named_page(module: TdxModule, entry: Septe, level: PgLevel) -> PamtEntry:
    """The PAMT entry of what an entry names: the page a leaf maps, in its size, or the S-EPT page below a table."""
    return module.pamt.entry(entry.pfn_at(level), level if entry.is_leaf else PG_LEVEL_4K)


def hardware_walk(module: TdxModule, td: Td, gfn: Gfn) -> Steps[tuple[Septe, PgLevel] | None]:
    """The CPU's page walk for a private access: the leaf and its size, or None for an EPT violation.

    Yields: one read per level. The CPU knows permissions and the leaf flag, not the module's states or locks.
    Permissions of the leaf are the caller's to compare with the access.
    """
    walk = yield from secure_ept_walk(module, module.tdcs(td), gfn, 1)
    if not walk.entry & RWX:
        return None
    return walk.entry, walk.level
