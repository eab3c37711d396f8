"""Dynamic PAMT: page pairs, the bitmap of pages that hold entries, the count of pages in use, and what a host may get wrong."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Kernel, explore
from tdx.module import (
    PROFILES,
    Operand,
    PageType,
    Registers,
    Status,
    TdxModule,
    dispatch,
    tdh_mem_page_aug,
    tdh_mem_page_demote,
    tdh_mem_page_promote,
    tdh_mem_page_remove,
    tdh_mng_create,
    tdh_phymem_page_rdmd,
    tdh_phymem_page_wbinvd,
    tdh_phymem_pamt_add,
    tdh_phymem_pamt_remove,
)
from tdx.module.dynamic_pamt import REMOVAL_HINT, DynamicPamt
from tdx.module.invariants import INVARIANTS
from tdx.module.operands import Td
from tdx.module.profile import TDX_1_5_01
from tests.tdx.module.worlds import DATA, GFN, TDMR, World, run
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Pfn, gpa_of

DPAMT = TDX_1_5_01.with_dynamic_pamt()
LENT = TDMR[1] - 512
"""Frames of a range that has no pair: the host lends them from here."""
SPARE = LENT + 100
"""And has these left when a TD is built."""


class DpamtWorld(World):
    """A TD of a module with Dynamic PAMT; its own pages lie in a range that got its pair first."""

    def __init__(self, kernel=None, **options):
        self.lent = LENT
        super().__init__(kernel, profile=DPAMT, **options)

    def lend(self):
        """A frame to hold PAMT entries."""
        self.lent += 1
        return Pfn(self.lent)

    def build(self, *args):
        ret = yield from self.add_pair(TDMR[0])
        assert ret.ok, str(ret)
        yield from super().build(*args)

    def add_pair(self, first, pair=None):
        """PAMT.ADD as steps."""
        one, other = pair if pair is not None else (self.lend(), self.lend())
        return tdh_phymem_pamt_add(
            self.module, pfn=Pfn(first), level=PG_LEVEL_2M, pamt_pfn0=Pfn(one), pamt_pfn1=Pfn(other)
        )

    def remove_pair(self, first):
        """PAMT.REMOVE as steps."""
        return tdh_phymem_pamt_remove(self.module, pfn=Pfn(first), level=PG_LEVEL_2M)

    def pair_count(self, first):
        return self.module.pamt.pair_of(first).count.peek()


def bare(profile=DPAMT):
    """A module with nothing in it."""
    return TdxModule(Kernel(), tdmr=[TDMR], profile=profile)


def add(module, first=DATA, pair=(LENT, LENT + 1)):
    return run(
        module.kernel,
        tdh_phymem_pamt_add(
            module, pfn=Pfn(first), level=PG_LEVEL_2M, pamt_pfn0=Pfn(pair[0]), pamt_pfn1=Pfn(pair[1])
        ),
    )


def remove(module, first=DATA):
    return run(module.kernel, tdh_phymem_pamt_remove(module, pfn=Pfn(first), level=PG_LEVEL_2M))


def create(module, pfn=DATA, hkid=32):
    return run(module.kernel, tdh_mng_create(module, td=Td(Pfn(pfn)), hkid=hkid))


def test_a_4k_page_needs_its_ranges_pair():
    """The same call, before ADD, after it, and after the page went and REMOVE took the pair away."""
    module = bare()

    assert str(create(module)) == "TDX_MISSING_PAMT_PAGE_PAIR|RCX"
    assert add(module).ok
    assert create(module).ok
    assert module.pamt_type(DATA) is PageType.PT_TDR


def test_without_dynamic_pamt_nothing_is_needed_and_the_calls_are_none():
    """A release without it, or with it switched off, refuses the leaf numbers' only users as unknown leaves are refused."""
    for profile in PROFILES.values():
        module = bare(profile)

        assert create(module).ok
        assert str(add(module)) == "TDX_OPERAND_INVALID|RAX"
        assert str(remove(module)) == "TDX_OPERAND_INVALID|RAX"


def test_a_pair_is_lent_and_comes_back():
    """REMOVE returns the very pages, and they may be lent again."""
    module = bare()

    assert add(module).ok
    ret = remove(module)
    assert (ret.ok, ret.rdx, ret.r8) == (True, LENT << 12, LENT + 1 << 12)
    assert str(remove(module)) == "TDX_NO_PAMT_PAGE_PAIR|RCX"
    assert add(module, pair=(LENT + 1, LENT)).ok


@pytest.mark.parametrize(
    ("first", "pair", "expected"),
    [
        (DATA + 1, (LENT, LENT + 1), "TDX_OPERAND_INVALID|RCX"),
        (TDMR[1], (LENT, LENT + 1), "TDX_OPERAND_ADDR_RANGE_ERROR|RCX"),
        (DATA, (TDMR[1], LENT), "TDX_OPERAND_ADDR_RANGE_ERROR|RDX"),
        (DATA, (LENT, TDMR[1]), "TDX_OPERAND_ADDR_RANGE_ERROR|R8"),
        (TDMR[1], (TDMR[1], LENT), "TDX_OPERAND_ADDR_RANGE_ERROR|RDX"),
        (DATA, (1 << 34, LENT), "TDX_OPERAND_INVALID|RDX"),
        (DATA, (LENT, 1 << 34), "TDX_OPERAND_INVALID|R8"),
        (DATA, (LENT, LENT), "TDX_PAGE_NOT_FREE|R8"),
        (DATA, (TDMR[0], LENT), "TDX_PAGE_NOT_FREE|RDX"),
        (DATA, (LENT, TDMR[0]), "TDX_PAGE_NOT_FREE|R8"),
        (DATA, (LENT + 10, LENT), "TDX_PAGE_NOT_FREE|RDX"),
        (DATA, (LENT, LENT + 10), "TDX_PAGE_NOT_FREE|R8"),
        (TDMR[0], (LENT, LENT + 1), "TDX_HPA_RANGE_NOT_FREE|RCX"),
        (DATA, (DATA, LENT), "TDX_SUCCESS"),
        (DATA, (DATA + 511, DATA), "TDX_SUCCESS"),
    ],
)
def test_what_add_refuses(first, pair, expected):
    """In the module's order; a refused call leaves nothing behind: the same range takes a good pair after it."""
    module = bare()
    assert add(module, TDMR[0], (LENT + 10, LENT + 11)).ok
    assert create(module, TDMR[0]).ok

    assert str(add(module, first, pair)) == expected
    if expected != "TDX_SUCCESS":
        assert add(module, DATA, (LENT, LENT + 1)).ok


def test_register_words_that_are_no_operands():
    """RCX is address and level in one word; any other level, and any reserved bit, is refused."""
    module = bare()
    rdx, r8 = LENT << 12, LENT + 1 << 12

    def call(leaf, rcx, **registers):
        return str(run(module.kernel, dispatch(module, Registers(leaf, rcx, **registers))))

    for word in (
        DATA << 12,
        DATA << 12 | 2,
        DATA << 12 | 1 | 8,
        DATA << 12 | 1 | 1 << 60,
        DATA + 1 << 12 | 1,
    ):
        assert call(58, word, rdx=rdx, r8=r8) == "TDX_OPERAND_INVALID|RCX"
        assert call(59, word) == "TDX_OPERAND_INVALID|RCX"
    assert call(58, DATA << 12 | 1, rdx=rdx | 1, r8=r8) == "TDX_OPERAND_INVALID|RDX"
    assert call(58, DATA << 12 | 1, rdx=rdx, r8=r8) == "TDX_SUCCESS"
    assert call(59, DATA << 12 | 1) == "TDX_SUCCESS"


def test_a_lent_page_is_nobodys_to_give():
    """Its bit keeps it from a TD, with a pair for its own range or without; it may still be a page to write back from."""
    module = bare()
    assert add(module, DATA, (DATA + 512, DATA + 513)).ok

    assert str(create(module, DATA + 512)) == "TDX_MISSING_PAMT_PAGE_PAIR|RCX"
    assert add(module, DATA + 512).ok
    assert str(create(module, DATA + 512)) == "TDX_PAGE_METADATA_INCORRECT|RCX"
    assert create(module, DATA + 514).ok
    wbinvd = run(module.kernel, tdh_phymem_page_wbinvd(module, pfn=Pfn(DATA + 512), hkid=0))
    assert str(wbinvd) == "TDX_PAGE_METADATA_INCORRECT|RCX"


def test_write_back_needs_no_pair():
    """WBINVD of a page that went, after its range's pair went, too."""
    module = bare()

    assert run(module.kernel, tdh_phymem_page_wbinvd(module, pfn=Pfn(DATA), hkid=0)).ok


def test_a_2m_page_and_a_pair_exclude_each_other():
    """2M AUG into a range with a pair is refused, and ADD to a 2M page; a 2M page needs no pair, not even while it is 2M."""
    world = DpamtWorld()
    run(world.kernel, world.add_pair(DATA))
    aug = {"td": world.td, "gpa": gpa_of(GFN + 512), "level": PG_LEVEL_2M}

    assert str(world.do(tdh_mem_page_aug, **aug, pfn=Pfn(DATA))) == "TDX_PAGE_METADATA_INCORRECT|R8"
    assert run(world.kernel, world.remove_pair(DATA)).ok
    assert world.do(tdh_mem_page_aug, **aug, pfn=Pfn(DATA)).ok
    assert str(run(world.kernel, world.add_pair(DATA))) == "TDX_HPA_RANGE_NOT_FREE|RCX"


def test_a_2m_page_may_not_swallow_a_lent_one():
    """The whole range must be free of pages that hold entries for another range."""
    world = DpamtWorld()
    aug = {"td": world.td, "gpa": gpa_of(GFN + 512), "level": PG_LEVEL_2M, "pfn": Pfn(DATA)}
    assert run(world.kernel, world.add_pair(DATA + 512, (DATA + 77, DATA + 300))).ok

    assert str(world.do(tdh_mem_page_aug, **aug)) == "TDX_PAGE_METADATA_INCORRECT|R8"
    assert run(world.kernel, world.remove_pair(DATA + 512)).ok
    assert world.do(tdh_mem_page_aug, **aug).ok


@pytest.mark.parametrize(("index", "number"), [(0, 0), (255, 0), (256, 1), (511, 1)])
def test_remove_says_which_page_of_the_pair_is_in_use(index, number):
    """256 entries lie in each."""
    module = bare()
    assert add(module).ok
    assert create(module, DATA + index).ok

    ret = remove(module)
    assert (ret.status, ret.operand) == (Status.TDX_PAMT_PAGE_NOT_EMPTY, number)


def test_the_last_page_out_brings_the_hint():
    """Every page in use is counted once; RCX of the call that takes the last one out has bit 62 set."""
    world = DpamtWorld(finalize=False)
    run(world.kernel, world.add_pair(DATA))
    for n in range(3):
        world.aug(GFN + n, DATA + n)
        assert world.pair_count(DATA) == n + 1

    for n, hint in ((1, 0), (0, 0), (2, REMOVAL_HINT)):
        ret = world.on(tdh_mem_page_remove, GFN + n)
        assert ret.ok
        assert ret.rcx == DATA + n << 12 | hint
    assert world.pair_count(DATA) == 0
    assert run(world.kernel, world.remove_pair(DATA)).ok


def test_a_pair_counts_what_the_pamt_says():
    """After a whole TD was built: count and types agree."""
    world = DpamtWorld(vcpus=2)
    pamt = world.module.pamt

    used = [entry for entry in pamt.assigned() if entry.level == PG_LEVEL_4K]
    assert {entry.pfn & ~511 for entry in used} == {TDMR[0]}
    assert len(used) == world.pair_count(TDMR[0]) > 20


def test_two_adds_of_one_range_race():
    """One wins; the other is busy, or finds the range taken: HPA_RANGE_NOT_FREE. No page stays claimed for nothing."""
    seen = set()

    def world_of(kernel):
        module = TdxModule(kernel, tdmr=[TDMR], profile=DPAMT)
        results = {}

        def host(n):
            results[n] = yield from tdh_phymem_pamt_add(
                module,
                pfn=Pfn(DATA),
                level=PG_LEVEL_2M,
                pamt_pfn0=Pfn(LENT + 2 * n),
                pamt_pfn1=Pfn(LENT + 2 * n + 1),
            )

        def one_pair_is_lent():
            seen.add(tuple(sorted(str(ret) for ret in results.values())))
            oks = [n for n, ret in results.items() if ret.ok]
            lent = {
                pfn for pfn in range(LENT, LENT + 4) if module.pamt.bitmap_word(pfn).peek() >> pfn % 64 & 1
            }
            return lent == {LENT + 2 * n + i for n in oks for i in (0, 1)}

        for n in (0, 1):
            kernel.thread(f"host{n}", host(n))
        kernel.at_end("one pair is lent", one_pair_is_lent)

    report = explore(world_of, strategy="dpor")

    assert report.findings == []
    assert report.exhausted
    assert seen == {
        ("TDX_HPA_RANGE_NOT_FREE|RCX", "TDX_SUCCESS"),
        ("TDX_OPERAND_BUSY|RCX", "TDX_SUCCESS"),
        ("TDX_OPERAND_BUSY|RCX", "TDX_OPERAND_BUSY|RCX"),
    }


def test_two_ranges_may_not_be_lent_one_page():
    """The bit is set once, whoever comes first; both may lose one of two."""
    seen = set()

    def world_of(kernel):
        module = TdxModule(kernel, tdmr=[TDMR], profile=DPAMT)
        results = {}

        def host(n):
            pair = (Pfn(LENT), Pfn(LENT + 1)) if n else (Pfn(LENT + 1), Pfn(LENT))
            results[n] = yield from tdh_phymem_pamt_add(
                module, pfn=Pfn(DATA + 512 * n), level=PG_LEVEL_2M, pamt_pfn0=pair[0], pamt_pfn1=pair[1]
            )

        for n in (0, 1):
            kernel.thread(f"host{n}", host(n))
        kernel.at_end(
            "at most one is lent",
            lambda: (
                seen.add(tuple(str(results[n]) for n in (0, 1)))
                or sum(ret.ok for ret in results.values()) <= 1
            ),
        )

    report = explore(world_of, strategy="random", executions=400, seed=5)

    assert report.findings == []
    assert ("TDX_SUCCESS", "TDX_PAGE_NOT_FREE|RDX") in seen
    assert ("TDX_PAGE_NOT_FREE|RDX", "TDX_SUCCESS") in seen
    assert ("TDX_PAGE_NOT_FREE|R8", "TDX_PAGE_NOT_FREE|R8") in seen


def removal(kernel, *, waits):
    """PAGE.REMOVE of the last page of a range, and PAMT.REMOVE: after it returned, or whenever."""
    world = DpamtWorld(kernel, finalize=False)
    kernel_steps = world.add_pair(DATA)
    run(kernel, kernel_steps)
    world.aug(GFN, DATA)
    for name, invariant in INVARIANTS.items():
        kernel.at_end(name, invariant(world.module))

    def remover():
        yield from tdh_mem_page_remove(world.module, td=world.td, gpa=gpa_of(GFN), level=PG_LEVEL_4K)
        if waits:
            ret = yield from world.remove_pair(DATA)
            assert ret.ok

    kernel.thread("remover", remover())
    if not waits:
        kernel.thread("eager", world.remove_pair(DATA))


def test_a_pair_may_go_when_the_call_that_took_the_last_page_has_returned():
    """The order that KVM's reference count under a lock keeps."""
    report = explore(lambda kernel: removal(kernel, waits=True), strategy="dpor")

    assert report.findings == []
    assert report.exhausted


def test_a_pair_that_goes_earlier_is_found():
    """PAGE.REMOVE has made the page NDA and still counts it, or still holds its entry's lock: halt, or use after free."""
    report = explore(lambda kernel: removal(kernel, waits=False), strategy="dpor")

    assert {finding.kind for finding in report.findings} == {"td-dead", "uaf-object"}


def test_add_and_4k_calls_lock_each_other_out():
    """ADD holds the 2M entry exclusive, explicit 4K calls shared: one is busy, or they come one after the other."""
    seen = set()

    def world_of(kernel):
        module = TdxModule(kernel, tdmr=[TDMR], profile=DPAMT)
        results = {}

        def creator():
            results["create"] = yield from tdh_mng_create(module, td=Td(Pfn(DATA)), hkid=32)

        def adder():
            results["add"] = yield from tdh_phymem_pamt_add(
                module, pfn=Pfn(DATA), level=PG_LEVEL_2M, pamt_pfn0=Pfn(LENT), pamt_pfn1=Pfn(LENT + 1)
            )

        kernel.thread("creator", creator())
        kernel.thread("adder", adder())
        kernel.at_end(
            "both return", lambda: seen.add(tuple(str(results[n]) for n in ("create", "add"))) is None
        )

    report = explore(world_of, strategy="dpor")

    assert report.findings == []
    busy = "TDX_OPERAND_BUSY|RCX"
    missing = "TDX_MISSING_PAMT_PAGE_PAIR|RCX"
    assert seen == {
        (missing, "TDX_SUCCESS"),
        ("TDX_SUCCESS", "TDX_SUCCESS"),
        (busy, "TDX_SUCCESS"),
        (missing, busy),
        (busy, busy),
    }


def test_statuses_have_the_values_of_the_public_header():
    """tdx_error_codes_defs.h of 1.5.25; a missing pair is a retryable error, no PAMT pair is not."""
    assert int(Status.TDX_MISSING_PAMT_PAGE_PAIR) == 0x8000030800000000
    assert int(Status.TDX_HPA_RANGE_NOT_FREE) == 0xC000030400000000
    assert PageType.PT_PAMT == 15


def test_levels_of_a_pair_are_2m():
    """Typed calls with another level are refused as the module refuses them."""
    module = bare()
    for level, call in product((PG_LEVEL_4K, PG_LEVEL_1G), (tdh_phymem_pamt_remove,)):
        ret = run(module.kernel, call(module, pfn=Pfn(0x40000), level=level))
        assert (ret.status, ret.operand) == (Status.TDX_OPERAND_INVALID, Operand.RCX)


class Resized(DpamtWorld):
    """A 2M page at GFN + 512, in frames that have no pair; S-EPT pages come from the TD's own range."""

    GFN = GFN + 512

    def __init__(self, kernel=None, **options):
        super().__init__(kernel, finalize=False, **options)
        self.aug(self.GFN, DATA, PG_LEVEL_2M)
        self.table = self.page()

    def demote(self, pair, pfn=None):
        """As steps."""
        return tdh_mem_page_demote(
            self.module,
            td=self.td,
            gpa=gpa_of(self.GFN),
            level=PG_LEVEL_2M,
            pfn=self.table if pfn is None else Pfn(pfn),
            lp=self.lps[0],
            pamt_pfn0=pair[0],
            pamt_pfn1=pair[1],
        )

    def promote(self):
        """As steps."""
        return tdh_mem_page_promote(
            self.module, td=self.td, gpa=gpa_of(self.GFN), level=PG_LEVEL_2M, lp=self.lps[0]
        )


def test_demote_takes_a_pair_and_promote_gives_it_back():
    """The range has 512 pages in use, all of the TD; then none, and the pages are free to lend again."""
    world = Resized()
    pamt = world.module.pamt
    assert pamt.entry(DATA, PG_LEVEL_2M).kind is PageType.PT_REG

    assert run(world.kernel, world.demote((Pfn(SPARE), Pfn(SPARE + 9)))).ok
    assert pamt.entry(DATA, PG_LEVEL_2M).kind is PageType.PT_PAMT
    assert world.pair_count(DATA) == 512
    assert {(pamt.leaf(pfn).kind, pamt.leaf(pfn).owner) for pfn in range(DATA, DATA + 512)} == {
        (PageType.PT_REG, world.td.tdr_pfn)
    }
    assert str(run(world.kernel, world.remove_pair(DATA))) == "TDX_PAMT_PAGE_NOT_EMPTY|0"

    ret = run(world.kernel, world.promote())
    assert (ret.ok, ret.r12, ret.r13) == (True, SPARE << 12, SPARE + 9 << 12)
    large = pamt.entry(DATA, PG_LEVEL_2M)
    assert (large.kind, large.owner, large.bepoch.peek()) == (PageType.PT_REG, world.td.tdr_pfn, 0)
    assert run(world.kernel, world.demote((Pfn(SPARE + 9), Pfn(SPARE)))).ok
    for invariant in INVARIANTS.values():
        assert invariant(world.module)() is True


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ((None, SPARE), "TDX_OPERAND_INVALID|R12"),
        ((SPARE, None), "TDX_OPERAND_INVALID|R13"),
        ((TDMR[1], None), "TDX_OPERAND_INVALID|R13"),
        ((TDMR[1], SPARE), "TDX_OPERAND_ADDR_RANGE_ERROR|R12"),
        ((SPARE, TDMR[1]), "TDX_OPERAND_ADDR_RANGE_ERROR|R13"),
        ((SPARE, SPARE), "TDX_PAGE_NOT_FREE|R13"),
        ((SPARE, TDMR[0] + 1), "TDX_PAGE_NOT_FREE|R13"),
        ((DATA + 5, SPARE), "TDX_OPERAND_BUSY|R12"),
        ((SPARE, DATA + 5), "TDX_OPERAND_BUSY|R13"),
    ],
)
def test_what_demote_says_of_its_pair(pair, expected):
    """Refused with nothing changed: the same call with a good pair goes through. A page of the range itself is always busy."""
    world = Resized()

    assert str(run(world.kernel, world.demote(pair))) == expected
    assert run(world.kernel, world.demote((Pfn(SPARE), Pfn(SPARE + 1)))).ok


def test_demote_needs_a_second_pair_for_its_s_ept_page():
    """The new S-EPT page is a 4K page like any other: R8 is refused if its range has none."""
    world = Resized()

    assert (
        str(run(world.kernel, world.demote((Pfn(SPARE), Pfn(SPARE + 1)), DATA + 512)))
        == "TDX_MISSING_PAMT_PAGE_PAIR|R8"
    )
    assert run(world.kernel, world.add_pair(DATA + 512)).ok
    assert run(world.kernel, world.demote((Pfn(SPARE), Pfn(SPARE + 1)), DATA + 512)).ok
    assert world.pair_count(DATA + 512) == 1


def test_static_pamt_takes_no_notice_of_r12_and_r13():
    """Without Dynamic PAMT a pair that makes no sense does no harm, and PROMOTE returns none."""
    world = World(finalize=False)
    world.aug(GFN + 512, DATA, PG_LEVEL_2M)
    where = {"td": world.td, "gpa": gpa_of(GFN + 512), "level": PG_LEVEL_2M, "lp": world.lps[0]}

    assert world.do(tdh_mem_page_demote, **where, pfn=world.page(), pamt_pfn0=Pfn(0)).ok
    ret = world.do(tdh_mem_page_promote, **where)
    assert (ret.ok, ret.r12, ret.r13) == (True, 0, 0)


def test_rdmd_shows_pairs_and_lent_pages():
    """A range with a pair by its level, a lent page by its bit, and what lies below as ever."""
    module = bare()

    def rdmd(pfn, level=PG_LEVEL_4K):
        ret = run(module.kernel, tdh_phymem_page_rdmd(module, pfn=Pfn(pfn), level=level))
        assert ret.ok
        return ret.rcx, ret.rdx, ret.r8, ret.r10, ret.r11

    assert add(module).ok
    assert create(module).ok
    assert rdmd(DATA, PG_LEVEL_2M) == (PageType.PT_PAMT | 1 << 63, 0, 1, LENT << 12, LENT + 1 << 12)
    assert rdmd(DATA) == (PageType.PT_TDR, 0, 0, 0, 0)
    assert rdmd(LENT) == (PageType.PT_PAMT, 0, 0, 0, 0)
    assert rdmd(LENT + 2) == rdmd(LENT, PG_LEVEL_2M) == (PageType.PT_NDA, 0, 1, 0, 0)
    static = bare(TDX_1_5_01)
    ret = run(static.kernel, tdh_phymem_page_rdmd(static, pfn=Pfn(DATA), level=PG_LEVEL_2M))
    assert str(ret) == "TDX_OPERAND_INVALID|RCX"


def pairs_agree(module):
    """What must be true of pairs, bits and counts, whatever the host does; text of what is not, if so."""
    pamt = module.pamt
    ranges = [entry for entry in pamt.assigned() if entry.kind is PageType.PT_PAMT]
    lent = [pfn for entry in ranges for pfn in entry.holds.pfns]
    marked = {
        64 * number + bit
        for number, word in pamt._bitmap.items()
        for bit in range(64)
        if word.peek() >> bit & 1
    }
    used = [entry.pfn for entry in pamt.assigned() if entry.level == PG_LEVEL_4K]
    large = [
        entry.pfn for entry in pamt.assigned() if entry.kind is PageType.PT_REG and entry.level == PG_LEVEL_2M
    ]
    counted = {entry.pfn: entry.holds.count.peek() for entry in ranges}
    rules = {
        "a page is lent once": len(lent) == len(set(lent)),
        "the bits are the lent pages'": set(lent) == marked,
        "a lent page is nobody's": not marked & set(used)
        and not marked & {p + n for p in large for n in range(512)},
        "who uses a 4K page has a pair": {pfn & ~511 for pfn in used} <= set(counted),
        "a count is a count": counted
        == {first: sum(pfn & ~511 == first for pfn in used) for first in counted},
        "a 2M page has no pair": not set(large) & set(counted),
    }
    return [text for text, holds in rules.items() if not holds]


RANGES = (DATA, DATA + 512)
HOST = {
    "add": lambda world, n, m: world.add_pair(RANGES[n], (SPARE + m, SPARE + m + 1)),
    "add from within": lambda world, n, m: world.add_pair(RANGES[n], (RANGES[n] + m, SPARE + m)),
    "remove pair": lambda world, n, _m: world.remove_pair(RANGES[n]),
    "aug 4K": lambda world, n, m: tdh_mem_page_aug(
        world.module, td=world.td, gpa=gpa_of(GFN + m), level=PG_LEVEL_4K, pfn=Pfn(RANGES[n] + m)
    ),
    "aug 2M": lambda world, n, _m: tdh_mem_page_aug(
        world.module, td=world.td, gpa=gpa_of(Resized.GFN), level=PG_LEVEL_2M, pfn=Pfn(RANGES[n])
    ),
    "remove 4K": lambda world, _n, m: tdh_mem_page_remove(
        world.module, td=world.td, gpa=gpa_of(GFN + m), level=PG_LEVEL_4K
    ),
    "remove 2M": lambda world, _n, _m: tdh_mem_page_remove(
        world.module, td=world.td, gpa=gpa_of(Resized.GFN), level=PG_LEVEL_2M
    ),
    "demote": lambda world, _n, m: world.demote((Pfn(SPARE + m), Pfn(SPARE + m + 1))),
    "promote": lambda world, _n, _m: world.promote(),
}
"""A host that is building, so that nothing need be blocked; by the number of a range and of a page."""
MOVES = st.lists(
    st.tuples(st.sampled_from(sorted(HOST)), st.integers(0, 1), st.integers(0, 3)), min_size=10, max_size=30
)


def live(moves):
    """Make the moves, refused or not; after each of them pairs, bits and counts agree."""
    world = Resized()
    for name, n, m in moves:
        run(world.kernel, HOST[name](world, n, m))
        assert pairs_agree(world.module) == [], name
    for text, invariant in INVARIANTS.items():
        assert invariant(world.module)() is True, text


@settings(derandomize=True, deadline=None, max_examples=30)
@given(moves=MOVES)
def test_pairs_bits_and_counts_agree_whatever_the_host_does(moves):
    """Any order of lending, using, resizing and taking back."""
    live(moves)


LIFE = [
    ("demote", 0, 0),
    ("add", 1, 2),
    ("aug 4K", 1, 0),
    ("promote", 0, 0),
    ("remove 2M", 0, 0),
    ("add from within", 0, 1),
    ("aug 4K", 0, 2),
    ("remove 4K", 0, 2),
    ("remove pair", 0, 0),
]


def no_steps(*_args):
    yield from ()
    return 0


@pytest.mark.parametrize("method", ["count_in", "count_out", "_clear_bit", "_drop_entries"])
def test_an_error_planted_in_the_table_is_noticed(method, monkeypatch):
    """The life above goes through; without this it does not."""
    live(LIFE)
    plant = no_steps if method != "_drop_entries" else lambda _pamt, _first: None
    monkeypatch.setattr(DynamicPamt, method, plant)
    with pytest.raises(AssertionError):
        live(LIFE)
