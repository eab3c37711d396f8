"""Worlds are written directly; here it is shown that SEAMCALLs build the same."""

import pytest

from sim import Kernel
from tdx.module import (
    OpState,
    TdxModule,
    tdh_mem_sept_add,
    tdh_mng_addcx,
    tdh_mng_create,
    tdh_mng_init,
    tdh_mng_key_config,
    tdh_vp_addcx,
    tdh_vp_create,
    tdh_vp_init,
)
from tdx.module.invariants import AT_REST
from tdx.module.objects import MIGRATABLE
from tdx.module.septe import FREE, SeptState
from tests.pairwise.calls import CALLS
from tests.pairwise.reach import MOVES, reachable
from tests.pairwise.states import LEVELS, State
from tests.pairwise.world import (
    FIRST_TDCX,
    GFN,
    HKID,
    TABLE_1G,
    TABLE_2M,
    TD,
    TDMR,
    TDVPRS,
    World,
    state_of,
)
from vcpu.addresses import LEVELS as SIZES
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_4K, align_down, gpa_of

LINE = {call.key: call for call in CALLS}
MOVE = dict(MOVES)
SLICE = [reachable(level, frozenset(("INITIALIZED", "RUNNABLE"))) for level in LEVELS]


def built(level):
    """A TD that is being built, with its vCPUs and the tables above the parent, by SEAMCALLs."""
    kernel = Kernel()
    module = TdxModule(kernel, tdmr=[TDMR])
    lps = World(Kernel(), State(level, "INITIALIZED", SeptState.FREE)).lps

    def do(steps):
        ret = kernel.prepare(steps)
        assert ret.ok, str(ret)

    do(tdh_mng_create(module, td=TD, hkid=HKID))
    do(tdh_mng_key_config(module, td=TD, package=0))
    for n in range(6):
        do(tdh_mng_addcx(module, td=TD, pfn=FIRST_TDCX + n))
    do(tdh_mng_init(module, td=TD, attributes=MIGRATABLE))
    for who, pfn in TDVPRS.items():
        do(tdh_vp_create(module, td=TD, tdvpr_pfn=pfn))
        for n in range(1, 6):
            do(tdh_vp_addcx(module, tdvpr_pfn=pfn, pfn=pfn + n))
        do(tdh_vp_init(module, tdvpr_pfn=pfn, lp=lps[who]))
    tables = {4: TABLE_1G, 3: TABLE_2M} if level == PG_LEVEL_4K else {4: TABLE_1G}
    for size, pfn in tables.items():
        gpa = gpa_of(align_down(GFN[level], SIZES[size]))
        do(tdh_mem_sept_add(module, td=TD, gpa=gpa, level=SIZES[size], pfn=pfn))
    return module


def structure(module):
    """Everything but numbers of epochs."""
    tdr = module.tdr(TD)
    tdcs = tdr.tdcs
    return {
        "pamt": [
            (page.pfn, page.level, page.kind, page.owner, page.lock.v) for page in module.pamt.assigned()
        ],
        "tables": {
            pfn: (page.level, {index: cell.v for index, cell in page.entries.items() if cell.v != FREE})
            for pfn, page in sorted(module.sept_pages.items())
        },
        "root": {index: cell.v for index, cell in tdcs.root.entries.items()},
        "tdr": (tdr.lifecycle, tdr.tdcx, tdr.chldcnt.v, tdr.keys_missing, tdr.fatal, tdr.hkid),
        "tdcs": (tdcs.op_state, tdcs.attributes, tdcs.private_end, tdcs.max_vcpus, tdcs.pending_ve_disable),
        "counts": (tdcs.num_vcpus.v, tdcs.num_assoc_vcpus.v, tdcs.epoch.v[1:], tdcs.hp_lock_timeout_ns),
        "locks": [lock.v for lock in (tdcs.sept_tree_lock, tdcs.epoch_lock, tdcs.op_state_lock)],
        "kot": {number: hkid.state for number, hkid in module.kot.hkids.items()},
        "vcpus": [(v.pfn, v.tdcx, v.state.v, v.assoc_lpid.v, v.inside, v.moving) for v in tdr.vcpus],
    }


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.short)
def test_seamcalls_build_the_initial_world(level):
    """Page by page, entry by entry, field by field."""
    direct = World(Kernel(), State(level, "INITIALIZED", SeptState.FREE)).module

    assert structure(direct) == structure(built(level))


@pytest.mark.parametrize("reach", SLICE, ids=["4K", "2M"])
def test_a_world_is_in_the_state_that_was_asked_for(reach):
    """And at rest: no rule of the module is broken by how it was built."""
    for state in reach.states:
        world = World(Kernel(), state)
        assert state_of(world) == state
        for text, invariant in AT_REST.items():
            assert invariant(world.module)() is True, (text, str(state))


@pytest.mark.parametrize("reach", SLICE, ids=["4K", "2M"])
def test_the_path_of_calls_leads_to_every_state(reach):
    """All in one world, from an initial one on; as many pages of each kind as in the world that is written directly."""
    for state in reach.states[::5]:
        world = World(Kernel(), initial_of(reach, state))
        for step in reach.path(state):
            if step in MOVE:
                assert MOVE[step](world)
            else:
                world.kernel.prepare(LINE[step].steps(world, "a"))
                world.take_another()
        assert state_of(world) == state, reach.path(state)
        assert kinds(world) == kinds(World(Kernel(), state))


def initial_of(reach, state):
    while (step := reach.first[state]) is not None:
        state = step.before
    return state


def kinds(world):
    pages = sorted((page.kind, page.level) for page in world.module.pamt.assigned())
    return (
        pages,
        world.tdr.chldcnt.v,
        OpState(world.tdcs.op_state),
        world.module.pamt.entry(0, PG_LEVEL_1G).lock.v,
    )
