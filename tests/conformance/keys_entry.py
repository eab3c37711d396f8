"""Keys about the S-EPT entry: its lock, the walk to it, races with the guest, what is below it, the pages it names, L2 VMs."""

from __future__ import annotations

from collections.abc import Callable

from tdx.module import SeptState
from tdx.module.pamt import PamtEntry
from tdx.module.septe import TDEL, TDHP
from tests.conformance.keys_td import hold_page
from tests.conformance.situation import EPOCH, MIG_EPOCH, NotExpressible, Situation
from tests.conformance.vocabulary import key, measure
from tests.conformance.world import CHILD, RUN, World
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K

MIGRATION_FORM = 1 << 63
NO_ACCESS = "FREE NL_BLOCKED BLOCKED PENDING PENDING_BLOCKED REMOVED"
ACCESSIBLE = "MAPPED BLOCKEDW EXPORTED_BLOCKEDW EXPORTED_DIRTY EXPORTED_DIRTY_BLOCKEDW"
NON_LEAVES = "FREE NL_MAPPED NL_BLOCKED REMOVED"
LEAVES = "BLOCKED PENDING MAPPED"


def _needs_entry(want: Situation) -> None:
    if not want.call.levels:
        raise NotExpressible(f"{want.call.name} acts on no S-EPT entry")


# Locks of the entry and of the pages it names.


@key("entry_lock", "sept_entry", free="", held="", busy="", held_by_host="", held_by_guest="")
def entry_lock(want: Situation, value: str, how: str) -> None:
    """TDEL."""
    _needs_entry(want)
    if value != "free":
        want.then(lambda world: setattr(world.entry, "v", world.entry.v | TDEL))


@key("tdhp", _0="", _1="")
def tdhp(want: Situation, value: str, how: str) -> None:
    """TDHP: a host call has lost, guests keep off."""
    _needs_entry(want)
    if value == "1":
        want.then(lambda world: setattr(world.entry, "v", world.entry.v | TDHP))


@measure("hp_busy_elapsed", against="timeout", least=-1)
def hp_busy_elapsed(want: Situation, distance: int) -> None:
    """How long the vCPU has lost to host priority: so many ns more than its timeout."""
    if not want.call.is_guest:
        raise NotExpressible(f"{want.call.name} is no guest's call")
    want.then(lambda world: _lost_since(world, distance))


def _lost_since(world: World, distance: int) -> None:
    world.vcpu.hp_busy_since_ns = -(world.tdcs.hp_lock_timeout_ns + distance)


def _named_page(world: World) -> PamtEntry:
    """What the entry maps, or the S-EPT page that it names."""
    return _table_page(world) if world.page is None else world.page


def _table_page(world: World) -> PamtEntry:
    if world.below is None:
        raise NotExpressible("the entry names no page that the PAMT has")
    return world.pamt(world.below.pfn)


@key("page_pamt", "old_page_pamt", "split_pamt", "leaf_pamt", free="", busy="")
def page_pamt(want: Situation, value: str, how: str) -> None:
    """The PAMT entry of the page that the entry names, of the mapping's size."""
    if value == "busy":
        want.then(lambda world: hold_page(_named_page(world)))


@key("sept_page_pamt", "removed_sept_page_pamt", free="", busy="")
def sept_page_pamt(want: Situation, value: str, how: str) -> None:
    """The PAMT entry of the S-EPT page below."""
    if value == "busy":
        want.then(lambda world: hold_page(_table_page(world)))


@key("merged_pamt", free="", busy="")
def merged_pamt(want: Situation, value: str, how: str) -> None:
    """The PAMT entry of the page that PROMOTE would make."""
    if value == "busy":
        want.then(lambda world: hold_page(world.pamt(RUN, want.level)))


# The walk.


@key(
    "walk",
    ok="",
    reached="",
    stopped_above=f"{NO_ACCESS} MAPPED",
    failed=f"{NO_ACCESS} MAPPED",
    no_accessible_leaf=NO_ACCESS,
)
def walk(want: Situation, value: str, how: str) -> None:
    """Where the walk ends, and at what."""
    _needs_entry(want)
    if value in ("stopped_above", "failed"):
        _stop_above(want, SeptState[how])
    elif value == "no_accessible_leaf":
        want.state = SeptState[how]


def _stop_above(want: Situation, state: SeptState) -> None:
    if want.level + 1 > 4:
        raise NotExpressible(f"nothing is above {want.level.short}")
    want.above = state


@key(
    "stop_entry",
    guest_accessible_leaf=ACCESSIBLE,
    other=NO_ACCESS,
    not_guest_accessible=NO_ACCESS,
    not_guest_accessible_leaf=NO_ACCESS,
    no_access=NO_ACCESS,
    leaf=LEAVES,
    nonleaf="FREE NL_BLOCKED REMOVED",
    blocked="BLOCKED NL_BLOCKED PENDING_BLOCKED",
    pending="PENDING",
    free="FREE",
    removed="REMOVED",
    **{state.name: "" for state in SeptState if state is not SeptState.NL_MAPPED},
)
def stop_entry(want: Situation, value: str, how: str) -> None:
    """What the walk meets above."""
    if want.above is None:
        raise NotExpressible("stop_entry without walk=stopped_above")
    _stop_above(want, SeptState[how or value.upper()])


@key(
    "race",
    none="",
    nonleaf_seen_before_lock="FREE NL_BLOCKED",
    leaf_seen_before_lock="PENDING BLOCKED",
    free_seen_before_lock="FREE",
    **{
        f"{state.name.lower()}_seen_before_lock": state.name
        for state in SeptState
        if state is not SeptState.FREE
    },
)
def race(want: Situation, value: str, how: str) -> None:
    """What stood in the entry when the walk read it, before the lock."""
    if value == "none":
        return
    if not want.call.is_guest:
        raise NotExpressible("host calls read the entry again under its lock")
    want.seen = SeptState[how]


# Tracking.


@key("tracked", _0="just_blocked still_inside migration_form", _1="left long_ago")
def tracked(want: Situation, value: str, how: str) -> None:
    """Whether no LP can have cached the range any more, as BEPOCH and the REFCOUNTs say."""
    blocked_in = EPOCH - 1
    others, own = (1, 0) if blocked_in & 1 else (0, 1)
    if how == "just_blocked":
        want.bepoch = EPOCH
    elif how == "still_inside":
        want.bepoch, want.refcounts = blocked_in, (own, others)
    elif how == "migration_form":
        want.bepoch = MIGRATION_FORM | MIG_EPOCH
    elif how == "left":
        want.bepoch, want.refcounts = blocked_in, (others, own)
    else:
        want.bepoch, want.refcounts = EPOCH - 2, (1, 1)


@key("irq", "interrupt", _0="", _1="")
def irq(want: Situation, value: str, how: str) -> None:
    """Whether an interrupt waits where the call tests for one."""
    want.interrupt = value == "1"


# Children.


@key(
    "children",
    all_free="",
    not_all_free="PENDING@0 MAPPED@511 REMOVED@3 BLOCKED@7 NL_MAPPED@5",
    mapped_run="",
    pending_run="",
    not_mergeable="free blocked nonleaf stride unaligned mixed alias attribute last",
    child_lock_held="0 300 511",
)
def children(want: Situation, value: str, how: str) -> None:
    """What the S-EPT page below holds."""
    if want.state not in (SeptState.NL_MAPPED, SeptState.NL_BLOCKED):
        raise NotExpressible(f"an entry that is {want.state.name} has no children")
    if want.level == PG_LEVEL_4K:
        raise NotExpressible("nothing is below 4K")
    if value == "all_free":
        want.children = value
    elif value == "not_all_free":
        state, _, index = how.partition("@")
        if state == "NL_MAPPED" and want.level == PG_LEVEL_2M:
            raise NotExpressible("4K entries name no tables")
        want.children, want.child = f"one_{state.lower()}", int(index)
    else:
        want.children = "PENDING" if value == "pending_run" else "MAPPED"
        if value == "child_lock_held":
            want.then(lambda world: _change_child(world, int(how), lambda word: word | TDEL))
        elif value == "not_mergeable":
            want.then(lambda world: _spoil(world, how))


def _change_child(world: World, index: int, change: Callable[[int], int]) -> None:
    assert world.below is not None
    cell = world.below.septe(world.below.gfn(index))
    cell.v = change(cell.v)


def _spoil(world: World, how: str) -> None:
    """Break a run that could be merged, in one of the ways of reference 8.12."""
    table = world.below
    assert table is not None
    page = table.level.pages
    if how == "unaligned":
        for n in range(512):
            world.set_child(table, n, SeptState.MAPPED, CHILD + (n + 1) * page)
    elif how == "alias":
        _change_child(world, 9, lambda word: word | 1 << 58)
    elif how == "attribute":
        _change_child(world, 9, lambda word: word ^ 1 << 3)
    else:
        index, state, pfn = {
            "free": (4, SeptState.FREE, 0),
            "blocked": (5, SeptState.BLOCKED, RUN + 5 * page),
            "nonleaf": (6, SeptState.NL_MAPPED, 0),
            "stride": (7, SeptState.MAPPED, CHILD),
            "mixed": (8, SeptState.PENDING, RUN + 8 * page),
            "last": (511, SeptState.PENDING, RUN + 511 * page),
        }[how]
        world.set_child(table, index, state, pfn)
