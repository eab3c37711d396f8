"""The CPU's walk of the direct root (EPT): what hardware reads when a guest touches shared or plain memory.

One marked read a level, as the hardware does it: no lock, no RCU; a table that is freed too early is caught here.
"""

from __future__ import annotations

from mmu.page_table import KvmMmuPage, PageTables
from mmu.spte import SPTE_RWX, is_executable_pte, is_last_spte, is_writable_pte, spte_to_pfn
from sim import Steps
from vcpu.addresses import Gfn, table_index
from vcpu.exits import QUALIFICATION, ExitReason, GuestExit
from vcpu.tlb import Translation


def ept_walk(
    tables: PageTables, root: KvmMmuPage | None, gfn: int, access: str
) -> Steps[Translation | GuestExit]:
    """Translate `gfn` (with its shared bit, if any) by `root`; an EPT violation says what the entry allowed."""
    sp = root
    while sp is not None:
        spte: int = yield sp.cell(table_index(gfn, sp.level)).read_once()
        if not spte & SPTE_RWX:
            break
        if is_last_spte(spte, sp.level):
            start = gfn & -sp.level.pages
            found = Translation(
                Gfn(start), spte_to_pfn(spte), sp.level, is_writable_pte(spte), is_executable_pte(spte)
            )
            if found.allows(access):
                return found
            return ept_violation(gfn, access, (spte & SPTE_RWX) << 3)
        sp = tables.to_sp(spte_to_pfn(spte))
    return ept_violation(gfn, access, 0)


def ept_violation(gfn: int, access: str, allowed: int) -> GuestExit:
    """The exit; `allowed` are qualification bits 5:3."""
    return GuestExit(ExitReason.EPT_VIOLATION, gpa=gfn << 12, qualification=QUALIFICATION[access] | allowed)  # type: ignore[arg-type]
