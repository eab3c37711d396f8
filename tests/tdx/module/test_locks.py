"""Locks: the words, the table of who takes what, and what losers see."""

import csv
from pathlib import Path

import pytest

from sim import Kernel
from tdx.module import (
    Operand,
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
from tdx.module.sept_states import OpState
from tdx.module.septe import TDEL
from tdx.module.sharex import HP, HP_EXCLUSIVE, HP_READER, Sharex, SharexHp
from tests.tdx.module.test_guest import septe_cell
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


def lock_of(world, what, name):
    """The word that the table's object stands for, and what a shared holder adds to it; None if it is not a word here."""
    module = world.module
    tdcs = module.tdcs(world.td)
    new = DATA + 9
    words = {
        "TDR.PAMT": module.pamt.entry(world.td.tdr_pfn, 1).lock,
        "TDCS.OP_STATE": tdcs.op_state_lock,
        "SEPT_TREE": tdcs.sept_tree_lock,
        "TD_EPOCH": tdcs.epoch_lock,
        "KOT": module.kot.lock,
        "NEW_PAGE.PAMT": module.pamt.entry(new, 1).lock,
        "NEW_SEPT_PAGE.PAMT": module.pamt.entry(new, 1).lock,
        "NEW_TDVPR.PAMT": module.pamt.entry(new, 1).lock,
        "TDVPR.PAMT": module.pamt.entry(world.tdvprs[0], 1).lock,
        "PAGE.PAMT": module.pamt.entry(new if "WBINVD" in name else DATA, 1).lock,
    }
    return words.get(what)


def table():
    with (Path(__file__).parent / "data" / "seamcall_locks.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if (
                row["seamcall"] in BUILT
                and row["mode"] in ("shared", "exclusive")
                and "L2" not in row["object"]
            ):
                yield pytest.param(row, id=f"{row['seamcall']}-{row['object']}")


@pytest.mark.parametrize("row", list(table()))
def test_a_taken_lock_is_busy_with_the_operand_of_the_table(row):
    """Held exclusive, every call of the table fails on it; held shared, only those that want it exclusive."""
    name, what = row["seamcall"], row["object"]
    call, operands = BUILT[name]
    for mode in ("exclusive", "shared"):
        world = World(finalize=False)
        world.module.pamt.entry(DATA, 1)
        if name not in ("TDH.VP.CREATE", "TDH.MNG.VPFLUSHDONE"):
            world.aug()
        if name == "TDH.MEM.RANGE.UNBLOCK":
            assert world.on(tdh_mem_range_block).ok
        world.module.tdcs(world.td).op_state = OpState.INITIALIZED
        if what == "SEPT_ENTRY":
            if mode == "shared":
                continue
            lock = septe_cell(world, operands["gpa"] >> 12) if operands["level"] == 1 else None
            if lock is None:
                page = world.module.sept_pages
                lock = next(page[pfn] for pfn in page if page[pfn].level == 2).septe(GFN + 512)
            lock.v |= TDEL
        else:
            lock = lock_of(world, what, name)
            assert lock is not None, what
            lock.v = 1 if mode == "exclusive" else 4 if isinstance(lock, SharexHp) else 2
        before = lock.v
        extra = {} if name.startswith("TDH.PHYMEM") else {"td": world.td}
        if name == "TDH.VP.FLUSH":
            extra = {"tdvpr_pfn": world.tdvprs[0], "lp": world.lps[0]}
        ret = world.do(call, **extra, **operands)

        lost = mode == "exclusive" or row["mode"] == "exclusive"
        status, operand = row["error_on_busy"].split("|")
        if lost:
            assert (ret.status.name, ret.operand) == (status, Operand[operand])
        else:
            assert ret.status.name != status
            assert lock.v == before
        held = [
            cell.name
            for cell in (lock_of(world, other, name) for other in ("SEPT_TREE", "TDCS.OP_STATE", "TDR.PAMT"))
            if cell is not lock and cell.v & ~HP
        ]
        assert held == []


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
