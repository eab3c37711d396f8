"""The module as a whole: its tables, the hooks an embedding may set, and what observers may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sim import Cell, Kernel
from sim.access import Update, WriteOnce
from sim.dependence import UPDATE, note
from tdx.module.dynamic_pamt import DynamicPamt
from tdx.module.memory import Memory
from tdx.module.objects import Hkid, Kot, Tdcs, Tdr, Tdvps
from tdx.module.operands import Td
from tdx.module.pamt import PageType, Pamt
from tdx.module.profile import TDX_1_5_01, Profile
from tdx.module.sept import SeptPage
from tdx.module.septe import PS, RWX, TDEL, TDHP, Septe, SeptState
from tdx.module.sharex import HP_EXCLUSIVE, Sharex
from tdx.module.status import Operand, SeamcallReturn, Status
from vcpu.addresses import PG_LEVEL_4K, Gfn, Pfn, PgLevel

if TYPE_CHECKING:
    from sim.access import Access

Inject = Callable[[str, str], "Status | None"]


def _nothing(*_args: object) -> None:
    return None


class TdxModule:
    """An initialised TDX module.

    Args:
        tdmr: half-open ranges of frames that may be given to TDs.
        packages: sockets; each has its own keys to configure and caches to write back.
        hkids: the private key ids.
        zero_step: whether the zero-step defence is on.
        accept_step_pages: how many 4K pages a 2M ACCEPT zeroes between two interrupt tests; the real module tests after
            each one, which costs 512 steps.
        promote_step_children: how many children PROMOTE locks, and then compares, in one access; the real module takes one
            after the other, which costs 1024 steps.
        profile: which release.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        tdmr: Sequence[tuple[int, int]],
        packages: int = 1,
        hkids: Sequence[int] = tuple(range(32, 64)),
        zero_step: bool = True,
        accept_step_pages: int = 32,
        promote_step_children: int = 32,
        profile: Profile = TDX_1_5_01,
    ) -> None:
        self.kernel = kernel
        self.packages = packages
        self.zero_step = zero_step
        self.accept_step_pages = accept_step_pages
        self.promote_step_children = promote_step_children
        self.profile = profile
        self.pamt = DynamicPamt(tdmr) if profile.dynamic_pamt else Pamt(tdmr)
        self.memory = Memory()
        self.kot = Kot({hkid: Hkid() for hkid in hkids})
        self.sept_pages: dict[int, SeptPage] = {}
        self.state: Cell[str] = Cell("module.state", "READY")
        self.ket_locks = [Sharex(f"package[{n}].ket", 0) for n in range(packages)]
        self.wbt_locks = [Sharex(f"package[{n}].wbt", 0) for n in range(packages)]
        self.wb_saved: list[tuple[int, frozenset[int]] | None] = [None] * packages
        self.in_flight = 0
        """Observers: calls that have begun and not ended, guests' ACCEPTs included, running guests excluded."""
        self.inject: Inject | None = None
        """Fault injection: (leaf, thread) to the status that the call returns without doing anything, or None."""
        self.inject_operand: Operand = Operand.RCX
        self.on_page_zeroed: Callable[[Pfn, int], None] = _nothing
        """ACCEPT zeroed that many 4K pages from that frame on."""
        self.on_page_added: Callable[[Pfn, Pfn | None], None] = _nothing
        """PAGE.ADD copied a source frame to a private one."""
        self.on_page_relocated: Callable[[Pfn, Pfn], None] = _nothing
        """RELOCATE copied a private frame to another."""
        self.overwritten: dict[Pfn, int] = {}
        """Observers: frames that are nobody's and yet written, and under which key id: by a DEMOTE that has not committed or never
        did. It may write them again; any other use needs PHYMEM.PAGE.WBINVD first (reference 14, row 18)."""

    def refusal(self, leaf: str) -> SeamcallReturn | None:
        """What the dispatcher answers instead of calling the leaf, if anything."""
        if self.inject is not None:
            status = self.inject(leaf, self.kernel.current.name)
            if status is not None:
                operand = self.inject_operand if status is Status.TDX_OPERAND_BUSY else None
                return SeamcallReturn(status, operand)
        return None

    # What leaves use.

    def write_entry(self, septe: Cell[int], entry: int, *, unlock: bool = False) -> Access:
        """Write a whole entry that the caller has locked; the lock stays, or goes in the same access.

        TDHP set meanwhile is lost in releases that write the word blindly. Where entries have no locks there is none to keep.
        """
        unlock = unlock or not self.profile.relaxed_concurrency
        word = entry & ~TDEL if unlock else entry | TDEL
        if self.profile.writes_drop_tdhp:
            return WriteOnce(septe, word)
        return Update(septe, lambda old: word | old & TDHP, "write entry")

    def note_overwritten(self, pfn: Pfn, hkid: int | None) -> None:
        """A frame that is nobody's was written under that key; None: it is somebody's now."""
        note("module.overwritten", UPDATE)
        if hkid is None:
            self.overwritten.pop(pfn, None)
        else:
            self.overwritten[pfn] = hkid

    def tdr(self, td: Td) -> Tdr:
        """The TDR of a TD that exists. For the guest's side and observers: the host's calls look it up under locks."""
        holds = self.pamt.entry(td.tdr_pfn, PG_LEVEL_4K).holds
        assert isinstance(holds, Tdr), f"{td} is not a TD"
        return holds

    def tdcs(self, td: Td) -> Tdcs:
        """The TDCS of a TD that exists."""
        return self.tdr(td).tdcs

    def vcpu(self, tdvpr_pfn: Pfn) -> Tdvps:
        """The vCPU whose TDVPR that is."""
        holds = self.pamt.entry(tdvpr_pfn, PG_LEVEL_4K).holds
        assert isinstance(holds, Tdvps), f"{tdvpr_pfn:#x} is not a TDVPR"
        return holds

    # For observers: nothing below yields, and nothing of the model may call it.

    def tds(self) -> list[Tdr]:
        """All TDs that exist."""
        return [entry.holds for entry in self.pamt.assigned() if entry.kind is PageType.PT_TDR]

    def peek_septe(self, td: Td, gfn: Gfn, level: int = 1) -> Septe | None:
        """The entry of that level for `gfn`, or None if the tree does not reach so far down."""
        page = self.tdcs(td).root
        while True:
            word = page.septe(gfn).peek()
            if page.level == level:
                return Septe(word)
            if word & PS or not word & RWX:
                return None
            page = self.sept_pages[Septe(word).pfn_at(0)]

    def leaves(self, td: Td) -> Iterator[tuple[Gfn, PgLevel, SeptState, Pfn]]:
        """All leaf entries, pending and blocked ones included, in order: gfn, level, state, pfn."""
        for gfn, level, entry in self.entries(self.tdcs(td)):
            if entry.is_leaf:
                yield gfn, level, entry.state, entry.pfn_at(level)

    def entries(self, tdcs: Tdcs) -> Iterator[tuple[Gfn, PgLevel, Septe]]:
        """All entries that are not FREE, by frame, a table before what is below it, blocked tables included."""
        if tdcs.has_root:
            yield from self._entries(tdcs.root)

    def _entries(self, page: SeptPage) -> Iterator[tuple[Gfn, PgLevel, Septe]]:
        for index in sorted(page.entries):
            entry = Septe(page.entries[index].peek())
            state = entry.state
            if state is SeptState.FREE and not entry.is_locked:
                continue
            yield Gfn(page.gfn(index)), page.level, entry
            if state in (SeptState.NL_MAPPED, SeptState.NL_BLOCKED):
                below = self.sept_pages.get(entry.pfn_at(0))
                if below is not None:
                    yield from self._entries(below)

    def pamt_type(self, pfn: int) -> PageType:
        """What the page is used for, whatever the size of its mapping."""
        return self.pamt.leaf(pfn).kind

    def pamt_owner(self, pfn: int) -> Pfn | None:
        """The TDR frame of the TD that owns the page."""
        return self.pamt.leaf(pfn).owner

    def may_reach(self, td: Td, pfn: int, level: PgLevel) -> bool:
        """Whether a guest of the TD may have a translation of that size to the page: it is the TD's, or a call has it in hand.

        AUG lets go of the entry, so that a guest may accept the page, before it writes into the PAMT whose it is.
        """
        page = self.pamt.leaf(pfn)
        if page.kind is PageType.PT_REG and page.owner == td.tdr_pfn:
            return True
        return self.pamt.entry(pfn, level).lock.peek() & HP_EXCLUSIVE != 0

    def chldcnt(self, td: Td) -> int:
        """How many 4K pages the TDR counts as its TD's."""
        return self.tdr(td).chldcnt.peek()
