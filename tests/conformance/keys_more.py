"""Keys of the calls that act on no S-EPT entry: the life of a TD and its vCPUs, keys and caches, the event log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tdx.module import PROFILES, SeptState
from tdx.module.exits import LastTdExit, TdExit, VeInfo
from tdx.module.leaves.tdh_phymem_cache_wb import SUB_BLOCKS
from tdx.module.objects import TDCX_PAGES_MAX, TDVPS_PAGES_MAX, Epoch, HkidState, VcpuState
from tdx.module.pamt import MAX_PFN, PageType
from tdx.module.sharex import HP
from tests.conformance.keys_td import hold_page
from tests.conformance.situation import EPOCH, NEW, NotExpressible, Situation, Words
from tests.conformance.vocabulary import key
from tests.conformance.world import HKID, TDMR, World
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Gpa, gpa_of

ELSEWHERE = 7
"""Another logical processor."""
BIT_63 = 1 << 63
PRIVATE_KEY = HKID << 46


def only(want: Situation, *names: str) -> None:
    """Raises: NotExpressible: the call is none of these."""
    if not want.call.name.startswith(names):
        raise NotExpressible(f"{want.call.name} takes nothing of the kind")


def put(register: str, word: int) -> Callable[[World, Words], None]:
    """A register's word, whatever stood there."""

    def change(_world: World, words: Words) -> None:
        words[register] = word

    return change


@key("profile", **dict.fromkeys(PROFILES, ""))
def profile(want: Situation, value: str, how: str) -> None:
    """Another release than the one that the table is run against."""
    want.profile = PROFILES[value]


@key("rax", reserved="bit_24 bit_63", no_leaf="")
def rax(want: Situation, value: str, how: str) -> None:
    """RAX beside its version: reserved bits, a number that no leaf has."""
    bits = {"bit_24": 1 << 24, "bit_63": BIT_63, "": 0x7FF}[how]
    want.patch(lambda _world, words: words.update(rax=words["rax"] | bits))


class Log:
    """Stands for the kernel's event log; keeps what it is told, and the registers of the call."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self.told: list[Any] = []

    def write(self, _now_ns: int, _step: int, _thread: str, event: Any) -> None:
        """Keep it."""
        self.told.append(event)

    @property
    def agrees(self) -> bool:
        """Whether call and return were told, the call with the registers that went in."""
        names = [event.name for event in self.told if event.name in ("tdx_seamcall", "tdx_seamret")]
        entered = self.told[0]
        registers = tuple(self.words[name] for name in ("rcx", "rdx", "r8"))
        return (
            names == ["tdx_seamcall", "tdx_seamret"] and (entered.rcx, entered.rdx, entered.r8) == registers
        )


@key("logged", _0="", _1="")
def logged(want: Situation, value: str, how: str) -> None:
    """Whether the run keeps an event log."""
    if value == "1":
        want.hand(lambda world, words, _context: setattr(world.kernel, "events", Log(words)))


# vCPUs.


@key(
    "tdvpr",
    ok="",
    bad_hpa="hkid misaligned",
    not_in_tdmr="below beyond",
    busy="page 2M 1G",
    wrong_type="nda tdcx",
)
def tdvpr(want: Situation, value: str, how: str) -> None:
    """The TDVPR operand."""
    register = want.call.tdvpr
    if not register:
        raise NotExpressible(f"{want.call.name} takes no TDVPR")
    if value == "busy":
        level = {"page": PG_LEVEL_4K, "2M": PG_LEVEL_2M, "1G": PG_LEVEL_1G}[how]
        want.then(lambda world: hold_page(world.pamt(world.vcpu.pfn, level)))
    elif how:
        want.patch(lambda world, words: words.update({register: _tdvpr_word(world, how)}))


def _tdvpr_word(world: World, how: str) -> int:
    frame = {
        "hkid": world.vcpu.pfn | MAX_PFN,
        "below": TDMR[0] - 1,
        "beyond": TDMR[1],
        "nda": NEW,
        "tdcx": world.tdr.tdcx[0],
    }.get(how, world.vcpu.pfn)
    return (frame << PAGE_SHIFT) + (0x800 if how == "misaligned" else 0)


@key("vcpu", **{state.name.lower(): "" for state in VcpuState})
def vcpu(want: Situation, value: str, how: str) -> None:
    """TDVPS.STATE."""
    want.then(lambda world: setattr(world.vcpu.state, "v", VcpuState[value.upper()]))


@key("vcpu_pages", "tdvps_pages", enough="", too_few="", full="")
def vcpu_pages(want: Situation, value: str, how: str) -> None:
    """How many pages the vCPU has."""
    if value == "too_few":
        want.then(_drop_vcpu_page)
    elif value == "full":
        want.then(_fill_vcpu)


def _drop_vcpu_page(world: World) -> None:
    world.pamt(world.vcpu.tdcx.pop()).free()
    world.tdr.chldcnt.v -= 1


def _fill_vcpu(world: World) -> None:
    while 1 + len(world.vcpu.tdcx) < TDVPS_PAGES_MAX:
        world.vcpu.tdcx.append(world.own(PageType.PT_TDCX))


@key("associated", here="", elsewhere="", nowhere="")
def associated(want: Situation, value: str, how: str) -> None:
    """With which LP the vCPU is associated."""
    lpid = {"here": 0, "elsewhere": ELSEWHERE, "nowhere": -1}[value]
    want.then(lambda world: _associate(world, lpid))


def _associate(world: World, lpid: int) -> None:
    world.vcpu.assoc_lpid.v = lpid
    world.tdcs.num_assoc_vcpus.v = int(lpid >= 0)


@key("vcpus", below_max="", max="")
def vcpus(want: Situation, value: str, how: str) -> None:
    """Whether the TD has all the vCPUs that it may have."""
    if value == "max":
        want.then(lambda world: setattr(world.tdcs.num_vcpus, "v", world.tdcs.max_vcpus))


@key("last_exit", fault="", trap="", tdvmcall="")
def last_exit(want: Situation, value: str, how: str) -> None:
    """How the guest left last time."""
    last = {"fault": LastTdExit.ASYNC_FAULT, "trap": LastTdExit.ASYNC_TRAP, "tdvmcall": LastTdExit.TDVMCALL}
    want.then(lambda world: setattr(world.vcpu, "last_td_exit", last[value]))


@key("enter_flags", none="", hint="", resume_l1="")
def enter_flags(want: Situation, value: str, how: str) -> None:
    """Flags beside the TDVPR's address: host recoverability, and going on as L1."""
    only(want, "TDH.VP.ENTER")
    bit = {"none": 0, "hint": 1 << 52, "resume_l1": 1 << 53}[value]
    want.patch(lambda _world, words: words.update(rcx=words["rcx"] | bit))


@key("vcpu_epoch", now="", before="")
def vcpu_epoch(want: Situation, value: str, how: str) -> None:
    """In which TLB epoch the vCPU was entered last."""
    want.then(lambda world: setattr(world.vcpu, "vcpu_epoch", EPOCH - (value == "before")))


@key("suspect_gpa", none="", mapped="MAPPED", faulting="BLOCKED FREE PENDING")
def suspect_gpa(want: Situation, value: str, how: str) -> None:
    """What the zero-step filter has in its list, and whether that would translate now."""
    only(want, "TDH.VP.ENTER")
    if value != "none":
        want.state = SeptState[how]
        want.then(_suspect)


def _suspect(world: World) -> None:
    world.vcpu.last_epf_gpa_list.append(Gpa(gpa_of(world.gfn)))
    world.vcpu.rip = world.vcpu.entry_rip = 0x1000


@key("entered_before", same_vcpu="", other_vcpu="")
def entered_before(want: Situation, value: str, how: str) -> None:
    """Which vCPU this LP has run last."""
    if value == "same_vcpu":
        want.then(lambda world: setattr(world.lp, "last_tdvpr", world.vcpu.pfn))


@key("notify", _0="", _1="")
def notify(want: Situation, value: str, how: str) -> None:
    """NOTIFY_ENABLES: the guest wants to hear that it is being stepped. The last exit was a private EPT violation."""
    want.then(lambda world: setattr(world.tdcs, "notify_enables", int(value)))
    want.then(lambda world: setattr(world.vcpu, "last_violation", VeInfo(48, 2, 0, Gpa(0))))


@key("guest", leaves="", triple_fault="", td_dies="", td_died_elsewhere="")
def guest(want: Situation, value: str, how: str) -> None:
    """What the guest does inside TDH.VP.ENTER before it leaves."""
    only(want, "TDH.VP.ENTER")
    leave = {
        "leaves": TdExit.external_interrupt(),
        "triple_fault": TdExit.triple_fault(),
        "td_dies": TdExit.td_is_dead(TdExit.external_interrupt().reason),
        "td_died_elsewhere": TdExit.external_interrupt(),
    }[value]
    want.hand(
        lambda world, _words, context: context.update(guest=_guest(world, leave, fatal="elsewhere" in value))
    )


def _guest(world: World, leave: TdExit, *, fatal: bool) -> Callable[[], Any]:
    def run() -> Any:
        yield world.module.state.read_once()
        if fatal:
            world.tdr.fatal = True
        return leave

    return run


@key("mask", ok="", reserved="rax rcx rsp bit_32", rbp="")
def mask(want: Situation, value: str, how: str) -> None:
    """Which registers TDG.VP.VMCALL hands over."""
    only(want, "TDG.VP.VMCALL")
    bits = {"rax": 1, "rcx": 2, "rsp": 16, "bit_32": 1 << 32}.get(how, 0) | (value == "rbp") << 5
    want.patch(lambda _world, words: words.update(rcx=words["rcx"] | bits | 1 << 10))


@key("no_rbp_mod", _0="", _1="")
def no_rbp_mod(want: Situation, value: str, how: str) -> None:
    """CONFIG_FLAGS.NO_RBP_MOD."""
    want.then(lambda world: setattr(world.tdcs, "config_flags", int(value) << 2))


@key("ve_info", valid="", none="")
def ve_info(want: Situation, value: str, how: str) -> None:
    """VE_INFO: what the last #VE was about, if it was not fetched yet."""
    info = VeInfo(48, 2, 3, Gpa(4096)) if value == "valid" else None
    want.then(lambda world: setattr(world.vcpu, "ve_info", info))


# The TD.


@key("tdcx_added", some="", all="")
def tdcx_added(want: Situation, value: str, how: str) -> None:
    """Whether the TD has all the TDCX pages that it may have."""
    if value == "all":
        want.then(_fill_tdcx)


def _fill_tdcx(world: World) -> None:
    while len(world.tdr.tdcx) < TDCX_PAGES_MAX:
        world.tdr.tdcx.append(world.own(PageType.PT_TDCX))


@key("hkid", ok="", not_private="", in_use="")
def hkid(want: Situation, value: str, how: str) -> None:
    """The key id that MNG.CREATE is given."""
    only(want, "TDH.MNG.CREATE")
    if value != "ok":
        want.patch(put("rdx", 1 if value == "not_private" else HKID))


@key("keys_missing", last="", this_and_another="", not_this="")
def keys_missing(want: Situation, value: str, how: str) -> None:
    """The packages on which the TD's key is not configured yet; the call is made on package 0."""
    packages = {"last": {0}, "this_and_another": {0, 1}, "not_this": {1}}[value]
    want.then(lambda world: setattr(world.tdr, "keys_missing", set(packages)))


@key("vcpus_flushed", _0="", _1="")
def vcpus_flushed(want: Situation, value: str, how: str) -> None:
    """Whether no vCPU is associated with an LP any more."""
    want.then(lambda world: _associate(world, -1 if value == "1" else 0))


@key("caches", written_back="", dirty="")
def caches(want: Situation, value: str, how: str) -> None:
    """Whether every package has written back the TD's lines."""
    dirty = {0} if value == "dirty" else set()
    want.then(lambda world: setattr(world.module.kot.hkids[HKID], "to_write_back", set(dirty)))


@key("hkid_state", **{state.name.lower(): "" for state in HkidState})
def hkid_state(want: Situation, value: str, how: str) -> None:
    """The state of the TD's key id."""
    want.then(lambda world: setattr(world.module.kot.hkids[HKID], "state", HkidState[value.upper()]))


@key("cache_command", start="", resume="", bad="two high")
def cache_command(want: Situation, value: str, how: str) -> None:
    """RCX of PHYMEM.CACHE.WB."""
    only(want, "TDH.PHYMEM.CACHE.WB")
    want.patch(put("rcx", {"two": 2, "high": BIT_63}.get(how, int(value == "resume"))))


@key("cache_saved", none="", some="", last="")
def cache_saved(want: Situation, value: str, how: str) -> None:
    """Where a write-back was interrupted on this package, if it was: after the first sub-block, or before the last."""
    done = {"some": 1, "last": SUB_BLOCKS - 1}.get(value)
    if done is not None:
        want.then(lambda world: world.module.wb_saved.__setitem__(0, (done, frozenset((HKID,)))))


PARAMS: dict[str, dict[str, object]] = {
    "reserved_attribute": {"attributes": 1 << 5},
    "debug_and_migratable": {"attributes": 1 | 1 << 29},
    "perfmon_and_migratable": {"attributes": 1 << 63 | 1 << 29},
    "no_vcpus": {"max_vcpus": 0},
    "too_many_vcpus": {"max_vcpus": 0x10000},
    "four_l2_vms": {"num_l2_vms": 4},
    "three_l2_vms": {"num_l2_vms": 3},
    "reserved_flag": {"config_flags": 1 << 3},
    "wide": {"gpaw": True},
    "migratable": {"attributes": 1 << 29},
}
"""What a value of `td_params` hands over."""


@key("td_params", ok="", misaligned="", private="", **dict.fromkeys(PARAMS, ""))
def td_params(want: Situation, value: str, how: str) -> None:
    """TD_PARAMS of MNG.INIT: where they are, and what they say."""
    only(want, "TDH.MNG.INIT")
    if value in ("misaligned", "private"):
        want.patch(put("rdx", 0x200 if value == "misaligned" else PRIVATE_KEY))
    elif value != "ok":
        want.hand(lambda _world, _words, context: context.update(PARAMS[value]))


@key("td_epoch_is", last="")
def td_epoch_is(want: Situation, value: str, how: str) -> None:
    """TD_EPOCH before the one that bit 63 of BEPOCH rules out."""
    want.then(lambda world: setattr(world.tdcs.epoch, "v", Epoch((1 << 63) - 2, 0, 0)))


@key("inside", _0="", _1="")
def inside(want: Situation, value: str, how: str) -> None:
    """Whether a REFCOUNT is up, against all locks."""
    want.then(lambda world: setattr(world.tdcs.epoch, "v", Epoch(EPOCH, int(value), 0)))


@key("tree_wanted", _0="", _1="")
def tree_wanted(want: Situation, value: str, how: str) -> None:
    """Whether a host call has lost the tree's lock, which has a host-priority bit in later releases."""
    if value == "1":
        want.then(lambda world: setattr(world.lp, "interrupt_pending", lambda: _want_tree(world)))


def _want_tree(world: World) -> bool:
    """A host call loses the tree's lock just when the call looks for interrupts, of which there are none."""
    world.tdcs.sept_tree_lock.v |= HP
    return False


@key("chldcnt", zero="", nonzero="")
def chldcnt(want: Situation, value: str, how: str) -> None:
    """Whether the TD has pages left beside its TDR."""
    if value == "zero":
        want.then(_free_all)


def _free_all(world: World) -> None:
    for page in list(world.module.pamt.assigned()):
        if page.owner == world.tdr.pfn:
            page.free()
    world.tdr.chldcnt.v = 0
    world.module.sept_pages.clear()
