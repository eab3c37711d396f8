"""Resizes against other calls, in every order, and against a running guest: the quirks of reference 14 are seen.

PROMOTE takes all children in one run here, so that there is one gap between their locks and the look at them.
"""

import pytest

from sim import Broken, explore
from tdx.module import (
    OpState,
    PageType,
    SeptState,
    Status,
    hardware_walk,
    tdg_mem_page_accept,
    tdh_mem_page_aug,
    tdh_mem_page_demote,
    tdh_mem_page_promote,
    tdh_mem_range_block,
    tdh_mem_sept_rd,
    tdh_mem_track,
)
from tdx.module.invariants import INVARIANTS
from tdx.module.leaves import tdh_mem_page_demote as demote_file
from tdx.module.leaves import tdh_mem_page_promote as promote_file
from tdx.module.profile import TDX_2_0
from tdx.module.watch import watch
from tests.litmus import test_independent_steps_commute as commute
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, Gfn, Pfn, gpa_of

BIG = Gfn(GFN + 512)
FREED = "sept_page_freed_under_walk"


def building(kernel, **options):
    """A TD that is being built, so that nothing needs tracking; its 2M leaf at BIG is PENDING."""
    world = World(kernel, finalize=False, vcpus=0, promote_step_children=512, **options)
    world.aug(BIG, DATA, PG_LEVEL_2M)
    return world


def demoted(kernel, **options):
    """The same with 512 4K leaves."""
    world = building(kernel, **options)
    assert on_now(world, tdh_mem_page_demote, pfn=world.page(), lp=world.lps[0]).ok
    return world


def on(world, call, gfn=BIG, level=PG_LEVEL_2M, **operands):
    return call(world.module, td=world.td, gpa=gpa_of(gfn), level=level, **operands)


def on_now(world, *args, **operands):
    return run(world.kernel, on(world, *args, **operands))


def explored(world_of, threads, look=lambda _world: None):
    """Every interleaving of a world's threads: what they return, what the host sees at BIG in the end, and `look`'s view."""
    seen = set()

    def make_world(kernel):
        world = world_of(kernel)
        rets = {}

        def thread(name, steps):
            rets[name] = yield from steps

        def note():
            entry = world.module.peek_septe(world.td, BIG, PG_LEVEL_2M)
            statuses = (rets[name].status for name in sorted(rets))
            seen.add((*statuses, entry.state, entry.has_host_priority, look(world)))
            return True

        for name, steps in threads(world).items():
            kernel.thread(name, thread(name, steps))
        kernel.sometimes(FREED)
        for text, invariant in INVARIANTS.items():
            kernel.at_end(text, invariant(world.module))
        kernel.at_end("seen", note)

    report = explore(make_world, strategy="dpor")
    assert report.exhausted
    assert report.findings == []
    return seen, FREED in report.met


def promote_and_read(child):
    return lambda world: {
        "promote": on(world, tdh_mem_page_promote, lp=world.lps[0]),
        "read": on(world, tdh_mem_sept_rd, Gfn(BIG + child), PG_LEVEL_4K),
    }


@pytest.mark.parametrize("child", [0, 5])
def test_quirk_11_host_priority_on_a_child_spoils_or_stains_a_merge(child):
    """A loser between lock and look makes the child differ; one on child 0 after that is copied into the merged leaf."""
    seen, _ = explored(demoted, promote_and_read(child))

    busy = Status.TDX_OPERAND_BUSY
    spoilt = Status.TDX_EPT_INVALID_PROMOTE_CONDITIONS, busy, SeptState.NL_MAPPED, False, None
    stained = Status.TDX_SUCCESS, busy, SeptState.PENDING, True, None
    assert spoilt in seen
    assert (stained in seen) is (child == 0)
    assert (Status.TDX_SUCCESS, busy, SeptState.PENDING, False, None) in seen
    assert (busy, Status.TDX_SUCCESS, SeptState.NL_MAPPED, False, None) in seen


def test_quirk_4_a_walker_may_try_a_page_that_is_gone():
    """The tree is shared: who passed the parent before finds its child locked for ever."""
    assert explored(demoted, promote_and_read(0))[1]


def test_quirk_4_needs_a_shared_tree():
    """2.0 takes it exclusive, and no child locks: nobody is below the parent."""
    seen, freed = explored(lambda kernel: demoted(kernel, profile=TDX_2_0), promote_and_read(0))

    assert not freed
    assert not any(stained for *_, stained, _ in seen)


def test_quirk_4_is_out_of_reach_where_tracking_is_wanted():
    """BLOCK takes the tree exclusive: no walker is left below when it returns, and none passes a blocked parent."""

    def running(kernel):
        world = demoted(kernel)
        world.module.tdcs(world.td).op_state = OpState.RUNNABLE
        return world

    def merge(world):
        ret = yield from on(world, tdh_mem_range_block)
        if ret.ok:
            yield from tdh_mem_track(world.module, td=world.td)
        return (yield from on(world, tdh_mem_page_promote, lp=world.lps[0]))

    seen, freed = explored(running, lambda world: promote_and_read(0)(world) | {"promote": merge(world)})

    assert not freed
    assert {promoted for promoted, *_ in seen} == {Status.TDX_SUCCESS, Status.TDX_GPA_RANGE_NOT_BLOCKED}


def test_who_waits_for_a_child_goes_on_when_its_page_is_gone():
    """The lock is never given back; a host that waits for it is woken all the same, and sees the merged leaf."""

    def patient(world):
        while True:
            ret = yield from on(world, tdh_mem_sept_rd, Gfn(BIG + 5), PG_LEVEL_4K)
            if not ret.is_busy:
                return ret
            lock, is_free = ret.awaited
            yield lock.wait_until(is_free)

    seen, _ = explored(demoted, lambda world: promote_and_read(5)(world) | {"read": patient(world)})

    assert {read for _, read, *_ in seen} == {Status.TDX_SUCCESS, Status.TDX_EPT_WALK_FAILED}


def test_a_loser_leaves_host_priority_on_all_children_of_a_split():
    """DEMOTE copies the word as it read it under its lock: a loser just before that is copied 512 times."""

    def stained(world):
        return sum(world.module.peek_septe(world.td, BIG + n).has_host_priority for n in range(512))

    def twice(world):
        return {
            name: on(world, tdh_mem_page_demote, pfn=world.page(), lp=world.lps[0]) for name in ("a", "b")
        }

    seen, _ = explored(building, twice, stained)

    assert {children for *_, children in seen} == {0, 512}


def test_the_page_of_a_split_is_used_once():
    """Two splits that are given one page: one of them finds it busy, or in use."""

    def two_leaves(kernel):
        world = building(kernel)
        world.aug(Gfn(BIG + 512), DATA + 512, PG_LEVEL_2M)
        return world

    def splits(world):
        lp, pfn = world.lps[0], world.page()
        return {
            "a": on(world, tdh_mem_page_demote, pfn=pfn, lp=lp),
            "b": on(world, tdh_mem_page_demote, Gfn(BIG + 512), pfn=pfn, lp=lp),
        }

    seen, _ = explored(two_leaves, splits)
    pairs = {frozenset(statuses) for *statuses, _, _, _ in seen}

    assert pairs == {
        frozenset((Status.TDX_SUCCESS, Status.TDX_OPERAND_BUSY)),
        frozenset((Status.TDX_SUCCESS, Status.TDX_PAGE_METADATA_INCORRECT)),
    }


def guest_beside_resizes(kernel):
    """A vCPU caches what it finds at BIG, while the host splits it and merges it again."""
    world = World(kernel, promote_step_children=512)
    world.aug(BIG, DATA, PG_LEVEL_2M)
    module, td, lp, vcpu = world.module, world.td, world.lps[0], world.vcpu()
    cached = []
    lp.flush_tlb = lambda _td: cached.clear()
    accept = tdg_mem_page_accept(
        module, td=td, vcpu=vcpu, gpa=gpa_of(BIG), level=PG_LEVEL_2M, interrupt_pending=lambda: False
    )
    assert run(kernel, accept).ret.ok

    def guest():
        found = yield from hardware_walk(module, td, BIG)
        if found is not None:
            entry, level = found
            cached[:] = [(entry.pfn_at(level), level)]
        for _ in range(6):
            yield module.state.read_once()
        return (yield from world.leave())

    def runs():
        for _ in range(4):
            yield from world.enter(guest)

    def resizes():
        for call, operands in ((tdh_mem_page_demote, {"pfn": world.page()}), (tdh_mem_page_promote, {})):
            yield from on(world, tdh_mem_range_block)
            for _ in range(3):
                yield from tdh_mem_track(module, td=td)
                ret = yield from on(world, call, lp=lp, **operands)
                if ret.ok:
                    kernel.reached(call.__name__)
                    break

    def sizes_agree():
        for pfn, level in cached if vcpu.inside and not vcpu.moving else ():
            page = module.pamt.leaf(pfn)
            if (page.kind, page.level) != (PageType.PT_REG, level):
                return Broken(pfn=hex(pfn), cached=level.short, page=page.level.short)
        return True

    kernel.thread("vcpu", runs())
    kernel.thread("host", resizes())
    kernel.always("a cached translation has its page's size", sizes_agree, kind="stale-tlb")
    for name in ("tdh_mem_page_demote", "tdh_mem_page_promote", "tracking_not_done"):
        kernel.sometimes(name)
    for text, invariant in INVARIANTS.items():
        kernel.at_end(text, invariant(module))
    return world


def watched(kernel):
    watch(kernel, guest_beside_resizes(kernel).module)


def test_no_translation_outlives_a_resize():
    """Invariant 3 of the reference; splits, merges and missing tracking are all met."""
    report = explore(guest_beside_resizes, executions=80, seed=1)

    assert report.findings == []
    assert report.unmet == []


def test_resizes_keep_every_rule_of_the_watch():
    """Each entry is locked and written by one thread, runs of children included; what they name agrees with the PAMT."""
    report = explore(watched, executions=12, seed=1)

    assert report.findings == []


@pytest.mark.parametrize("file", [demote_file, promote_file], ids=["DEMOTE", "PROMOTE"])
def test_a_resize_that_does_not_ask_for_tracking_is_found(file, monkeypatch):
    """Without the question a vCPU keeps a translation of the wrong size."""
    monkeypatch.setattr(file, "check_resizable", lambda *_: iter(()))
    report = explore(guest_beside_resizes, executions=100, seed=1, stop_at_first=True)

    assert [finding.kind for finding in report.findings] == ["stale-tlb"]


def test_steps_declared_independent_commute(monkeypatch):
    """Runs of children and whole PAMT ranges say what they touch: neighbours swapped give the same world."""

    def build(kernel, _scenario):
        world = demoted(kernel)
        for name, steps in promote_and_read(3)(world).items():
            kernel.thread(name, steps)
        kernel.thread("aug", on(world, tdh_mem_page_aug, Gfn(BIG + 512), pfn=Pfn(DATA + 512)))
        return world

    monkeypatch.setattr(commute, "build", build)
    swapped = list(commute.swaps(None, 8))

    assert len(swapped) > 15
    for one, two, there, back in swapped:
        assert there == back, (one, two)
