"""A world in a given state, its structures written directly: a search builds it thousands of times.

test_world.py holds it to what SEAMCALLs build. Geometry: the place stands at `gfn`; S-EPT pages lead to the parent entry; the page
`home` is what a large page at the parent would hold first. `spare` is a free frame, the first of a free 2M frame, and the one new
page that every leaf of a pair is given. Three vCPUs: one for each thread of a pair, one that may be inside.
"""

from __future__ import annotations

from functools import cache

from sim import Kernel, Steps
from tdx.module import (
    TDCX_PAGES,
    TDVPS_PAGES,
    LogicalProcessor,
    OpState,
    PageType,
    Septe,
    SeptState,
    Td,
    TdExit,
    Tdvps,
    TdxModule,
)
from tdx.module.migration import OUT_OF_ORDER
from tdx.module.objects import (
    HP_LOCK_TIMEOUT_NS,
    MIGRATABLE,
    SEPT_ROOT_INDEX,
    Epoch,
    HkidState,
    Lifecycle,
    Tdr,
    VcpuState,
)
from tdx.module.pamt import PamtEntry
from tdx.module.profile import TDX_1_5_01, Profile
from tdx.module.sept import SeptPage
from tdx.module.septe import FREE, make, make_removed
from tdx.module.sharex import HP_READER
from tests.pairwise.states import TABLES, TEARDOWN, Age, Guest, State
from vcpu.addresses import (
    LEVELS,
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    PG_LEVEL_512G,
    Gfn,
    Gpa,
    Pfn,
    PgLevel,
    gpa_of,
    table_index,
)

TDMR = (0x1000, 0x100000)
HKID = 32
TD = Td(Pfn(0x1001), "td0")
FIRST_TDCX = 0x1002
TDVPRS = {"a": Pfn(0x1010), "b": Pfn(0x1020), "guest": Pfn(0x1030)}
TABLE_1G, TABLE_2M, TABLE, TABLE_BELOW = Pfn(0x1041), Pfn(0x1042), Pfn(0x1050), Pfn(0x1060)
"""S-EPT pages by the size of their entries on the way to the parent; the one below the parent, and below a 2M entry."""
SPARE = Pfn(0x9000)
EPOCH = 10
MIG_STREAMS = 3
"""One backwards, one forwards for each thread."""
MIG_EPOCH = 5
"""What is in the tree was imported, or removed, before this epoch."""
AFTER_START_TOKEN = (OpState.POST_EXPORT, OpState.POST_IMPORT, OpState.LIVE_IMPORT)
GFN = {PG_LEVEL_4K: Gfn(0x10000), PG_LEVEL_2M: Gfn(0x80000)}
HOME = {PG_LEVEL_4K: Pfn(0x8000), PG_LEVEL_2M: Pfn(0x40000)}
AWAY = {PG_LEVEL_4K: Pfn(0xA000), PG_LEVEL_2M: Pfn(0x10000)}


class World:
    """A module with one TD around one place."""

    def __init__(self, kernel: Kernel, state: State, profile: Profile = TDX_1_5_01) -> None:
        self.kernel = kernel
        self.level = state.level
        self.parent_level = LEVELS[state.level + 1]
        self.gfn = GFN[state.level]
        self.home = HOME[state.level]
        self.module = TdxModule(
            kernel, tdmr=[TDMR], profile=profile, accept_step_pages=256, promote_step_children=256
        )
        self.td = TD
        self.spare = SPARE
        self.lps = {who: LogicalProcessor(n) for n, who in enumerate(TDVPRS)}
        self._counted = 0
        self.tdr = self._td(state)
        self.tdcs = self.tdr.tdcs
        self.vcpus = {who: self._vcpu(who) for who in TDVPRS}
        self._tree(state)
        self.tdr.chldcnt.v = self._counted
        if state.guest:
            self.enter(state.guest)
        if state.phase == TEARDOWN:
            self.tear_down()

    # What leaves are called with.

    def gpa(self, level: PgLevel) -> Gpa:
        """The address of the place; the parent begins where the entry does."""
        assert self.gfn % level.pages == 0
        return gpa_of(self.gfn)

    def mapped(self) -> Pfn:
        """The page that the place maps, the parent's if that is a leaf; `home` if nothing is mapped."""
        for level in (self.parent_level, self.level):
            septe = self.module.peek_septe(self.td, self.gfn, level)
            if septe is not None and septe.is_leaf:
                return septe.pfn_at(level)
        return self.home

    def leave(self) -> Steps[TdExit]:
        """A guest that leaves at once."""
        yield self.module.state.read_once()
        return TdExit.external_interrupt()

    def take_another(self) -> None:
        """The spare frame has been used: the next one, in a 2M frame of its own."""
        self.spare = Pfn(self.spare + PG_LEVEL_2M.pages)

    # What can happen to it beside calls.

    @property
    def is_torn_down(self) -> bool:
        """Whether the TD's key is gone."""
        return self.tdr.lifecycle is Lifecycle.TEARDOWN

    def tear_down(self) -> None:
        """VP.FLUSH, VPFLUSHDONE, CACHE.WB and KEY.FREEID have happened."""
        self.tdr.lifecycle = Lifecycle.TEARDOWN
        self.module.kot.hkids[HKID].state = HkidState.FREE

    def enter(self, since: Guest) -> None:
        """The third vCPU enters and stays inside, since this epoch or the one before."""
        vcpu = self.vcpus["guest"]
        vcpu.vcpu_epoch = self.tdcs.epoch.v.epoch - (since is Guest.PREVIOUS)
        unit = self.tdcs.epoch.v
        self.tdcs.epoch.v = unit.counted(vcpu.vcpu_epoch, 1)
        vcpu.inside = True
        vcpu.state.v = VcpuState.ACTIVE
        self.lps["guest"].last_tdvpr = vcpu.pfn
        self._lock_for_guest(HP_READER)

    def exit(self) -> None:
        """It leaves."""
        vcpu = self.vcpus["guest"]
        self.tdcs.epoch.v = self.tdcs.epoch.v.counted(vcpu.vcpu_epoch, -1)
        vcpu.inside = False
        vcpu.state.v = VcpuState.READY
        self._lock_for_guest(-HP_READER)

    def _lock_for_guest(self, by: int) -> None:
        """What TDH.VP.ENTER holds while the guest runs: its TDVPR, the way there, and the TDR."""
        pamt = self.module.pamt
        way = [pamt.entry(TDVPRS["guest"], level) for level in (PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K)]
        for page in (*way, pamt.entry(self.td.tdr_pfn, PG_LEVEL_4K)):
            page.lock.v += by

    # How it is built.

    def _assign(self, pfn: int, level: PgLevel, kind: PageType, holds: object = None) -> PamtEntry:
        entry = _pamt_entry(pfn, level)
        self.module.pamt._arrays[level][pfn >> 9 * (level - 1)] = entry
        entry.lock.v = entry.bepoch.v = 0
        entry.kind = kind
        entry.owner = None if kind is PageType.PT_TDR else self.td.tdr_pfn
        entry.holds = holds
        if kind is not PageType.PT_TDR:
            self._counted += level.pages
        return entry

    def _td(self, state: State) -> Tdr:
        host_priority = self.module.profile.tree_host_priority
        tdr = Tdr(self.td.tdr_pfn, HKID, packages=1, tree_host_priority=host_priority)
        self._assign(self.td.tdr_pfn, PG_LEVEL_4K, PageType.PT_TDR, tdr)
        self.module.kot.hkids[HKID].state = HkidState.ASSIGNED
        tdr.keys_missing.clear()
        tdr.lifecycle = Lifecycle.KEYS_CONFIGURED
        tdr.tdcx = [Pfn(FIRST_TDCX + n) for n in range(TDCX_PAGES)]
        for pfn in tdr.tdcx:
            self._assign(pfn, PG_LEVEL_4K, PageType.PT_TDCX)
        tdcs = tdr.tdcs
        tdcs.root = SeptPage(tdr.tdcx[SEPT_ROOT_INDEX], PG_LEVEL_512G, 0)
        tdcs.private_end = 1 << 47
        tdcs.attributes = MIGRATABLE
        tdcs.max_vcpus = 576
        tdcs.hp_lock_timeout_ns = HP_LOCK_TIMEOUT_NS
        tdcs.epoch.v = Epoch(EPOCH, 0, 0)
        tdcs.op_state = state.op_state
        migration = tdcs.migration
        migration.num_migs = MIG_STREAMS
        migration.begin_session()
        migration.mig_epoch = OUT_OF_ORDER if state.op_state in AFTER_START_TOKEN else MIG_EPOCH
        migration.bw_epoch.v = 0 if state.bw_age is Age.NONE else EPOCH - state.bw_age
        return tdr

    def _vcpu(self, who: str) -> Tdvps:
        pfn = TDVPRS[who]
        vcpu = Tdvps(pfn, self.tdr)
        self._assign(pfn, PG_LEVEL_4K, PageType.PT_TDVPR, vcpu)
        vcpu.tdcx = [Pfn(pfn + n) for n in range(1, TDVPS_PAGES)]
        for tdcx in vcpu.tdcx:
            self._assign(tdcx, PG_LEVEL_4K, PageType.PT_TDCX)
        self.tdr.vcpus.append(vcpu)
        self.tdcs.num_vcpus.v += 1
        self.tdcs.num_assoc_vcpus.v += 1
        vcpu.assoc_lpid.v = self.lps[who].lpid
        vcpu.state.v = VcpuState.READY
        vcpu.vcpu_epoch = EPOCH
        return vcpu

    def _table(
        self, above: SeptPage, pfn: Pfn, state: SeptState, *, first: int | None = None, stride: int = 0
    ) -> SeptPage:
        """An S-EPT page below the entry of `above` at the place."""
        below = LEVELS[above.level - 1]
        page = SeptPage(pfn, below, self.gfn & -above.level.pages, first=first, stride=stride)
        self.module.sept_pages[pfn] = page
        self._assign(pfn, PG_LEVEL_4K, PageType.PT_EPT)
        above.septe(self.gfn).v = int(make(state, pfn))
        return page

    def _tree(self, state: State) -> None:
        above = self._table(self.tdcs.root, TABLE_1G, SeptState.NL_MAPPED)
        if self.parent_level < PG_LEVEL_1G:
            above = self._table(above, TABLE_2M, SeptState.NL_MAPPED)
        if state.parent not in TABLES:
            self._leaf(above, state.parent, self.home, state.parent_age)
            return
        assert state.entry is not None
        table = self._filled(above, TABLE, state.parent, state.rest, state.parent_age, rest_only=True)
        if state.entry in TABLES:
            self._filled(table, TABLE_BELOW, state.entry, state.below, state.entry_age)
        else:
            frame = self.home if state.in_stride else AWAY[state.level]
            self._leaf(table, state.entry, frame, state.entry_age)

    def _filled(
        self,
        above: SeptPage,
        pfn: Pfn,
        state: SeptState,
        children: SeptState | None,
        age: Age,
        *,
        rest_only: bool = False,
    ) -> SeptPage:
        """A table whose entries are all FREE, or map the pages of one large page."""
        if children is None or children is SeptState.FREE:
            page = self._table(above, pfn, state)
        else:
            size = LEVELS[above.level - 1]
            page = self._table(above, pfn, state, first=int(make(children, self.home)), stride=size.size)
            self._own_run(size, 1 if rest_only else 0)
        self._age(self.module.pamt.entry(pfn, PG_LEVEL_4K), age)
        return page

    def _own_run(self, size: PgLevel, first: int) -> None:
        """The parts of the page at `home`, from `first` on, are the TD's data."""
        number = self.home >> 9 * (size - 1)
        run = _run(self.home, size)[first:]
        self.module.pamt._arrays[size].update(zip(range(number + first, number + 512), run, strict=True))
        owner, kind = self.td.tdr_pfn, PageType.PT_REG
        for entry in run:
            entry.kind = kind
            entry.owner = owner
            entry.lock.v = entry.bepoch.v = 0
        self._counted += len(run) * size.pages

    def _leaf(self, table: SeptPage, state: SeptState, frame: Pfn, age: Age) -> None:
        entry = make_removed(0) if state is SeptState.REMOVED else make(state, frame if state.is_leaf else 0)
        table.septe(self.gfn).v = int(entry)
        if state.is_leaf:
            self._age(self._assign(frame, table.level, PageType.PT_REG), age)

    @staticmethod
    def _age(page: PamtEntry, age: Age) -> None:
        page.bepoch.v = 0 if age is Age.NONE else EPOCH - age


class Beyond(Exception):
    """A world is in no `State`. Args: why."""


def state_of(world: World) -> State:
    """What is the case in a world at rest.

    Raises: Beyond: the neighbours are not all alike, say.
    """
    module, tdcs = world.module, world.tdcs
    phase = TEARDOWN if world.is_torn_down else tdcs.op_state.name
    above = _table_at(world, world.parent_level)
    parent = Septe(above.septe(world.gfn).v)
    state = State(
        world.level, phase, parent.state, _age_of(world, parent, world.parent_level), guest=_guest_of(world)
    )
    if parent.state not in TABLES:
        return state
    table = module.sept_pages[parent.pfn_at(0)]
    entry = Septe(table.septe(world.gfn).v)
    rest, first = _alike(table, world.gfn, ignore=True)
    state = state._replace(entry=entry.state, entry_age=_age_of(world, entry, world.level), rest=rest)
    if entry.state in TABLES:
        below, _ = _alike(module.sept_pages[entry.pfn_at(0)], world.gfn, ignore=False)
        return state._replace(below=below)
    if phase == "LIVE_EXPORT" and entry.state.is_write_blocked and entry.state.is_tlb_tracking_required:
        state = state._replace(bw_age=_age(world, tdcs.migration.bw_epoch.v))
    strided = rest is SeptState.FREE or not entry.is_leaf or entry.pfn_at(world.level) == first
    return state._replace(in_stride=strided)


def _table_at(world: World, level: int) -> SeptPage:
    page = world.tdcs.root
    while page.level > level:
        page = world.module.sept_pages[Septe(page.septe(world.gfn).v).pfn_at(0)]
    return page


def _alike(table: SeptPage, gfn: Gfn, *, ignore: bool) -> tuple[SeptState, int]:
    """The state that all entries have (but for the one at `gfn`), and the frame that the first would map if they map a run."""
    cells = table.entries
    if len(cells) < 512 and all(
        cell.v == int(FREE) for cell in cells.values() if not ignore or cell is not table.septe(gfn)
    ):
        return SeptState.FREE, 0
    here = table_index(gfn, table.level) if ignore else -1
    words = [cells[index].v if index in cells else int(FREE) for index in range(512)]
    if here >= 0:
        words[here] = words[here - 1] if words[here - 1] == int(FREE) else words[here + 1] - table.level.size
    if words == [int(FREE)] * 512:
        return SeptState.FREE, 0
    if words == list(range(words[0], words[0] + 512 * table.level.size, table.level.size)):
        first = Septe(words[0])
        return first.state, first.pfn_at(table.level)
    raise Beyond("the neighbours are not alike")


@cache
def _pamt_entry(pfn: int, level: PgLevel) -> PamtEntry:
    """An entry that is made once: the next world of this process uses it again, so there is one world at a time."""
    return PamtEntry(Pfn(pfn), level)


@cache
def _run(home: Pfn, size: PgLevel) -> list[PamtEntry]:
    """The entries of a large page's 512 parts."""
    return [_pamt_entry(home + index * size.pages, size) for index in range(512)]


def _age_of(world: World, entry: Septe, level: PgLevel) -> Age:
    if not entry.state.is_blocked:
        return Age.NONE
    page = world.module.pamt.entry(entry.pfn_at(level), level if entry.is_leaf else PG_LEVEL_4K)
    return _age(world, page.bepoch.v)


def _age(world: World, epoch: int) -> Age:
    behind = world.tdcs.epoch.v.epoch - epoch
    if behind > Age.PREVIOUS and _guest_of(world) is not Guest.PREVIOUS:
        behind = Age.PREVIOUS
    return Age(min(behind, Age.OLD))


def _guest_of(world: World) -> Guest:
    vcpu = world.vcpus["guest"]
    if not vcpu.inside:
        return Guest.OUTSIDE
    return Guest.CURRENT if vcpu.vcpu_epoch == world.tdcs.epoch.v.epoch else Guest.PREVIOUS
