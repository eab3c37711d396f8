"""Locks: the order they are given back in, and what losers see. Who takes what is the conformance run's; the words, test_lock_words's."""

from sim import Kernel
from tdx.module import (
    TdExit,
    tdh_mem_page_add,
    tdh_mem_page_aug,
    tdh_mem_page_remove,
    tdh_mem_range_block,
    tdh_mem_range_unblock,
    tdh_mem_sept_add,
    tdh_mem_sept_rd,
    tdh_mem_track,
    tdh_mng_vpflushdone,
    tdh_mr_extend,
    tdh_mr_finalize,
    tdh_phymem_page_reclaim,
    tdh_phymem_page_wbinvd,
    tdh_vp_create,
    tdh_vp_flush,
)
from tdx.module.septe import TDEL
from tdx.module.sharex import HP, HP_EXCLUSIVE, HP_READER, Sharex, SharexHp
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, Pfn, gpa_of

MEMORY = {"gpa": gpa_of(GFN), "level": PG_LEVEL_4K}
BUILT = {
    "TDH.MEM.SEPT.ADD": (
        tdh_mem_sept_add,
        {"gpa": gpa_of(GFN + 512), "level": PG_LEVEL_2M, "pfn": Pfn(DATA + 9)},
    ),
    "TDH.MEM.SEPT.RD": (tdh_mem_sept_rd, MEMORY),
    "TDH.MEM.PAGE.ADD": (tdh_mem_page_add, {"gpa": gpa_of(GFN + 1), "pfn": Pfn(DATA + 9)}),
    "TDH.MEM.PAGE.AUG": (tdh_mem_page_aug, {**MEMORY, "gpa": gpa_of(GFN + 1), "pfn": Pfn(DATA + 9)}),
    "TDH.MEM.PAGE.REMOVE": (tdh_mem_page_remove, MEMORY),
    "TDH.MEM.RANGE.BLOCK": (tdh_mem_range_block, MEMORY),
    "TDH.MEM.RANGE.UNBLOCK": (tdh_mem_range_unblock, MEMORY),
    "TDH.MEM.TRACK": (tdh_mem_track, {}),
    "TDH.MR.EXTEND": (tdh_mr_extend, {"gpa": gpa_of(GFN)}),
    "TDH.MR.FINALIZE": (tdh_mr_finalize, {}),
    "TDH.MNG.VPFLUSHDONE": (tdh_mng_vpflushdone, {}),
    "TDH.VP.CREATE": (tdh_vp_create, {"tdvpr_pfn": Pfn(DATA + 9)}),
    "TDH.VP.FLUSH": (tdh_vp_flush, {}),
    "TDH.PHYMEM.PAGE.RECLAIM": (tdh_phymem_page_reclaim, {"pfn": Pfn(DATA)}),
    "TDH.PHYMEM.PAGE.WBINVD": (tdh_phymem_page_wbinvd, {"pfn": Pfn(DATA + 9), "hkid": 32}),
}


def step(access, kernel=None):
    """One access, alone."""

    def body():
        return (yield access)

    return run(kernel or Kernel(), body())


def test_a_failed_reader_is_wiped_with_the_exclusive_holder():
    """sharex: the failed attempt leaves its count, the release wipes it."""
    lock = Sharex("lock", 0)
    assert step(lock.try_exclusive()) == 0
    assert step(lock.try_shared()) & 1
    assert lock.v == 3
    step(lock.release_exclusive())
    assert lock.v == 0


def test_host_priority_is_left_by_losers_and_taken_by_winners():
    """sharex_hp: HP survives the release, and goes with the next host call that succeeds."""
    lock = SharexHp("lock", 0)
    assert step(lock.try_exclusive()) == 0
    assert step(lock.try_shared()) & HP_EXCLUSIVE
    assert lock.v & HP
    step(lock.release_exclusive())
    assert lock.v == HP
    assert not step(lock.try_shared()) & HP_EXCLUSIVE
    assert not lock.v & HP
    assert step(lock.try_exclusive()) & ~HP
    step(lock.release_shared())
    assert lock.v == HP
    assert not step(lock.try_exclusive()) & ~HP
    assert lock.v == 1


def test_an_explicit_walk_meets_a_large_page_s_lock():
    """A 4K walk fails where somebody holds the 2M entry, drops what it took, and leaves priority there; implicit ones pass."""
    world = World()
    pamt = world.module.pamt
    large, small = pamt.entry(DATA, 2).lock, pamt.entry(DATA + 3, 1).lock
    held = pamt.entry(DATA, 3).lock.v

    step(large.try_exclusive())
    assert str(world.on(tdh_mem_page_aug, pfn=Pfn(DATA + 3))) == "TDX_OPERAND_BUSY|R8"
    assert (pamt.entry(DATA, 3).lock.v, small.v) == (held, 0)
    assert step(small.try_exclusive()) == 0
    step(small.release_exclusive())
    assert large.v == HP | 1 | HP_READER
    step(large.release_exclusive())
    assert large.v == HP
    assert world.on(tdh_mem_page_aug, pfn=Pfn(DATA + 3)).ok
    assert (large.v, small.v) == (0, 0)


def test_a_large_page_s_walk_is_promoted_only_alone():
    """AUG of 2M takes the 2M entry shared and then promotes it: another reader makes it busy, and is not disturbed."""
    world = World()
    large = world.module.pamt.entry(DATA, 2).lock

    step(large.try_shared())
    ret = world.on(tdh_mem_page_aug, GFN + 512, PG_LEVEL_2M, pfn=Pfn(DATA))
    assert str(ret) == "TDX_OPERAND_BUSY|R8"
    assert large.v == HP_READER | HP
    step(large.release_shared())
    assert world.on(tdh_mem_page_aug, GFN + 512, PG_LEVEL_2M, pfn=Pfn(DATA)).ok
    assert large.v == 0


def test_a_running_vcpu_keeps_its_td():
    """While it is inside, calls that need the TDR exclusive are busy, and OP_STATE is free."""
    world = World()
    seen = []

    def guest():
        seen.append((yield from tdh_mng_vpflushdone(world.module, td=world.td)))
        seen.append((yield world.module.tdcs(world.td).op_state_lock.read_once()))
        return TdExit.external_interrupt()

    run(world.kernel, world.enter(guest))
    assert str(seen[0]) == "TDX_OPERAND_BUSY|RCX"
    assert seen[1] == 0


def test_locks_are_given_back_in_reverse_order():
    """Last taken, first let go, in every call; only an S-EPT entry may go before, by the write that commits or by itself."""
    for name, (call, operands) in BUILT.items():
        world = World(finalize=False)
        if name not in ("TDH.VP.CREATE", "TDH.MNG.VPFLUSHDONE"):
            world.aug()
        if name == "TDH.MEM.RANGE.UNBLOCK":
            assert world.on(tdh_mem_range_block).ok
        taken, given, committed = [], [], []

        def watch(_kernel, _thread, access, taken=taken, given=given, committed=committed):
            what = str(access)
            if what.startswith(("try ", "lock entry")):
                taken.append(access.target.name)
            elif what.startswith("unlock"):
                given.append(access.target.name)
            elif what.startswith("write sept") and access.target.name in taken and not access.new & TDEL:
                committed.append(access.target.name)

        world.kernel.check(watch)
        extra = {} if name.startswith("TDH.PHYMEM") else {"td": world.td}
        if name == "TDH.VP.FLUSH":
            extra = {"tdvpr_pfn": world.tdvprs[0], "lp": world.lps[0]}
        world.do(call, **extra, **operands)

        entries = [lock for lock in taken if lock.startswith("sept[")]
        assert entries == committed + [lock for lock in given if lock in entries], name
        assert [lock for lock in reversed(taken) if lock not in entries] == [
            lock for lock in given if lock not in entries
        ], name
        assert taken, name
