"""The shortcut is none: a world that is written down equals one that is built by SEAMCALLs, frame by frame."""

import pytest

from tdx.module import (
    LogicalProcessor,
    OpState,
    SeptState,
    TdxModule,
    tdh_mem_page_add,
    tdh_mem_page_aug,
    tdh_mem_range_block,
    tdh_mem_sept_add,
    tdh_mem_track,
    tdh_mig_stream_create,
    tdh_mng_addcx,
    tdh_mng_create,
    tdh_mng_init,
    tdh_mng_key_config,
    tdh_vp_addcx,
    tdh_vp_create,
    tdh_vp_init,
)
from tdx.module.invariants import INVARIANTS
from tests.conformance.calls import CALLS
from tests.conformance.situation import EPOCH, Situation
from tests.conformance.world import HKID, PAGE, TDMR, World
from vcpu.addresses import (
    LEVELS,
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    PG_LEVEL_256T,
    PG_LEVEL_512G,
    Pfn,
    align_down,
    gpa_of,
)

READ = CALLS["TDH.MEM.SEPT.RD"]
BUILT = [
    (PG_LEVEL_4K, SeptState.FREE),
    (PG_LEVEL_4K, SeptState.MAPPED),
    (PG_LEVEL_4K, SeptState.BLOCKED),
    (PG_LEVEL_4K, SeptState.PENDING),
    (PG_LEVEL_4K, SeptState.PENDING_BLOCKED),
    (PG_LEVEL_2M, SeptState.PENDING),
    (PG_LEVEL_2M, SeptState.PENDING_BLOCKED),
    (PG_LEVEL_2M, SeptState.NL_MAPPED),
    (PG_LEVEL_2M, SeptState.NL_BLOCKED),
    (PG_LEVEL_1G, SeptState.NL_MAPPED),
    (PG_LEVEL_512G, SeptState.NL_BLOCKED),
    (PG_LEVEL_256T, SeptState.NL_MAPPED),
]


def picture(world_kernel, module, td, vcpu_pfn):
    """Everything that a call could look at, but for what time and earlier guests leave behind."""
    tdr = module.tdr(td)
    tdcs, vcpu = tdr.tdcs, module.vcpu(vcpu_pfn)
    hkid = module.kot.hkids[HKID]
    return {
        "pamt": [(e.pfn, e.level, e.kind, e.owner) for e in module.pamt.assigned()],
        "tdr": (tdr.fatal, tdr.lifecycle, tdr.keys_missing, tdr.tdcx, tdr.hkid, tdr.chldcnt.peek()),
        "hkid": (hkid.state, hkid.to_write_back),
        "tdcs": (
            *(tdcs.op_state, tdcs.attributes, tdcs.pending_ve_disable, tdcs.max_vcpus, tdcs.private_end),
            *(tdcs.num_vcpus.peek(), tdcs.num_assoc_vcpus.peek(), tdcs.epoch.peek(), tdcs.num_l2_vms),
        ),
        "root": (tdcs.root.pfn, tdcs.root.level),
        "streams": [tdcs.migration.stream(n).pfn for n in range(tdcs.migration.num_migs)],
        "vcpu": (vcpu.state.peek(), vcpu.assoc_lpid.peek(), vcpu.tdcx),
        "entries": [(gfn, level, int(entry)) for gfn, level, entry in module.entries(tdcs)],
        "tables": {pfn: (page.level, page.pfn, page.vm) for pfn, page in module.sept_pages.items()},
        "bepochs": [e.bepoch.peek() for e in module.pamt.assigned() if e.bepoch.peek() == EPOCH - 1],
        "held": [e.lock.peek() for e in module.pamt.assigned()],
    }


def by_seamcalls(like, level, state):
    """The same TD, on the frames of the world `like`, built by the calls that a host makes."""
    kernel = type(like.kernel)()
    module = TdxModule(kernel, tdmr=[TDMR])
    td, tdr, vcpu, lp = like.td, like.tdr, like.vcpu, LogicalProcessor(0)
    streams = [like.tdcs.migration.stream(n).pfn for n in range(2)]
    tables = list(like.module.sept_pages.values())
    inner = tables[-1].pfn if state in (SeptState.NL_MAPPED, SeptState.NL_BLOCKED) else None
    on = {"td": td, "gpa": gpa_of(like.gfn), "level": level}

    def done(ret):
        assert ret.ok, str(ret)

    def build():
        done((yield from tdh_mng_create(module, td=td, hkid=HKID)))
        done((yield from tdh_mng_key_config(module, td=td)))
        for pfn in tdr.tdcx:
            done((yield from tdh_mng_addcx(module, td=td, pfn=pfn)))
        options = {"attributes": like.tdcs.attributes, "gpaw": like.want.five_levels}
        done((yield from tdh_mng_init(module, td=td, **options)))
        for pfn in streams:
            done((yield from tdh_mig_stream_create(module, td=td, pfn=pfn)))
        done((yield from tdh_vp_create(module, td=td, tdvpr_pfn=vcpu.pfn)))
        for pfn in vcpu.tdcx:
            done((yield from tdh_vp_addcx(module, tdvpr_pfn=vcpu.pfn, pfn=pfn)))
        done((yield from tdh_vp_init(module, tdvpr_pfn=vcpu.pfn, lp=lp)))
        for table in tables:
            above = LEVELS[table.level + 1]
            gpa = gpa_of(align_down(like.gfn, above))
            done((yield from tdh_mem_sept_add(module, td=td, gpa=gpa, level=above, pfn=table.pfn)))
        if state in (SeptState.MAPPED, SeptState.BLOCKED):
            done((yield from tdh_mem_page_add(module, td=td, gpa=on["gpa"], pfn=Pfn(PAGE))))
        elif state is not SeptState.FREE and inner is None:
            done((yield from tdh_mem_page_aug(module, **on, pfn=Pfn(PAGE))))
        for epoch in range(1, EPOCH):
            if epoch == EPOCH - 1 and state.is_blocked:
                done((yield from tdh_mem_range_block(module, **on)))
            done((yield from tdh_mem_track(module, td=td)))

    kernel.prepare(build())
    return picture(kernel, module, td, vcpu.pfn)


@pytest.mark.parametrize(("level", "state"), BUILT)
def test_a_world_written_down_is_the_one_that_seamcalls_build(level, state):
    """Pages, tables, entries, counts, epochs and locks."""
    world = World(Situation(READ, level, state, OpState.INITIALIZED))
    written = picture(world.kernel, world.module, world.td, world.vcpu.pfn)
    built = by_seamcalls(world, level, state)
    if not state.is_blocked:  # nobody looks at BEPOCH of what was never blocked
        written["bepochs"] = built["bepochs"] = []

    assert built == written


@pytest.mark.parametrize("state", SeptState)
@pytest.mark.parametrize("level", [PG_LEVEL_4K, PG_LEVEL_2M, PG_LEVEL_1G])
def test_every_state_can_be_written_down_and_the_module_s_invariants_hold(level, state):
    """Also states that no call brings about at that level."""
    world = World(Situation(READ, level, state, OpState.INITIALIZED))

    assert world.module.peek_septe(world.td, world.gfn, level).state is state
    for text, invariant in INVARIANTS.items():
        assert invariant(world.module)() is True, text
