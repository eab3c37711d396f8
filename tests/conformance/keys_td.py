"""Keys of the prologue: version, flag words, the TDR and its TD, OP_STATE, page_info, the tree, and new pages."""

from __future__ import annotations

from collections.abc import Callable

from tdx.module.objects import Lifecycle, Tdcs
from tdx.module.pamt import MAX_PFN, PageType, PamtEntry
from tdx.module.status import NULL_PA
from tests.conformance.situation import NEW, NotExpressible, Situation, Words
from tests.conformance.vocabulary import key, measure
from tests.conformance.world import OTHER, SHARED, TDMR, World
from vcpu.addresses import LEVELS, PAGE_SHIFT, PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K

EXCLUSIVE = 1
"""Of both kinds of lock word: held exclusive, which is in everybody's way."""
HKID_BIT = MAX_PFN << PAGE_SHIFT
ABOVE_PA = 1 << 52
LISTED_LIFECYCLES = " ".join(state.name for state in Lifecycle if state is not Lifecycle.KEYS_CONFIGURED)


def hold_page(entry: PamtEntry) -> None:
    """Somebody has the page exclusive."""
    entry.lock.v = EXCLUSIVE


def word_of(world: World, pfn: int) -> int:
    """A page's address."""
    return pfn << PAGE_SHIFT


@key("version", _0="", _1="", unsupported="next highest", supported="")
def version(want: Situation, value: str, how: str) -> None:
    """The version in RAX."""
    if value.isdigit():
        want.version = int(value)
    elif value == "unsupported":
        want.version = want.call.versions if how == "next" else 255


@key("module", ready="", shutdown="", not_ready="")
def module(want: Situation, value: str, how: str) -> None:
    """The module's own state."""
    if value != "ready":
        want.then(
            lambda world: setattr(world.module.state, "v", "SHUTDOWN" if value == "shutdown" else "INIT")
        )


@key("rdx_reserved", zero="", _0="", nonzero="low high", _1="low high")
def rdx_reserved(want: Situation, value: str, how: str) -> None:
    """Bits of RDX that belong neither to the TDR's address nor to a flag."""
    _needs_tdr(want)
    if how:
        want.patch(_or("rdx", 1 << 11 if how == "low" else ABOVE_PA))


def _or(register: str, bits: int) -> Callable[[World, Words], None]:
    def change(_world: World, words: Words) -> None:
        words[register] |= bits

    return change


def _set(register: str, word: int) -> Callable[[World, Words], None]:
    def change(_world: World, words: Words) -> None:
        words[register] = word

    return change


def _needs_tdr(want: Situation) -> str:
    if not want.call.tdr:
        raise NotExpressible(f"{want.call.name} takes no TDR")
    return want.call.tdr


@key(
    "tdr",
    ok="",
    free="",
    bad_hpa="hkid misaligned",
    not_in_tdmr="below beyond",
    busy="page 2M 1G",
    wrong_type="nda tdcx reg",
)
def tdr(want: Situation, value: str, how: str) -> None:
    """The TDR operand."""
    register = _needs_tdr(want)
    if how == "misaligned" and want.call.flags:
        raise NotExpressible("the low bits of RDX are flags")
    if value == "busy":
        level = {"page": PG_LEVEL_4K, "2M": PG_LEVEL_2M, "1G": PG_LEVEL_1G}[how]
        want.then(lambda world: hold_page(world.pamt(world.tdr.pfn, level)))
    elif value != "ok" and how:
        want.patch(lambda world, words: words.update({register: _tdr_word(world, value, how)}))


def _tdr_word(world: World, value: str, how: str) -> int:
    if value == "wrong_type":
        pages = {"nda": NEW, "tdcx": world.tdr.tdcx[0], "reg": OTHER}
        if how == "reg":
            world.own(PageType.PT_REG, pages[how])
        return pages[how] << PAGE_SHIFT
    bad = {
        "hkid": world.tdr.pfn << PAGE_SHIFT | HKID_BIT,
        "misaligned": (world.tdr.pfn << PAGE_SHIFT) + 0x800,
        "below": (TDMR[0] - 1) << PAGE_SHIFT,
        "beyond": TDMR[1] << PAGE_SHIFT,
    }
    return bad[how]


@key("tdr_pamt", free="", busy="")
def tdr_pamt(want: Situation, value: str, how: str) -> None:
    """The PAMT entry of the TDR."""
    if value == "busy":
        want.then(lambda world: hold_page(world.pamt(world.tdr.pfn)))


@key("td", ok="", fatal="", not_fatal="")
def td(want: Situation, value: str, how: str) -> None:
    """TDR.FATAL."""
    want.fatal = value == "fatal"


@key("td_fatal", "fatal", _0="", _1="")
def td_fatal(want: Situation, value: str, how: str) -> None:
    """The same as a flag."""
    want.fatal = value == "1"


@key(
    "lifecycle",
    keys_configured="",
    not_keys_configured=LISTED_LIFECYCLES,
    **{state.name: "" for state in Lifecycle},
)
def lifecycle(want: Situation, value: str, how: str) -> None:
    """TDR.LIFECYCLE_STATE."""
    want.lifecycle = Lifecycle[how or value.upper()]


@key("tdcs_pages", "tdcx_pages", ok="", enough="", too_few="one_less none")
def tdcs_pages(want: Situation, value: str, how: str) -> None:
    """How many TDCX pages the TD has."""
    if value == "too_few":
        want.then(lambda world: _drop_tdcx(world, 1 if how == "one_less" else len(world.tdr.tdcx)))


def _drop_tdcx(world: World, pages: int) -> None:
    for _ in range(pages):
        world.pamt(world.tdr.tdcx.pop()).free()
        world.tdr.chldcnt.v -= 1


@key("op_state_lock", free="", busy="")
def op_state_lock(want: Situation, value: str, how: str) -> None:
    """The lock of OP_STATE."""
    _hold(want, value, "op_state_lock")


@key("sept_tree", "sept_tree_lock", free="", busy="")
def sept_tree(want: Situation, value: str, how: str) -> None:
    """The lock of the S-EPT tree."""
    _hold(want, value, "sept_tree_lock")


@key("epoch_lock", "td_epoch", free="", busy="")
def epoch_lock(want: Situation, value: str, how: str) -> None:
    """The lock of TD_EPOCH."""
    _hold(want, value, "epoch_lock")


def _hold(want: Situation, value: str, lock: str) -> None:
    if value == "busy":
        want.then(lambda world: setattr(_lock(world.tdcs, lock), "v", EXCLUSIVE))


def _lock(tdcs: Tdcs, name: str) -> object:
    if not hasattr(tdcs, name):
        raise NotExpressible(f"the TDCS has no {name} yet")
    return getattr(tdcs, name)


@key("td_debug", "debug", _0="", _1="")
def td_debug(want: Situation, value: str, how: str) -> None:
    """ATTRIBUTES.DEBUG."""
    want.debug = value == "1"


@measure("prev_epoch_refcount", against="0")
def prev_epoch_refcount(want: Situation, count: int) -> None:
    """How many vCPUs are inside that entered in the epoch before this one."""
    want.then(lambda world: _enter_before(world, count))


def _enter_before(world: World, count: int) -> None:
    unit = world.tdcs.epoch.v
    world.tdcs.epoch.v = unit.counted(unit.epoch + 1, count)


@measure("epoch_refcount", against="0")
def epoch_refcount(want: Situation, count: int) -> None:
    """How many vCPUs are inside that entered in this epoch."""
    want.then(
        lambda world: setattr(
            world.tdcs.epoch, "v", world.tdcs.epoch.v.counted(world.tdcs.epoch.v.epoch, count)
        )
    )


# What RCX says.


@key(
    "page_info",
    ok="",
    bad="low_bits high_bits level_7 level_over level_under misaligned",
    reserved="low_bits high_bits",
    bad_level="level_7 level_over level_under",
    misaligned="misaligned",
)
def page_info(want: Situation, value: str, how: str) -> None:
    """Level, alignment and reserved bits of RCX."""
    if want.call.gpa != "page_info":
        raise NotExpressible(f"{want.call.name} takes no page_info")
    if value == "ok":
        return
    if how == "misaligned" and want.level == PG_LEVEL_4K:
        how = "low_bits"
    levels = want.call.levels
    level = want.level.tdx
    if how == "level_over":
        root = 5 if want.five_levels else 4
        level = levels[-1].tdx + 1 if len(levels) < 4 else root
    elif how == "level_under":
        if levels[0] == PG_LEVEL_4K:
            raise NotExpressible("there is no level below 4K")
        level = levels[0].tdx - 1
    elif how == "level_7":
        level = 7
    bits = {"low_bits": 1 << 11, "high_bits": ABOVE_PA, "misaligned": 1 << PAGE_SHIFT}.get(how, 0)
    want.patch(lambda _world, words: words.update(rcx=words["rcx"] & ~7 | level | bits))


@key("gpa", ok="", private="", not_private="shared_bit above", not_8b_aligned="4 1", not_256b_aligned="128 8")
def gpa(want: Situation, value: str, how: str) -> None:
    """The guest address in RCX."""
    if not want.call.gpa:
        raise NotExpressible(f"{want.call.name} takes no GPA")
    if value.startswith("not_") and value.endswith("aligned"):
        if want.call.gpa == "page_info":
            raise NotExpressible(f"{want.call.name} takes pages")
        want.patch(_or("rcx", int(how)))
    elif value == "not_private":
        shared = 51 if want.five_levels else 47
        if want.call.has_list:
            want.list_spoilt = "not_private"
            return
        if how == "above" and want.five_levels:
            raise NotExpressible("nothing is above the shared bit")
        want.patch(_or("rcx", 1 << (shared if how == "shared_bit" else 51)))


# Pages that a call is given.


def _page_register(want: Situation) -> str:
    if not want.call.page:
        raise NotExpressible(f"{want.call.name} takes no new page")
    want.names_page = True
    return want.call.page


@key(
    "new_page",
    ok="",
    nda="",
    bad_hpa="hkid misaligned",
    not_in_tdmr="below beyond",
    busy="page 2M 1G",
    not_nda="reg ept below above",
    wrong_type="reg ept below above",
    null="",
)
def new_page(want: Situation, value: str, how: str) -> None:
    """The page that becomes the TD's."""
    if want.call.has_list:
        new_page_of_list(want, value, how)
        return
    register = _page_register(want)
    level = want.level if want.call.name == "TDH.MEM.PAGE.AUG" else PG_LEVEL_4K
    if value == "busy":
        at = {"page": level, "2M": PG_LEVEL_2M, "1G": PG_LEVEL_1G}[how]
        if how != "page" and at <= level:
            raise NotExpressible("that is the page itself")
        want.then(lambda world: hold_page(world.pamt(NEW, at)))
    elif value in ("not_nda", "wrong_type"):
        want.then(lambda world: _take_new_page(world, how, level))
    elif value == "null":
        want.patch(_set(register, NULL_PA))
    elif how:
        bad = {
            "hkid": NEW << PAGE_SHIFT | HKID_BIT,
            "misaligned": (NEW << PAGE_SHIFT) + 0x800 if level == PG_LEVEL_4K else (NEW + 1) << PAGE_SHIFT,
            "below": (TDMR[0] - level.pages) << PAGE_SHIFT,
            "beyond": TDMR[1] << PAGE_SHIFT,
        }
        want.patch(_set(register, bad[how]))


def _take_new_page(world: World, how: str, level: int) -> None:
    """Somebody has the page already: itself, a part of it, or what is around it."""
    if how in ("reg", "ept"):
        world.own(
            PageType.PT_REG if how == "reg" else PageType.PT_EPT,
            NEW,
            LEVELS[level] if how == "reg" else PG_LEVEL_4K,
        )
    elif how == "below":
        if level == PG_LEVEL_4K:
            raise NotExpressible("nothing is below 4K")
        world.own(PageType.PT_REG, NEW + 511)
    else:
        world.own(PageType.PT_REG, NEW, LEVELS[level + 1])


def new_page_of_list(want: Situation, value: str, how: str) -> None:
    """The new page as an entry of the list of new pages."""
    if want.call.name != "TDH.IMPORT.MEM":
        raise NotExpressible(f"{want.call.name} takes no new pages")
    if value == "busy":
        at = {"page": PG_LEVEL_4K, "2M": PG_LEVEL_2M, "1G": PG_LEVEL_1G}[how]
        want.then(lambda world: hold_page(world.pamt(NEW, at)))
    elif value in ("not_nda", "wrong_type"):
        want.then(lambda world: _take_new_page(world, how, PG_LEVEL_4K))
    elif value in ("bad_hpa", "not_in_tdmr"):
        if how == "misaligned":
            raise NotExpressible("a list entry has no bits below 4K")
        hkid = NEW | MAX_PFN
        want.new_page = {"hkid": hkid, "below": TDMR[0] - 1, "beyond": TDMR[1]}[how]
    elif value == "null":
        want.new_page = None


@key("new_page_pamt", free="", busy="")
def new_page_pamt(want: Situation, value: str, how: str) -> None:
    """The PAMT entry of the new page."""
    new_page(want, "busy" if value == "busy" else "ok", "page" if value == "busy" else "")


@key("r8", ok="", nonnull="", null="", same_hpa="", other_hpa="")
def r8(want: Situation, value: str, how: str) -> None:
    """R8 as such: a page, none, or the one that is mapped already."""
    if want.call.page != "r8":
        raise NotExpressible(f"{want.call.name} takes no page in R8")
    want.names_page = True
    if value == "null":
        want.patch(_set("r8", NULL_PA))
    elif value == "same_hpa":
        want.patch(_same_page)


def _same_page(world: World, words: Words) -> None:
    if world.page is None:
        raise NotExpressible("the entry maps no page")
    words["r8"] = world.page.pfn << PAGE_SHIFT


@key("allow_existing", _0="", _1="")
def allow_existing(want: Situation, value: str, how: str) -> None:
    """Flag of SEPT.ADD."""
    if want.call.name != "TDH.MEM.SEPT.ADD":
        raise NotExpressible(f"{want.call.name} has no such flag")
    want.patch(_or("rdx", int(value)))


@key("source", ok="", shared_hpa="", not_shared_hpa="private_key misaligned")
def source(want: Situation, value: str, how: str) -> None:
    """The source page of PAGE.ADD."""
    if want.call.name != "TDH.MEM.PAGE.ADD":
        raise NotExpressible(f"{want.call.name} takes no source")
    bits = {"private_key": 32 << 46, "misaligned": 0x800}.get(how, 0)
    want.patch(_set("r9", SHARED << PAGE_SHIFT | bits))
