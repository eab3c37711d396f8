"""Searches: whatever the order, the module keeps its invariants; and an error planted in it is found."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

import tdx.module
from sim import explore
from tdx.module import (
    SeptState,
    Status,
    tdg_mem_page_accept,
    tdh_mem_page_aug,
    tdh_mem_page_remove,
    tdh_mem_range_block,
    tdh_mem_track,
)
from tdx.module import guest_lock as guest_lock_file
from tdx.module import locks as locks_file
from tdx.module import pamt as pamt_file
from tdx.module.invariants import INVARIANTS, cached_pages_are_owned
from tdx.module.leaves import tdh_mem_page_remove as remove_file
from tdx.module.objects import Epoch
from tdx.module.profile import TDX_1_5_01
from tdx.module.septe import make
from tdx.module.status import ModuleShutdown
from tests.tdx.module.worlds import DATA, GFN, World
from vcpu.addresses import PG_LEVEL_4K, Pfn, gpa_of

GPA = gpa_of(GFN)


def watch(world, statuses):
    """All invariants, also that of the cached translation that the guest below makes."""
    for name, invariant in INVARIANTS.items():
        world.kernel.always(name, invariant(world.module))
        world.kernel.at_end(name, invariant(world.module))
    world.cached = []
    world.kernel.always(
        "a cached page is its TD's",
        cached_pages_are_owned(world.module, lambda: world.cached),
        kind="stale-tlb",
    )
    for status in statuses:
        world.kernel.sometimes(status)


def guest_of(world, tries=3, stay=0):
    """A guest that accepts a page, and has it in its LP's TLB for `stay` more steps and until it leaves."""
    module, td = world.module, world.td
    world.lps[0].flush_tlb = lambda _td: world.cached.clear()

    def guest():
        result = yield from tdg_mem_page_accept(
            module, td=td, vcpu=world.vcpu(), gpa=GPA, level=PG_LEVEL_4K, interrupt_pending=lambda: False
        )
        if result.ret is not None and result.ret.status in (
            Status.TDX_SUCCESS,
            Status.TDX_PAGE_ALREADY_ACCEPTED,
        ):
            entry = module.peek_septe(td, GFN)
            if entry.state is SeptState.MAPPED and not entry.is_locked:
                world.cached[:] = [(td, DATA, PG_LEVEL_4K)]
        for _ in range(stay):
            yield module.state.read_once()
        return (yield from world.leave())

    def vcpu():
        for _ in range(tries):
            yield from world.enter(guest)
            world.cached.clear()

    return vcpu()


def race(kernel):
    """AUG against ACCEPT against BLOCK, TRACK, REMOVE."""
    world = World(kernel)
    watch(
        world,
        ["sept_entry_busy", "sept_tree_busy", "host_priority_won", "tracking_not_done", "td_epoch_busy"],
    )
    operands = {"td": world.td, "gpa": GPA, "level": PG_LEVEL_4K}

    def adder():
        for _ in range(3):
            yield from tdh_mem_page_aug(world.module, **operands, pfn=Pfn(DATA))

    def remover():
        for _ in range(3):
            yield from tdh_mem_range_block(world.module, **operands)
            yield from tdh_mem_track(world.module, td=world.td)
            yield from tdh_mem_page_remove(world.module, **operands)

    kernel.thread("vcpu", guest_of(world))
    kernel.thread("adder", adder())
    kernel.thread("remover", remover())


def test_a_race_of_everything_keeps_the_invariants():
    """Random orders; every kind of busy is met."""
    report = explore(race, executions=400, seed=3)

    assert report.findings == []
    assert report.unmet == []
    assert report.complete == 400


def accept_race(kernel):
    """BLOCK and TRACK and REMOVE of an accepted page, while the guest uses it."""
    world = World(kernel)
    world.aug()
    watch(world, [])
    operands = {"td": world.td, "gpa": GPA, "level": PG_LEVEL_4K}

    def remover():
        yield from tdh_mem_range_block(world.module, **operands)
        yield from tdh_mem_track(world.module, td=world.td)
        for _ in range(3):
            yield from tdh_mem_page_remove(world.module, **operands)

    kernel.thread("vcpu", guest_of(world, tries=1, stay=60))
    kernel.thread("remover", remover())


PLANTS = {
    "REMOVE does not ask for tracking": lambda patch: patch.setattr(
        Epoch, "is_tlb_tracked", lambda _u, _b: True
    ),
    "REMOVE forgets the page's owner": lambda patch: patch.setattr(
        pamt_file.PamtEntry, "free", lambda _e: None
    ),
    "the guest ignores the entry's lock": lambda patch: patch.setattr(guest_lock_file, "TDEL", 0),
    "an entry stays locked": lambda patch: patch.setattr(guest_lock_file, "unlocks", lambda word: word),
    "the host ignores the entry's lock": lambda patch: patch.setattr(locks_file, "TDEL", 0),
    "REMOVE leaves the entry": lambda patch: patch.setattr(
        remove_file, "make", lambda _state: make(SeptState.MAPPED, DATA)
    ),
}


@pytest.mark.parametrize("plant", sorted(PLANTS))
def test_a_planted_error_is_found(plant, monkeypatch):
    """Take a guard away, and the search finds what it guarded, or the module itself does and shuts down."""
    PLANTS[plant](monkeypatch)
    worlds = (accept_race, race)
    try:
        found = any(explore(world, executions=400, seed=1, stop_at_first=True).findings for world in worlds)
    except ModuleShutdown:
        found = True

    assert found, plant


def test_the_same_seed_gives_the_same_search():
    """No hidden order: two searches make the same steps."""
    first, second = (explore(race, executions=40, seed=9) for _ in range(2))

    assert (first.steps, first.met) == (second.steps, second.met)


def test_without_quirk_2_a_host_that_lost_to_accept_has_priority():
    """TDHP set while ACCEPT holds the entry survives its write only when the quirk is off."""
    for quirk in (True, False):
        left = set()

        def world_of(kernel, quirk=quirk, left=left):
            world = World(kernel, profile=replace(TDX_1_5_01, writes_drop_tdhp=quirk))
            world.aug()

            def blocker():
                ret = yield from tdh_mem_range_block(world.module, td=world.td, gpa=GPA, level=PG_LEVEL_4K)
                world.lost = ret.is_busy

            kernel.thread("vcpu", guest_of_once(world))
            kernel.thread("blocker", blocker())
            world.cached = []
            kernel.at_end(
                "kept", lambda: left.add((world.lost, bool(world.module.peek_septe(world.td, GFN) >> 52 & 1)))
            )

        explore(world_of, executions=300, seed=2)
        assert (True, True) in left  # both: the moment between write and unlock keeps it too
        assert ((True, False) in left) is quirk


def guest_of_once(world):
    return tdg_mem_page_accept(
        world.module,
        td=world.td,
        vcpu=world.vcpu(),
        gpa=GPA,
        level=PG_LEVEL_4K,
        interrupt_pending=lambda: False,
    )


def test_the_module_imports_sim_and_addresses_only():
    """It is the other side of the trust boundary."""
    root = Path(tdx.module.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name.split(".")[0] in ("vcpu", "mmu", "tdx", "scenarios"):
                    assert name == "vcpu.addresses" or name.startswith("tdx.module"), (path.name, name)
