"""Export against a guest that writes, and against itself, in every order: nothing is lost, and what guards that is what is said."""

import pytest

from sim import explore
from tdx.module import (
    GpaStatus,
    MemoryBundle,
    Status,
    hardware_walk,
    tdh_export_blockw,
    tdh_export_mem,
    tdh_export_track,
    tdh_export_unblockw,
    tdh_mem_track,
)
from tdx.module.invariants import INVARIANTS
from tdx.module.leaves import tdh_export_unblockw as unblockw_file
from tdx.module.objects import Epoch
from tdx.module.septe import SeptState, W
from tests.tdx.module.migrations import Source, listed
from tests.tdx.module.worlds import DATA, GFN
from vcpu.addresses import PAGE_SHIFT, gpa_of

STAY = 40
"""Steps between a guest's translation and its write: long enough for an export in between."""


def watched(kernel, pages=1):
    """A TD in LIVE_EXPORT with mapped pages, and the module's invariants."""
    source = Source(kernel)
    for n in range(pages):
        source.mapped(n, 1)
    source.begin()
    for name, invariant in INVARIANTS.items():
        kernel.always(name, invariant(source.module))
        kernel.at_end(name, invariant(source.module))
    return source


class Sent:
    """What the last export of the page carried."""

    def __init__(self, source):
        self.source = source
        self.contents = None

    def keep(self, bundle):
        if not bundle.buffers[0].invalid:
            self.contents = dict(bundle.buffers[0].contents)

    def is_current(self):
        """A page that is exported and clean is what was sent."""
        entry = self.source.module.peek_septe(self.source.td, GFN)
        if entry.state is not SeptState.EXPORTED_BLOCKEDW:
            return True
        return self.source.module.memory.contents(DATA) == self.contents


def live_export(kernel):
    """BLOCKW, TRACK, EXPORT.MEM, while a guest writes through what its LP has cached."""
    source = watched(kernel)
    module, td = source.module, source.td

    def host(send):
        yield from tdh_export_blockw(module, td=td, gpa_list=listed(GFN))
        yield from tdh_mem_track(module, td=td)
        for _ in range(2):
            yield from send()

    kernel.sometimes("export_not_tracked")
    kernel.sometimes("exported")
    export_while_the_guest_writes(source, host)


def blocked_export(kernel):
    """EXPORT.MEM of a page that is write-blocked and tracked already, against a guest that enters only now."""
    source = watched(kernel)
    source.block(GFN)
    kernel.sometimes("exported")
    export_while_the_guest_writes(source, lambda send: send())


def export_while_the_guest_writes(source, host):
    """The guest writes if it finds the page writable, some time after it has found it so; `host` is given what sends the page."""
    module, td, kernel = source.module, source.td, source.kernel
    sent = Sent(source)
    kernel.at_end("a clean exported page is what was sent", sent.is_current)

    def guest():
        leaf = yield from hardware_walk(module, td, GFN)
        if leaf is not None and leaf[0] & W:
            for _ in range(STAY):
                yield module.state.read_once()
            yield module.memory.qword(DATA << PAGE_SHIFT).write_once(2)
        return (yield from source.leave())

    def send():
        gpa_list, bundle = listed(GFN), MemoryBundle()
        ret = yield from tdh_export_mem(module, td=td, gpa_list=gpa_list, bundle=bundle)
        sent.keep(bundle)
        if gpa_list[0].status is GpaStatus.TLB_TRACKING_NOT_DONE:
            kernel.reached("export_not_tracked")
        elif ret.operand is None:
            kernel.reached("exported")

    kernel.thread("vcpu", source.enter(guest))
    kernel.thread("host", host(send))


def fault_and_export(kernel):
    """UNBLOCKW, then a write of the guest, against EXPORT.MEM of the same page."""
    source = watched(kernel)
    source.block(GFN)
    module, td = source.module, source.td
    sent = Sent(source)
    kernel.at_end("a clean exported page is what was sent", sent.is_current)
    kernel.at_end("dirty pages are counted", lambda: source.migration.dirty_count.v == dirty(source))
    kernel.at_end("exported pages are counted", lambda: source.migration.mig_count.v == exported(source))

    def fault():
        yield from tdh_export_unblockw(module, td=td, gpa=gpa_of(GFN))
        leaf = yield from hardware_walk(module, td, GFN)
        if leaf is not None and leaf[0] & W:
            yield module.memory.qword(DATA << PAGE_SHIFT).write_once(2)

    def export():
        bundle = MemoryBundle()
        yield from tdh_export_mem(module, td=td, gpa_list=listed(GFN), bundle=bundle)
        sent.keep(bundle)

    kernel.thread("fault", fault())
    kernel.thread("export", export())


def dirty(source):
    return sum(state.is_exported and state.is_dirty for _, _, state, _ in source.module.leaves(source.td))


def exported(source):
    return sum(state.is_exported for _, _, state, _ in source.module.leaves(source.td))


@pytest.mark.parametrize(
    "world", [live_export, blocked_export, fault_and_export], ids=lambda world: world.__name__
)
def test_no_write_is_lost(world):
    """Random orders; both outcomes of tracking are met."""
    report = explore(world, executions=80, seed=5)

    assert report.findings == []
    assert report.unmet == []


PLANTS = {
    "EXPORT.MEM does not ask for tracking": (
        live_export,
        lambda patch: patch.setattr(Epoch, "is_tlb_tracked", lambda _unit, _bepoch: True),
    ),
    "BLOCKW leaves write permission": (
        blocked_export,
        lambda patch: patch.setattr(SeptState.BLOCKEDW, "rwx", 7),
    ),
    "UNBLOCKW does not count": (
        fault_and_export,
        lambda patch: patch.setattr(SeptState.EXPORTED_BLOCKEDW, "is_exported", False),
    ),
    "UNBLOCKW makes no dirty page": (
        fault_and_export,
        lambda patch: patch.setattr(
            unblockw_file, "next_state", lambda _leaf, state: state if state.is_exported else SeptState.MAPPED
        ),
    ),
}


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_a_planted_error_is_found(plant, monkeypatch):
    """Each guard taken away loses a write, or a count."""
    world, put = PLANTS[plant]
    put(monkeypatch)

    assert explore(world, executions=200, seed=5, stop_at_first=True).findings, plant


def two_streams(kernel):
    """Two exports, of two pages on two streams or on one, and a token."""
    source = watched(kernel, pages=2)
    source.block(GFN, GFN + 1)
    module, td = source.module, source.td
    met = {
        (Status.TDX_OPERAND_BUSY, 171): "migsc_busy",
        (Status.TDX_OPERAND_BUSY, 173): "mig_busy",
        (Status.TDX_OPERAND_BUSY, 172): "op_state_busy",
    }
    for what in ("migsc_busy", "mig_busy", "op_state_busy", "both_streams"):
        kernel.sometimes(what)
    at_work = []

    def call(steps, stream=None):
        at_work.append(stream)
        if stream is not None and {0, 1} <= set(at_work):
            kernel.reached("both_streams")
        ret = yield from steps
        at_work.remove(stream)
        kernel.reached(met.get((ret.status, ret.operand), "done"))

    def export(n, stream):
        return call(tdh_export_mem(module, td=td, gpa_list=listed(GFN + n), stream=stream), stream)

    kernel.thread("first", export(0, 0))
    kernel.thread("second", export(1, 1))
    kernel.thread("third", export(0, 0))
    kernel.thread("track", call(tdh_export_track(module, td=td)))


def test_streams_run_together_and_tokens_alone():
    """Who loses is told which lock it was. MIG never is: TRACK takes OP_STATE exclusive first, which every holder of MIG has shared."""
    report = explore(two_streams, executions=120, seed=2)

    assert report.findings == []
    assert report.unmet == ["mig_busy"]
