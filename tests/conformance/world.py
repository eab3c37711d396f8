"""A fresh module in a wanted state, written directly into its structures.

Building a TD by SEAMCALLs takes thousands of steps; a row needs one TD in one state. So everything that the calls would have built is
put in place by small functions, one for each kind of thing. test_world.py builds the same by SEAMCALLs and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim import Cell, Kernel, Steps
from sim.access import Access
from tdx.module import TDVPS_PAGES, LogicalProcessor, SeptState, Td, Tdvps, TdxModule
from tdx.module.l2 import ATTR_R, ATTR_VALID, L2Septe, l2_leaf, l2_table
from tdx.module.migration import BEPOCH_MIGRATION, MigrationContext, MigrationKey
from tdx.module.objects import (
    DEBUG,
    L2_SEPT_ROOT_INDEX,
    MIGRATABLE,
    SEPT_ROOT_INDEX,
    SEPT_VE_DISABLE,
    Epoch,
    HkidState,
    Lifecycle,
    Tdr,
    VcpuState,
)
from tdx.module.pamt import PageType, PamtEntry
from tdx.module.sept import SeptPage
from tdx.module.septe import Septe, make, make_removed
from tests.conformance.situation import EPOCH, GIB, MIG_EPOCH, NotExpressible, Situation
from vcpu.addresses import (
    ENTRIES,
    LEVELS,
    PG_LEVEL_1G,
    PG_LEVEL_4K,
    PG_LEVEL_256T,
    PG_LEVEL_512G,
    Gfn,
    Pfn,
    PgLevel,
    align_down,
)

TDMR = (GIB, 16 * GIB)
CONTROL = 1 * GIB
"""TDR and TDCX."""
PAGE = 2 * GIB
"""What a leaf maps."""
RUN = 4 * GIB
"""What 512 children map, one after the other."""
L2_NEW = 5 * GIB
"""Pages for L2 VM n: n GiB from here."""
ABOVE = 9 * GIB
"""What the leaf maps that stops a walk."""
CHILD = 10 * GIB
"""What a single child maps."""
OTHER = 11 * GIB
"""Another page of the TD, for operands of the wrong type."""
SHARED = 0x1000
"""Memory of the host, outside the TDMRs."""
TDVPR = 12 * GIB
SEPT = 13 * GIB
"""S-EPT pages."""
HKID = 32
IMPORT_MEM = "TDH.IMPORT.MEM"
TABLES = (SeptState.NL_MAPPED, SeptState.NL_BLOCKED)
EMPTY = (SeptState.FREE, SeptState.REMOVED)


def l2_page(vm: int) -> int:
    """The frame that a call is given for L2 VM `vm`."""
    return L2_NEW + (vm - 1) * GIB


class World:
    """The module, one TD, the entry that the case is about, and where to find what a call or a key needs."""

    def __init__(self, want: Situation) -> None:
        self.want = want
        self.kernel = Kernel()
        self.module = TdxModule(self.kernel, tdmr=[TDMR], profile=want.profile)
        self._next = 0
        self.lp = LogicalProcessor(0, interrupt_pending=lambda: want.interrupt)
        self.tdr = self._td()
        self.td = Td(self.tdr.pfn)
        self.tdcs = self.tdr.tdcs
        self.vcpu = self._vcpu()
        self.gfn = Gfn(1 << (36 if want.five_levels else 27))
        self.below: SeptPage | None = None
        """The S-EPT page that the entry names, if it names one."""
        self.table = self._tree()
        """The S-EPT page in which the walk ends."""
        self.entry: Cell[int] = self.table.septe(self.gfn)
        """The entry at which the walk ends."""
        self.raced: int | None = None
        """What the guest's race put into the entry, if there was one."""
        self.page: PamtEntry | None = None
        """The PAMT entry of the page that the entry maps, if it is a leaf of a size that the PAMT has."""
        self._fill()
        if want.l2_vms:
            self._l2_trees()

    # Pages.

    def frame(self, kind: PageType) -> Pfn:
        """A frame of 4K that nobody has used; pages that are locked on different ways do not share their way."""
        self._next += 1
        return Pfn(self._next + {PageType.PT_EPT: SEPT, PageType.PT_TDVPR: TDVPR}.get(kind, CONTROL))

    def pamt(self, pfn: int, level: PgLevel = PG_LEVEL_4K) -> PamtEntry:
        """A PAMT entry. Raises: NotExpressible: there are none of that size."""
        if level > PG_LEVEL_1G:
            raise NotExpressible(f"no page is as large as {level.short}: the PAMT has no entry for it")
        return self.module.pamt.entry(pfn, level)

    def own(self, kind: PageType, pfn: int | None = None, level: PgLevel = PG_LEVEL_4K) -> Pfn:
        """Give the TD a page."""
        if pfn is None:
            pfn = self.frame(kind)
        entry = self.pamt(pfn, level)
        entry.assign(kind, self.tdr.pfn)
        self.tdr.chldcnt.v += level.pages
        return Pfn(pfn)

    def race(self) -> None:
        """The entry changes, between walk and lock, to the state that the case is about."""
        self.put(self.want.state)
        self.raced = self.entry.v

    # The TD.

    def _td(self) -> Tdr:
        """TDR and TDCS, as MNG.CREATE to MNG.INIT leave them."""
        want = self.want
        pfn = self.frame(PageType.PT_TDR)
        self.tdr = tdr = Tdr(
            pfn, HKID, self.module.packages, tree_host_priority=want.profile.tree_host_priority
        )
        self.pamt(pfn).assign(PageType.PT_TDR, None, tdr)
        hkid = self.module.kot.hkids[HKID]
        hkid.state = HkidState.ASSIGNED
        tdr.fatal = want.fatal
        tdr.lifecycle = want.lifecycle
        if want.lifecycle is not Lifecycle.HKID_ASSIGNED:
            tdr.keys_missing.clear()
        tdr.tdcx = [self.own(PageType.PT_TDCX) for _ in range(want.tdcx_pages + want.l2_vms)]
        tdcs = tdr.tdcs
        tdcs.op_state = want.op_state
        root_level = PG_LEVEL_256T if want.five_levels else PG_LEVEL_512G
        root = tdr.tdcx[SEPT_ROOT_INDEX] if want.tdcx_pages > SEPT_ROOT_INDEX else Pfn(0)
        tdcs.root = SeptPage(root, root_level, 0)
        tdcs.private_end = 1 << (51 if want.five_levels else 47)
        tdcs.attributes = SEPT_VE_DISABLE | MIGRATABLE | (DEBUG if want.debug else 0)
        tdcs.pending_ve_disable = True
        tdcs.max_vcpus = 576
        tdcs.epoch.v = Epoch(EPOCH, *want.refcounts)
        tdcs.num_l2_vms = want.l2_vms
        self._session(tdcs.migration)
        return tdr

    def _session(self, migration: MigrationContext) -> None:
        """An export or import session with a backward and a forward stream, some epochs old."""
        migration.write_key(MigrationKey("the other side's key"))
        migration.begin_session()
        migration.export_count = 1
        migration.num_migs = 2
        for index in range(2):
            migration.stream(index).pfn = self.own(PageType.PT_TDCX)
        migration.mig_epoch = MIG_EPOCH
        migration.bw_epoch.v = self.want.bw_epoch
        migration.mig_count.v = migration.dirty_count.v = 1

    def _vcpu(self) -> Tdvps:
        """A vCPU, READY and associated, or inside TDH.VP.ENTER if the call is the guest's."""
        tdr, tdcs = self.tdr, self.tdcs
        pfn = self.own(PageType.PT_TDVPR)
        vcpu = Tdvps(pfn, tdr)
        self.pamt(pfn).holds = vcpu
        tdr.vcpus.append(vcpu)
        pages = TDVPS_PAGES - 1 + 3 * self.want.l2_vms
        vcpu.tdcx = [self.own(PageType.PT_TDCX) for _ in range(pages)]
        vcpu.state.v = VcpuState.READY
        vcpu.assoc_lpid.v = self.lp.lpid
        tdcs.num_vcpus.v = tdcs.num_assoc_vcpus.v = 1
        vcpu.vcpu_epoch = EPOCH
        if self.want.is_inside:
            vcpu.state.v = VcpuState.ACTIVE
            vcpu.inside = True
            tdcs.epoch.v = tdcs.epoch.v.counted(EPOCH, 1)
            for entry in (self.pamt(tdr.pfn), *(self.pamt(pfn, level) for level in LEVELS[1:4])):
                entry.lock.v += 4
        return vcpu

    # The tree.

    def _tree(self) -> SeptPage:
        """Tables from the root down to the one with the entry; or to the one whose entry stops the walk."""
        want = self.want
        last = want.level + (want.above is not None)
        table = self.tdcs.root
        while table.level > last:
            table = self._link(table, SeptState.NL_MAPPED)
        return table

    def _link(self, table: SeptPage, state: SeptState) -> SeptPage:
        """An S-EPT page below the entry for our GPA, which gets that state."""
        pfn = self.own(PageType.PT_EPT)
        below = SeptPage(pfn, LEVELS[table.level - 1], align_down(self.gfn, table.level))
        self.module.sept_pages[pfn] = below
        table.septe(self.gfn).v = int(make(state, pfn))
        return below

    def _fill(self) -> None:
        """Bring the entry into the state that the walk meets."""
        want = self.want
        self.put(want.above or want.seen or want.state)
        if self.below is not None and want.above is None:
            self._children(self.below)

    def put(self, state: SeptState) -> None:
        """Bring the entry into a state, with the page that it takes."""
        level = self.table.level
        if state in EMPTY:
            removed = make_removed(self.want.removed_epoch)
            self.entry.v = int(make(state) if state is SeptState.FREE else removed)
        elif state in TABLES:
            self._name_table(state)
        else:
            self._name_page(state, Pfn(ABOVE if self.want.above else PAGE), level)

    def _name_table(self, state: SeptState) -> None:
        if self.below is not None:
            self.entry.v = int(make(state, self.below.pfn))
            return
        if self.table.level > PG_LEVEL_4K:
            self.below = self._link(self.table, state)
            pfn = self.below.pfn
        else:  # nothing in the module makes such an entry; its word can be written all the same
            pfn = self.own(PageType.PT_EPT)
            self.entry.v = int(make(state, pfn))
        self.pamt(pfn).bepoch.v = self.want.bepoch

    def _name_page(self, state: SeptState, pfn: Pfn, level: PgLevel) -> None:
        self.entry.v = int(make(state, pfn)) | self.want.accept_counter << 12
        if level > PG_LEVEL_1G:
            return  # the PAMT has no such pages
        self.page = self.pamt(pfn, level)
        self.page.bepoch.v = self.want.bepoch
        if self.want.call.name == IMPORT_MEM:
            self.page.bepoch.v = self._imported_in(self.want.import_epoch)
        if self.page.kind is PageType.PT_NDA:
            self.own(PageType.PT_REG, pfn, level)

    def _imported_in(self, mig_epoch: int) -> int:
        """BEPOCH of a page that this session has imported."""
        return BEPOCH_MIGRATION | self.tdcs.migration.export_count << 32 | mig_epoch

    def _children(self, table: SeptPage) -> None:
        children, index = self.want.children, self.want.child
        if children == "all_free":
            return
        if children.startswith("one_"):
            self.set_child(table, index, SeptState[children.removeprefix("one_").upper()], Pfn(CHILD))
            return
        state = SeptState[children]
        for n in range(ENTRIES):
            self.set_child(table, n, state, Pfn(RUN + n * table.level.pages))

    def set_child(self, table: SeptPage, index: int, state: SeptState, pfn: int) -> Cell[int]:
        """Bring the entry at `index` of a table into a state, with the page that it takes."""
        cell = table.septe(table.gfn(index))
        if state is SeptState.REMOVED:
            cell.v = int(make_removed(self.want.removed_epoch))
        elif state in TABLES:
            cell.v = int(make(state, self.own(PageType.PT_EPT)))
        elif state is SeptState.FREE:
            cell.v = int(make(state))
        else:
            if self.pamt(pfn, table.level).kind is PageType.PT_NDA:
                self.own(PageType.PT_REG, pfn, table.level)
            cell.v = int(make(state, pfn))
        return cell

    def _l2_trees(self) -> None:
        """S-EPTs of the L2 VMs; some have an alias of our entry."""
        want = self.want
        for vm in range(1, want.l2_vms + 1):
            table = SeptPage(self.tdr.tdcx[L2_SEPT_ROOT_INDEX + vm - 1], self.tdcs.root.level, 0, vm)
            self.tdcs.l2_roots.append(table)
            while want.l2_tables and table.level > self.table.level:
                table = self._l2_link(table)
            if not want.l2_tables and self.l2_level() == self.table.level:
                raise NotExpressible(f"a walk to {self.table.level.short} cannot end above: that is the root")
            if vm <= want.aliases:
                self._alias(table)

    def _l2_link(self, table: SeptPage) -> SeptPage:
        pfn = self.own(PageType.PT_EPT)
        below = SeptPage(pfn, LEVELS[table.level - 1], align_down(self.gfn, table.level), table.vm)
        self.module.sept_pages[pfn] = below
        table.septe(self.gfn).v = int(l2_table(pfn))
        return below

    def _alias(self, table: SeptPage) -> None:
        entry = Septe(self.entry.v)
        state = entry.state
        self.entry.v = int(entry.with_alias(table.vm))
        if state in TABLES:
            self._l2_link(table)
        elif state.is_leaf:
            hidden = state.is_blocked or state.is_pending
            attributes = ATTR_VALID | ATTR_R
            table.septe(self.gfn).v = int(l2_leaf(attributes, entry.pfn_at(table.level), blocked=hidden))

    def l2_level(self) -> PgLevel:
        """Where a walk to our entry ends in the tree of L2 VM 1."""
        table = self.tdcs.l2_roots[0]
        while table.level > self.table.level:
            entry = L2Septe(table.septe(self.gfn).v)
            if entry.is_free:
                break
            table = self.module.sept_pages[entry.pfn]
        return table.level

    # Running.

    def run(self, steps: Steps[Any], watch: Callable[[Access], None] | None = None) -> Any:
        """Run one call alone. `watch` sees every access before it happens."""
        return self.kernel.prepare(steps if watch is None else _watched(steps, watch))


def _watched(steps: Steps[Any], watch: Callable[[Access], None]) -> Steps[Any]:
    given = None
    while True:
        try:
            access: Any = steps.send(given)
        except StopIteration as stop:
            return stop.value
        watch(access)
        given = yield access
