"""Two worlds and what goes from one to the other: a TD that is exported here and imported there."""

from __future__ import annotations

from sim import Kernel
from tdx.module import (
    COMMAND_IN_ORDER_DONE,
    TDCX_PAGES,
    TDVPS_PAGES,
    GpaListEntry,
    GpaOperation,
    LogicalProcessor,
    MemoryBundle,
    PageListEntry,
    StateBundle,
    Td,
    TdxModule,
    TokenBuffer,
    exchange_keys,
    tdg_mem_page_accept,
    tdh_export_blockw,
    tdh_export_mem,
    tdh_export_pause,
    tdh_export_state_immutable,
    tdh_export_state_td,
    tdh_export_state_vp,
    tdh_export_track,
    tdh_import_mem,
    tdh_import_state_immutable,
    tdh_import_state_td,
    tdh_import_state_vp,
    tdh_import_track,
    tdh_mem_sept_add,
    tdh_mem_track,
    tdh_mig_stream_create,
    tdh_mng_addcx,
    tdh_mng_create,
    tdh_mng_key_config,
    tdh_vp_addcx,
    tdh_vp_create,
)
from tdx.module.invariants import INVARIANTS
from tdx.module.objects import MIGRATABLE
from tests.tdx.module.worlds import DATA, GFN, TDMR, World, run
from vcpu.addresses import LEVELS, PAGE_SHIFT, PG_LEVEL_4K, Pfn, align_down, gpa_of

STREAMS = 3
"""One backwards, two forwards."""


def listed(*gfns, operation=GpaOperation.MIGRATE):
    """A GPA list."""
    return [GpaListEntry(gpa_of(gfn), operation) for gfn in gfns]


def fill(module, pfn, *values):
    """What a guest wrote to a page: its first qwords."""
    for n, value in enumerate(values):
        module.memory.qword((pfn << PAGE_SHIFT) + 8 * n).v = value


def hold(world):
    """The module's invariants, at rest."""
    for name, invariant in INVARIANTS.items():
        assert invariant(world.module)() is True, name


class Irq:
    """Interrupts at given tests, counted from 1."""

    def __init__(self, *at):
        self.at, self.tests = set(at), 0

    def __call__(self):
        self.tests += 1
        return self.tests in self.at


class Migrating:
    """What both sides have."""

    @property
    def tdcs(self):
        return self.module.tdcs(self.td)

    @property
    def migration(self):
        return self.tdcs.migration

    def streams(self, number=STREAMS):
        for _ in range(number):
            assert self.do(tdh_mig_stream_create, td=self.td, pfn=self.page()).ok

    def of(self, call, **operands):
        """One call on the TD that must succeed."""
        ret = self.do(call, td=self.td, **operands)
        assert ret.ok, str(ret)
        return ret

    def contents(self, gfn):
        """What is in a page of the TD."""
        return self.module.memory.contents(self.module.peek_septe(self.td, gfn, 1).pfn_at(1))


class Source(Migrating, World):
    """A finalized TD that may be exported; page n of it is at GFN + n."""

    def __init__(self, kernel=None, *, vcpus=1, attributes=0, **options):
        super().__init__(kernel, vcpus=vcpus, attributes=attributes | MIGRATABLE, **options)
        self.streams()

    def mapped(self, n, *values):
        """A page that the guest has accepted and written."""
        self.aug(GFN + n, DATA + n)
        accepted = tdg_mem_page_accept(
            self.module,
            td=self.td,
            vcpu=self.vcpu(),
            gpa=gpa_of(GFN + n),
            level=PG_LEVEL_4K,
            interrupt_pending=lambda: False,
        )
        assert run(self.kernel, accepted).ok
        fill(self.module, DATA + n, *values)
        return GFN + n

    def pending(self, n):
        """A page that the guest has not accepted."""
        self.aug(GFN + n, DATA + n)
        return GFN + n

    def begin(self, destination=None):
        """RUNNABLE -> LIVE_EXPORT; with a destination, also its import."""
        exchange_keys(self.migration, destination.migration if destination else self.migration)
        bundle = StateBundle()
        self.of(tdh_export_state_immutable, bundle=bundle)
        if destination:
            destination.of(tdh_import_state_immutable, bundle=bundle)
            destination.build_tables()
        return bundle

    def block(self, *gfns):
        """Take write access from pages, and track it."""
        self.of(tdh_export_blockw, gpa_list=listed(*gfns))
        self.of(tdh_mem_track)

    def export(self, *gfns, operation=GpaOperation.MIGRATE, **operands):
        """Send pages; returns the list and the bundle."""
        gpa_list, bundle = listed(*gfns, operation=operation), MemoryBundle()
        self.of(tdh_export_mem, gpa_list=gpa_list, bundle=bundle, **operands)
        return gpa_list, bundle

    def send(self, destination, *gfns, operation=GpaOperation.MIGRATE):
        """Send pages, and see them arrive."""
        gpa_list, bundle = self.export(*gfns, operation=operation)
        destination.take(gpa_list, bundle)
        return gpa_list

    def next_epoch(self, destination=None, *, done=False):
        """An epoch token, or the start token; the destination takes it."""
        token = TokenBuffer()
        self.of(tdh_export_track, token=token, stream=COMMAND_IN_ORDER_DONE if done else 0)
        if destination:
            destination.of(tdh_import_track, token=token)
        return token

    def pause(self):
        self.of(tdh_export_pause)

    def send_state(self, destination):
        """The TD's and its vCPUs' metadata; the destination makes vCPUs of them."""
        bundle = StateBundle()
        self.of(tdh_export_state_td, bundle=bundle)
        destination.of(tdh_import_state_td, bundle=bundle)
        for n, tdvpr in enumerate(self.tdvprs):
            bundle = StateBundle()
            assert self.do(tdh_export_state_vp, tdvpr_pfn=tdvpr, lp=self.lps[n], bundle=bundle).ok
            made = destination.make_vcpu()
            ret = destination.do(tdh_import_state_vp, tdvpr_pfn=made, lp=destination.lps[0], bundle=bundle)
            assert ret.ok, str(ret)


class Destination(Migrating, World):
    """A TD that has its control pages and streams and is nothing yet; its modules's frames are other ones."""

    def __init__(self, kernel=None, **options):  # not World's: nothing is built
        self.kernel = kernel if kernel is not None else Kernel()
        self.module = TdxModule(self.kernel, tdmr=[TDMR], **options)
        self._next = TDMR[0] + 0x800
        self.td = Td(self.page(), "td1")
        self.lps = [LogicalProcessor(0)]
        self.tdvprs = []
        self.of(tdh_mng_create, hkid=40)
        self.of(tdh_mng_key_config, package=0)
        for _ in range(TDCX_PAGES):
            self.of(tdh_mng_addcx, pfn=self.page())
        self.streams()

    def build_tables(self, gfn=GFN):
        for level in (4, 3, 2):
            gpa = gpa_of(align_down(gfn, LEVELS[level]))
            self.of(tdh_mem_sept_add, gpa=gpa, level=LEVELS[level], pfn=self.page())

    def make_vcpu(self):
        tdvpr = self.page()
        self.of(tdh_vp_create, tdvpr_pfn=tdvpr)
        for _ in range(TDVPS_PAGES - 1):
            assert self.do(tdh_vp_addcx, tdvpr_pfn=tdvpr, pfn=self.page()).ok
        self.tdvprs.append(tdvpr)
        return tdvpr

    def new_pages(self, number):
        return [PageListEntry(Pfn(self.page())) for _ in range(number)]

    def take(self, gpa_list, bundle, **operands):
        """Import a list into fresh pages; must succeed, but for entries that fail."""
        return self.of(
            tdh_import_mem,
            gpa_list=gpa_list,
            bundle=bundle,
            new_pages=self.new_pages(len(gpa_list)),
            **operands,
        )


def importing(**options):
    """A source in its export and a destination in its import, both in the first epoch, no page sent."""
    source, destination = Source(**options), Destination()
    source.begin(destination)
    return source, destination
