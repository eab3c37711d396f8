"""A TD from birth to death, with every page accounted for."""

import pytest

from sim import Kernel
from tdx.module import (
    LogicalProcessor,
    Operand,
    PageType,
    Registers,
    SeptState,
    Status,
    Td,
    TdExit,
    TdxModule,
    dispatch,
    tdh_mem_page_add,
    tdh_mem_page_aug,
    tdh_mem_page_remove,
    tdh_mem_range_block,
    tdh_mem_range_unblock,
    tdh_mem_sept_add,
    tdh_mem_sept_rd,
    tdh_mem_track,
    tdh_mng_addcx,
    tdh_mng_create,
    tdh_mng_init,
    tdh_mng_key_config,
    tdh_mng_key_freeid,
    tdh_mng_vpflushdone,
    tdh_mr_extend,
    tdh_mr_finalize,
    tdh_phymem_cache_wb,
    tdh_phymem_page_reclaim,
    tdh_phymem_page_wbinvd,
    tdh_vp_enter,
    tdh_vp_flush,
)
from tdx.module.invariants import INVARIANTS
from tdx.module.objects import DEBUG, FLEXIBLE_PENDING_VE, GPAW, MIGRATABLE, SEPT_VE_DISABLE
from tdx.module.sept_states import OpState
from tests.tdx.module.worlds import DATA, GFN, TDMR, World, run
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_2M, PG_LEVEL_4K, Gpa, Pfn, gpa_of


def test_a_td_lives_and_every_page_comes_back():
    """Build, add, extend, finalize, enter, AUG, flush, tear down in Intel's order; at the end nothing is assigned."""
    world = World(finalize=False, packages=2)
    module, td, do = world.module, world.td, world.do
    for name, invariant in INVARIANTS.items():
        world.kernel.always(name, invariant(module))
    assert do(tdh_mem_page_add, td=td, gpa=gpa_of(GFN), pfn=Pfn(DATA)).ok
    for chunk in range(16):
        assert do(tdh_mr_extend, td=td, gpa=Gpa(gpa_of(GFN) + 256 * chunk)).ok
    assert do(tdh_mr_finalize, td=td).ok
    assert run(world.kernel, world.enter(world.leave)).ok
    world.aug(GFN + 1, DATA + 1)
    world.aug(GFN + 512, DATA + 512, PG_LEVEL_2M)
    assert [state for _, _, state, _ in module.leaves(td)] == [
        SeptState.MAPPED,
        SeptState.PENDING,
        SeptState.PENDING,
    ]

    assert do(tdh_mng_vpflushdone, td=td).status is Status.TDX_FLUSHVP_NOT_DONE
    assert do(tdh_vp_flush, tdvpr_pfn=world.tdvprs[0], lp=world.lps[0]).ok
    assert (
        do(tdh_vp_flush, tdvpr_pfn=world.tdvprs[0], lp=world.lps[0]).status is Status.TDX_VCPU_NOT_ASSOCIATED
    )
    assert do(tdh_phymem_cache_wb).status is Status.TDX_NO_HKID_READY_TO_WBCACHE
    assert do(tdh_mng_vpflushdone, td=td).ok
    assert do(tdh_phymem_cache_wb, package=0).ok
    assert do(tdh_mng_key_freeid, td=td).status is Status.TDX_WBCACHE_NOT_COMPLETE
    assert do(tdh_phymem_cache_wb, package=1).ok
    assert do(tdh_phymem_page_reclaim, pfn=Pfn(DATA)).status is Status.TDX_LIFECYCLE_STATE_INCORRECT
    assert do(tdh_mng_key_freeid, td=td).ok
    assert do(tdh_phymem_page_reclaim, pfn=td.tdr_pfn).status is Status.TDX_TD_ASSOCIATED_PAGES_EXIST
    owned = [entry for entry in module.pamt.assigned() if entry.kind is not PageType.PT_TDR]
    assert sum(entry.level.pages for entry in owned) == module.chldcnt(td)
    for entry in owned:
        assert do(tdh_phymem_page_reclaim, pfn=entry.pfn).ok
    assert module.chldcnt(td) == 0
    assert do(tdh_phymem_page_reclaim, pfn=td.tdr_pfn).ok
    assert do(tdh_phymem_page_wbinvd, pfn=td.tdr_pfn, hkid=0).ok

    assert module.pamt.assigned() == []
    assert world.kernel.findings == []
    assert do(tdh_mng_create, td=td, hkid=32).ok  # page and key id may be used again


def test_calls_out_of_order_are_refused_with_intel_s_status():
    """Lifecycle, keys, op_state and operands, each with the status the reference names."""
    kernel = Kernel()
    module = TdxModule(kernel, tdmr=[TDMR], packages=2)
    td = Td(Pfn(TDMR[0]))

    def answer(call, **operands):
        ret = run(kernel, call(module, **operands))
        return ret.status, ret.operand

    assert answer(tdh_mng_addcx, td=td, pfn=Pfn(DATA)) == (Status.TDX_PAGE_METADATA_INCORRECT, Operand.RDX)
    assert answer(tdh_mng_create, td=td, hkid=1) == (Status.TDX_OPERAND_INVALID, Operand.RDX)
    assert answer(tdh_mng_create, td=Td(Pfn(5)), hkid=32) == (
        Status.TDX_OPERAND_ADDR_RANGE_ERROR,
        Operand.RCX,
    )
    assert answer(tdh_mng_create, td=Td(Pfn(1 << 35)), hkid=32) == (Status.TDX_OPERAND_INVALID, Operand.RCX)
    assert answer(tdh_mng_create, td=td, hkid=32)[0] is Status.TDX_SUCCESS
    assert answer(tdh_mng_create, td=Td(Pfn(DATA)), hkid=32)[0] is Status.TDX_HKID_NOT_FREE
    assert answer(tdh_mng_addcx, td=td, pfn=Pfn(DATA))[0] is Status.TDX_TD_KEYS_NOT_CONFIGURED
    assert answer(tdh_mng_key_config, td=td, package=0)[0] is Status.TDX_SUCCESS
    assert answer(tdh_mng_key_config, td=td, package=0)[0] is Status.TDX_KEY_CONFIGURED
    assert answer(tdh_mng_key_config, td=td, package=1)[0] is Status.TDX_SUCCESS
    assert answer(tdh_mng_key_config, td=td, package=1)[0] is Status.TDX_LIFECYCLE_STATE_INCORRECT
    assert answer(tdh_mem_track, td=td)[0] is Status.TDX_TDCS_NOT_ALLOCATED
    for n in range(9):
        assert answer(tdh_mng_addcx, td=td, pfn=Pfn(DATA + n))[0] is Status.TDX_SUCCESS
    assert answer(tdh_mng_addcx, td=td, pfn=Pfn(DATA + 9))[0] is Status.TDX_TDCX_NUM_INCORRECT
    assert answer(tdh_mem_track, td=td)[0] is Status.TDX_OP_STATE_INCORRECT


def test_operands_of_memory_calls_are_checked_in_order():
    """Page_info, privateness, walk, new page; details come back in RCX and RDX."""
    world = World()
    aug = tdh_mem_page_aug

    def answer(gfn, level, pfn, call=aug):
        ret = world.on(call, gfn, level, pfn=pfn)
        return ret.status, ret.operand

    assert answer(1 << 35, PG_LEVEL_4K, Pfn(DATA)) == (Status.TDX_OPERAND_INVALID, Operand.RCX)
    assert answer(0, PG_LEVEL_4K, Pfn(DATA)) == (Status.TDX_EPT_WALK_FAILED, Operand.RCX)
    assert answer(GFN, PG_LEVEL_4K, Pfn(1)) == (Status.TDX_OPERAND_ADDR_RANGE_ERROR, Operand.R8)
    assert answer(GFN, PG_LEVEL_4K, world.tdcx[0]) == (Status.TDX_PAGE_METADATA_INCORRECT, Operand.R8)
    assert answer(GFN + 512, PG_LEVEL_2M, Pfn(DATA + 1)) == (Status.TDX_OPERAND_INVALID, Operand.R8)
    world.aug(GFN, DATA + 5)
    assert answer(GFN + 512, PG_LEVEL_2M, Pfn(DATA)) == (Status.TDX_PAGE_METADATA_INCORRECT, Operand.R8)
    assert answer(GFN, PG_LEVEL_2M, Pfn(DATA), tdh_mem_sept_add)[0] is Status.TDX_EPT_ENTRY_STATE_INCORRECT
    world.aug(GFN + 512, DATA + 512, PG_LEVEL_2M)
    below = world.on(tdh_mem_sept_rd, GFN + 513)
    assert (below.status, below.rdx) == (Status.TDX_EPT_WALK_FAILED, 1 | SeptState.PENDING.public << 8)
    shown = world.on(tdh_mem_sept_rd, GFN)
    assert (shown.ok, shown.rdx) == (True, SeptState.PENDING.public << 8)
    assert shown.rcx >> 12 & 0xFFFFF == DATA + 5


def test_a_page_is_removed_after_block_track_and_exit_only():
    """NOT_BLOCKED, then TRACKING_NOT_DONE until TRACK and until the vCPU that was inside has left."""
    world = World()
    kernel, module, td = world.kernel, world.module, world.td
    world.aug()
    answers = []
    signal = kernel.cell("may leave", 0)

    def guest():
        yield signal.wait_until(bool)
        return (yield from world.leave())

    def host():
        yield module.tdcs(td).epoch.wait_until(lambda unit: unit.refcount1 == 1)
        for call in (tdh_mem_page_remove, tdh_mem_range_block, tdh_mem_range_block, tdh_mem_page_remove):
            answers.append((yield from call(module, td=td, gpa=gpa_of(GFN), level=PG_LEVEL_4K)))  # noqa: PERF401 - a comprehension cannot yield
        answers.append((yield from tdh_mem_track(module, td=td)))
        answers.append((yield from tdh_mem_page_remove(module, td=td, gpa=gpa_of(GFN), level=PG_LEVEL_4K)))
        answers.append((yield from tdh_mem_range_unblock(module, td=td, gpa=gpa_of(GFN), level=PG_LEVEL_4K)))
        answers.append((yield from tdh_mem_track(module, td=td)))
        yield signal.write_once(1)
        yield module.tdcs(td).epoch.wait_until(lambda unit: unit.refcount1 == 0)
        answers.append((yield from tdh_mem_page_remove(module, td=td, gpa=gpa_of(GFN), level=PG_LEVEL_4K)))

    kernel.always("refcounts", INVARIANTS["a REFCOUNT counts the vCPUs inside"](module))
    kernel.thread("vcpu", world.enter(guest))
    kernel.thread("host", host())
    kernel.execute()

    assert kernel.findings == []
    assert [str(answer) for answer in answers] == [
        "TDX_GPA_RANGE_NOT_BLOCKED|RCX",
        "TDX_SUCCESS",
        "TDX_GPA_RANGE_ALREADY_BLOCKED|RCX",
        "TDX_TLB_TRACKING_NOT_DONE|RCX",
        "TDX_SUCCESS",
        "TDX_TLB_TRACKING_NOT_DONE|RCX",
        "TDX_TLB_TRACKING_NOT_DONE|SEPT_TREE",
        "TDX_PREVIOUS_TLB_EPOCH_BUSY",
        "TDX_SUCCESS",
    ]
    assert answers[-1].rcx == DATA << 12
    assert module.pamt_type(DATA) is PageType.PT_NDA
    assert kernel.counters["tracking_not_done"] == 3
    assert kernel.counters["seamcall.TDH.MEM.PAGE.REMOVE.TDX_TLB_TRACKING_NOT_DONE"] == 2


def test_two_tracks_suffice_without_looking_at_refcounts():
    """A page blocked at epoch e is tracked at e + 2, as nobody of epoch e can be inside then."""
    world = World()
    world.aug()
    assert world.on(tdh_mem_range_block).ok
    assert world.do(tdh_mem_track, td=world.td).ok
    assert world.do(tdh_mem_track, td=world.td).ok
    assert world.on(tdh_mem_range_unblock).ok
    assert world.state() is SeptState.PENDING
    assert world.on(tdh_mem_range_block, GFN, PG_LEVEL_2M).ok
    assert world.state(GFN, 2) is SeptState.NL_BLOCKED
    assert world.on(tdh_mem_page_remove).status is Status.TDX_EPT_WALK_FAILED


def test_entering_flushes_when_it_must():
    """After a TRACK by an old association, and after another vCPU ran on the LP; not otherwise."""
    world = World(vcpus=2)
    flushed = []
    world.lps[0].flush_tlb = flushed.append
    enter = lambda n=0: run(world.kernel, world.enter(world.leave, n))  # noqa: E731

    enter()
    assert len(flushed) == 2  # first epoch, and another TDVPR than none
    enter()
    assert len(flushed) == 2
    assert world.do(tdh_mem_track, td=world.td).ok
    enter()
    assert len(flushed) == 3
    assert world.do(tdh_vp_flush, tdvpr_pfn=world.tdvprs[1], lp=world.lps[1]).ok
    run(world.kernel, world.enter(world.leave, 1, world.lps[0]))
    assert len(flushed) == 4
    enter()
    assert len(flushed) == 5


def test_a_vcpu_runs_on_one_lp():
    """Associated elsewhere: VCPU_ASSOCIATED. Running elsewhere: VCPU_STATE_INCORRECT, and VP.FLUSH is busy."""
    world = World()
    answers = []

    def guest():
        for call, operands in (
            (tdh_vp_enter, {"lp": LogicalProcessor(7), "guest": world.leave}),
            (tdh_vp_flush, {"lp": world.lps[0]}),
        ):
            answers.append((yield from call(world.module, tdvpr_pfn=world.tdvprs[0], **operands)))
        answers.append((yield from tdh_mr_finalize(world.module, td=world.td)))
        return (yield from world.leave())

    assert run(world.kernel, world.enter(guest)).ok
    answers.append(run(world.kernel, world.enter(world.leave, 0, LogicalProcessor(7))))

    assert [str(answer) for answer in answers] == [
        "TDX_VCPU_STATE_INCORRECT",
        "TDX_OPERAND_BUSY|RCX",
        "TDX_OPERAND_BUSY|RCX",
        "TDX_VCPU_ASSOCIATED",
    ]


def test_remove_leaves_removed_behind_during_an_import():
    """And AUG takes REMOVED as it takes FREE."""
    world = World()
    world.aug()
    world.module.tdcs(world.td).op_state = OpState.LIVE_IMPORT
    assert world.on(tdh_mem_range_block).ok
    assert world.do(tdh_mem_track, td=world.td).ok
    assert world.on(tdh_mem_page_remove).ok
    assert world.state() is SeptState.REMOVED
    world.aug()


def test_write_back_is_interrupted_and_resumed():
    """INTERRUPTED_RESUMABLE keeps the key id from being freed; resuming without a start is an error."""
    world = World(vcpus=0, finalize=False)
    assert world.do(tdh_mng_vpflushdone, td=world.td).ok
    assert world.do(tdh_phymem_cache_wb, resume=True).status is Status.TDX_WBCACHE_RESUME_ERROR
    lp = LogicalProcessor(0, interrupt_pending=lambda: True)
    assert world.do(tdh_phymem_cache_wb, lp=lp).status is Status.TDX_INTERRUPTED_RESUMABLE
    assert world.do(tdh_mng_key_freeid, td=world.td).status is Status.TDX_WBCACHE_NOT_COMPLETE
    assert world.do(tdh_phymem_cache_wb, resume=True).ok
    assert world.do(tdh_mng_key_freeid, td=world.td).ok


def test_an_injected_status_has_no_effect_but_itself():
    """The embedding decides by leaf and thread; the call takes one step and changes nothing."""
    world = World()
    asked = []

    def inject(leaf, thread):
        asked.append((leaf, thread))
        return Status.TDX_OPERAND_BUSY

    world.module.inject = inject
    ret = world.on(tdh_mem_page_aug, pfn=Pfn(DATA))

    assert ret.is_busy
    assert asked == [("TDH.MEM.PAGE.AUG", "host")]
    assert world.state() is SeptState.FREE


@pytest.mark.parametrize("text", sorted(INVARIANTS))
def test_an_invariant_notices_what_it_is_for(text):
    """Break what it speaks of by hand, and it says so."""
    world = World()
    world.aug()
    module = world.module
    holds = INVARIANTS[text](module)
    assert holds() is True
    tdr = module.tdr(world.td)
    if "REFCOUNT" in text:
        tdr.tdcs.epoch.v = tdr.tdcs.epoch.v.counted(0, 1)
    elif "counts the pages" in text:
        tdr.chldcnt.v += 1
    elif "names a page" in text:
        module.pamt.entry(DATA, 1).free()
    else:
        module.sept_pages[max(module.sept_pages)].septe(GFN).v |= 1 << 11

    assert holds() is not True


def caller(module, lp=None):
    """SEAMCALLs by registers: leaf, then RCX, RDX, R8 ..."""
    lp = lp or LogicalProcessor(0)

    def call(rax, *words, **context):
        return run(module.kernel, dispatch(module, Registers(rax, *words), lp=lp, **context))

    return call


def test_a_life_by_registers_alone():
    """Every call of build and teardown with the words that a host puts into registers; what comes back in them too."""
    module = TdxModule(Kernel(), tdmr=[TDMR])
    lp = LogicalProcessor(0, interrupt_pending=lambda: True)
    call = caller(module, lp)
    tdr, tdvpr, data = (frame << PAGE_SHIFT for frame in (TDMR[0], TDMR[0] + 20, DATA))
    assert call(9, tdr, 33).ok  # MNG.CREATE
    assert call(8, tdr).ok  # MNG.KEY.CONFIG
    for n in range(1, 7):
        assert call(1, tdr + n * 4096, tdr).ok  # MNG.ADDCX
    assert str(call(21, tdr, 512)) == "TDX_OPERAND_INVALID|RDX"
    assert call(21, tdr, 1024, config_flags=GPAW).ok  # MNG.INIT
    assert call(10, tdvpr, tdr).ok  # VP.CREATE
    for n in range(1, 6):
        assert call(4, tdvpr + n * 4096, tdvpr).ok  # VP.ADDCX
    assert call(22, tdvpr, 0x1234).ok  # VP.INIT
    gpa = gpa_of(GFN)
    for n, level in enumerate((4, 3, 2, 1)):
        page_info = gpa & -(1 << 12 + 9 * level) | level
        assert call(3, page_info, tdr, tdvpr + (10 + n) * 4096).ok  # MEM.SEPT.ADD
    assert call(2, gpa, tdr, data, data).ok  # MEM.PAGE.ADD
    assert call(16, gpa + 512, tdr).ok  # MR.EXTEND
    assert call(17, tdr).ok  # MR.FINALIZE

    def guest():
        yield module.state.read_once()
        return TdExit.external_interrupt()

    assert call(0, tdvpr, guest=guest).rax == 1  # VP.ENTER
    assert call(18, tdvpr).ok  # VP.FLUSH
    assert call(19, tdr).ok  # MNG.VPFLUSHDONE
    assert call(27, tdr).ok  # MNG.KEY.RECLAIMID
    assert str(call(40, 2)) == "TDX_OPERAND_INVALID|RCX"
    assert str(call(40, 0)) == "TDX_INTERRUPTED_RESUMABLE"
    while (written := call(40, 1)).status is Status.TDX_INTERRUPTED_RESUMABLE:  # PHYMEM.CACHE.WB
        assert str(call(20, tdr)) == "TDX_WBCACHE_NOT_COMPLETE"
    assert written.ok
    assert call(20, tdr).ok  # MNG.KEY.FREEID
    reclaimed = call(28, data)  # PHYMEM.PAGE.RECLAIM
    assert (reclaimed.rcx, reclaimed.rdx, reclaimed.r8) == (PageType.PT_REG, tdr, 0)
    left = call(28, tdr)
    assert (str(left), left.rcx, left.rdx, left.r8) == (
        "TDX_TD_ASSOCIATED_PAGES_EXIST",
        PageType.PT_TDR,
        0,
        0,
    )
    for entry in [entry for entry in module.pamt.assigned() if entry.kind is not PageType.PT_TDR]:
        assert call(28, entry.pfn << PAGE_SHIFT).ok
    assert call(28, tdr).ok
    for hkid in (0, 33, 63):
        assert call(41, tdr | hkid << 46).ok  # PHYMEM.PAGE.WBINVD, any key
    assert module.pamt.assigned() == []


def test_reclaim_says_whose_page_it_is_also_when_it_fails_late():
    """Type, owner and size come back once the page is known: misaligned in a large page, TDR busy, TD alive; not of a free page."""
    world = World()
    world.aug(GFN + 512, DATA + 512, PG_LEVEL_2M)
    owner = world.td.tdr_pfn << PAGE_SHIFT
    known = (PageType.PT_REG, owner, 1)

    def reclaim(pfn):
        ret = world.do(tdh_phymem_page_reclaim, pfn=Pfn(pfn))
        return str(ret), (ret.rcx, ret.rdx, ret.r8)

    assert reclaim(DATA + 513) == ("TDX_OPERAND_INVALID|RCX", known)
    assert reclaim(DATA + 512) == ("TDX_LIFECYCLE_STATE_INCORRECT", known)
    world.module.pamt.entry(world.td.tdr_pfn, 1).lock.v = 1
    assert reclaim(DATA + 512) == ("TDX_OPERAND_BUSY|TDR", known)
    assert reclaim(DATA) == ("TDX_PAGE_METADATA_INCORRECT|RCX", (0, 0, 0))
    assert reclaim(1)[0] == "TDX_OPERAND_ADDR_RANGE_ERROR|RCX"


def test_a_start_of_the_write_back_forgets_what_was_to_be_resumed():
    """Also if it finds nothing to do; and a package may be written back again while its key id is FLUSHED."""
    world = World(vcpus=0, finalize=False)
    wb, lp = tdh_phymem_cache_wb, LogicalProcessor(0, interrupt_pending=lambda: True)
    assert world.do(tdh_mng_vpflushdone, td=world.td).ok
    assert world.do(wb, lp=lp).status is Status.TDX_INTERRUPTED_RESUMABLE
    assert world.do(wb).ok
    assert world.do(wb, resume=True).status is Status.TDX_WBCACHE_RESUME_ERROR
    assert world.do(wb).ok
    assert world.do(wb, lp=lp).status is Status.TDX_INTERRUPTED_RESUMABLE
    assert world.do(tdh_mng_key_freeid, td=world.td).ok
    assert world.do(wb).status is Status.TDX_NO_HKID_READY_TO_WBCACHE
    assert world.do(wb, resume=True).status is Status.TDX_WBCACHE_RESUME_ERROR


def test_the_parameters_of_a_td_are_judged_in_intel_s_order():
    """Each wrong one is named by its own operand id; then the fields are as the parameters say."""
    world = World(vcpus=0, finalize=False)
    module = world.module
    tdcs = module.tdcs(world.td)

    def init(**params):
        tdcs.op_state = OpState.UNINITIALIZED
        return str(world.do(tdh_mng_init, td=world.td, **params))

    wrong = {
        "params_hpa": 32 << 46,
        "attributes": 1 << 5,
        "max_vcpus": 0,
        "num_l2_vms": 4,
        "config_flags": 1 << 3,
    }
    for name, right, operand in (
        ("params_hpa", 0, "RDX"),
        ("attributes", MIGRATABLE | DEBUG, "ATTRIBUTES"),
        ("attributes", DEBUG, "ATTRIBUTES"),
        ("max_vcpus", 3, "MAX_VCPUS"),
        ("num_l2_vms", 1, "NUM_L2_VMS"),
    ):
        assert init(**wrong) == f"TDX_OPERAND_INVALID|{operand}"
        wrong[name] = right
    assert init(**wrong) == "TDX_TDCS_NOT_ALLOCATED"
    wrong["num_l2_vms"] = 0
    assert init(**wrong) == "TDX_OPERAND_INVALID|EXEC_CONTROLS"
    assert init(**wrong | {"config_flags": GPAW | FLEXIBLE_PENDING_VE}) == "TDX_SUCCESS"
    assert (tdcs.config_flags, tdcs.private_end, tdcs.root.level) == (3, 1 << 51, 5)
    assert (tdcs.is_debug, tdcs.max_vcpus, tdcs.td_ctls, tdcs.notify_enables) == (True, 3, 0, 0)
    assert init(attributes=SEPT_VE_DISABLE) == "TDX_SUCCESS"
    assert (tdcs.td_ctls, tdcs.private_end) == (1, 1 << 47)
