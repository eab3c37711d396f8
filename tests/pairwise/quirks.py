"""The quirks of reference 14 as properties of small worlds: each can be seen, and in releases that mend it cannot.

A row is a world and what to look for at the end of an execution: some interleaving must show it (`kernel.sometimes`). `mended` are
the releases in which none does; a release that is neither 1.5.01 nor in that list is not asked. Rows 4 and 12 are hazards: what is
shown is that the dangerous overlap happens, not that harm comes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sim import Kernel, Steps, explore
from sim.access import Access
from sim.thread import Thread
from tdx.module import (
    SeptState,
    VirtualizationException,
    private_ept_violation,
    tdh_phymem_page_rdmd,
    tdh_vp_enter,
)
from tdx.module.objects import NOT_ASSOCIATED
from tdx.module.profile import TDX_1_5_01, Profile
from tdx.module.septe import TDHP, Septe
from tests.pairwise.calls import CALLS
from tests.pairwise.states import Age, Guest, State
from tests.pairwise.world import World
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, PgLevel, gpa_of

S = SeptState
READ = 1
"""Exit qualification: the guest reads."""
LINE = {call.key: call for call in CALLS}
LATER = ("1.5.28", "nbr", "2.0")
"""Releases whose writes keep TDHP, whose PROMOTE holds the tree exclusive, and whose zero-step filter shares it."""


class Scene:
    """A world whose threads make calls of the table, one after the other, and remember what these returned."""

    def __init__(self, kernel: Kernel, profile: Profile, state: State) -> None:
        self.kernel = kernel
        self.world = World(kernel, state, profile)
        self.returned: dict[str, list[str]] = {}

    def thread(self, who: str, *keys: str) -> None:
        """Thread `who` makes these calls."""
        for key in keys:
            LINE[key].prepare(self.world, who)
        self.kernel.thread(who, self._calls(who, keys))

    def _calls(self, who: str, keys: tuple[str, ...]) -> Steps[None]:
        returned = self.returned.setdefault(who, [])
        for key in keys:
            returned.append((yield from LINE[key].steps(self.world, who)))

    def now(self, key: str, who: str = "a") -> str:
        """A call that is made at once: before the threads start, or after they have ended."""
        return self.kernel.prepare(LINE[key].steps(self.world, who))

    def entry(self, level: PgLevel | None = None) -> Septe:
        """The entry's word, or the parent's."""
        entry = self.world.module.peek_septe(self.world.td, self.world.gfn, level or self.world.level)
        assert entry is not None
        return entry


Seen = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Quirk:
    """One row. `scene` fills the world and returns what to look for when all threads have ended."""

    row: int
    text: str
    scene: Callable[[Kernel, Profile], Seen]
    mended: tuple[str, ...] = ()
    is_hazard: bool = False

    def seen_in(self, profile: Profile = TDX_1_5_01) -> tuple[bool, int]:
        """Whether some interleaving shows it, and how many there are."""

        def world(kernel: Kernel) -> None:
            kernel.sometimes(self.text)
            seen = self.scene(kernel, profile)

            def look() -> bool:
                if seen():
                    kernel.reached(self.text)
                return True

            kernel.at_end("looked for it", look)

        report = explore(world, strategy="dpor", races=False)
        assert report.proved or report.unmet, report.claim
        return not report.unmet, report.executions


def _running(parent: SeptState, entry: SeptState | None = None, **rest: Any) -> State:
    phase = rest.pop("phase", "RUNNABLE")
    level = rest.pop("level", PG_LEVEL_4K)
    neighbours = rest.pop("rest", S.FREE if entry is not None else None)
    return State(level, phase, parent, entry=entry, rest=neighbours, **rest)


# One scene a row.


def _false_mismatch(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.FREE, guest=Guest.CURRENT))
    scene.thread("guest", "PAGE.ACCEPT at entry")
    scene.thread("a", "PAGE.AUG at entry")
    return lambda: scene.returned["guest"] == ["PAGE_SIZE_MISMATCH|0"]


def _false_violation(kernel: Kernel, profile: Profile) -> Seen:
    state = _running(S.PENDING_BLOCKED, parent_age=Age.PREVIOUS, guest=Guest.CURRENT)
    scene = Scene(kernel, profile, state)
    scene.thread("guest", "PAGE.ACCEPT at parent")
    scene.thread("a", "PAGE.DEMOTE at parent")
    locked = _locked_over(scene, "guest", PG_LEVEL_2M, S.NL_MAPPED)
    return lambda: locked() and scene.returned["guest"] == ["TDEXIT(1)"]


def _locked_over(scene: Scene, who: str, level: PgLevel, state: SeptState) -> Seen:
    """Whether that thread came to lock the entry in that state."""
    found: list[bool] = []
    cell = _cell(scene, level)

    def look(_kernel: Kernel, thread: Thread, access: Access) -> None:
        if access.target is cell and thread.name == who and access.writes and access._value is not None:
            word = Septe(access._value)
            found.append(not word.is_locked and word.state is state)

    scene.kernel.check(look)
    return lambda: any(found)


def _cell(scene: Scene, level: PgLevel) -> Any:
    page = scene.world.tdcs.root
    while page.level > level:
        page = scene.world.module.sept_pages[Septe(page.septe(scene.world.gfn).v).pfn_at(0)]
    return page.septe(scene.world.gfn)


def _removed_is_mismatch(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.REMOVED, phase="LIVE_IMPORT", guest=Guest.CURRENT))
    scene.thread("guest", "PAGE.ACCEPT at entry")
    return lambda: scene.returned["guest"] == ["PAGE_SIZE_MISMATCH|0"]


def _priority_lost(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.PENDING, guest=Guest.CURRENT))
    scene.thread("guest", "PAGE.ACCEPT at entry")
    scene.thread("a", "RANGE.BLOCK at entry")
    return lambda: scene.returned["a"] == ["OPERAND_BUSY|RCX"] and not scene.entry().has_host_priority


def _lost_to_one_that_may_not(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.PENDING, guest=Guest.CURRENT))
    _cell(scene, PG_LEVEL_4K).v |= TDHP
    scene.thread("guest", "PAGE.ACCEPT at entry")
    scene.thread("a", "SEPT.RD at entry")
    return lambda: scene.returned == {"guest": ["OPERAND_BUSY|RCX"], "a": ["OPERAND_BUSY|RCX"]}


def _walk_into_freed_page(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.MAPPED, rest=S.MAPPED, phase="INITIALIZED"))
    scene.thread("a", "PAGE.PROMOTE at parent")
    scene.thread("b", "SEPT.RD at entry")
    return lambda: "sept_page_freed_under_walk" in kernel.met


def _suspect_blocks_host(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.FREE))
    scene.thread("a", "VP.ENTER (zero-step) at vCPU")
    scene.thread("b", "PAGE.AUG at entry")
    return lambda: scene.returned["b"] == ["OPERAND_BUSY|SEPT_TREE"]


def _host_blocks_suspect(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.FREE))
    scene.thread("a", "VP.ENTER (zero-step) at vCPU")
    scene.thread("b", "PAGE.AUG at entry")
    return lambda: scene.returned["a"] == ["OPERAND_BUSY|SEPT_TREE"]


def _priority_on_free_lock(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.PENDING, guest=Guest.CURRENT))
    scene.thread("guest", "PAGE.ATTR.RD at entry")
    scene.thread("a", "SEPT.RD at entry")

    def seen() -> bool:
        left = scene.entry().has_host_priority and not scene.entry().is_locked
        return left and scene.now("PAGE.ACCEPT at entry") == "OPERAND_BUSY|RCX"

    return seen


def _one_more_track(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.MAPPED))
    scene.thread("a", "RANGE.BLOCK at entry")
    scene.thread("b", "TRACK at TD")
    early: list[bool] = []
    cell, epoch = _cell(scene, PG_LEVEL_4K), scene.world.tdcs.epoch

    def look(_kernel: Kernel, _thread: Thread, access: Access) -> None:
        if access.target is epoch and access.writes:
            early.append(Septe(cell.peek()).state is S.BLOCKED)

    kernel.check(look)
    return lambda: early == [True] and scene.now("PAGE.REMOVE at entry") == "TLB_TRACKING_NOT_DONE|RCX"


def _wrong_operand(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.BLOCKED, entry_age=Age.NEW))
    scene.thread("a", "RANGE.UNBLOCK at entry")
    return lambda: scene.returned["a"] == ["TLB_TRACKING_NOT_DONE|SEPT_TREE"]


def _double_fault(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.PENDING, guest=Guest.CURRENT))
    world = scene.world
    given: list[VirtualizationException] = []

    def guest() -> Steps[None]:
        for _ in range(2):
            violation = yield from private_ept_violation(
                world.module, world.td, world.vcpus["guest"], gpa_of(world.gfn), READ, None
            )
            assert isinstance(violation, VirtualizationException)
            given.append(violation)

    kernel.thread("guest", guest())
    return lambda: [ve.double_fault for ve in given] == [False, True]


def _block_twice(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.BLOCKED, entry_age=Age.PREVIOUS))
    scene.thread("a", "RANGE.BLOCK at entry", "PAGE.REMOVE at entry")
    return lambda: scene.returned["a"] == ["GPA_RANGE_ALREADY_BLOCKED|RCX", "SUCCESS"]


def _merging(kernel: Kernel, profile: Profile) -> Scene:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.MAPPED, rest=S.MAPPED, phase="INITIALIZED"))
    scene.thread("a", "PAGE.PROMOTE at parent")
    scene.thread("b", "SEPT.RD at entry")
    return scene


def _priority_spoils_merge(kernel: Kernel, profile: Profile) -> Seen:
    scene = _merging(kernel, profile)
    return lambda: scene.returned["a"] == ["EPT_INVALID_PROMOTE_CONDITIONS|RCX"]


def _priority_is_merged(kernel: Kernel, profile: Profile) -> Seen:
    scene = _merging(kernel, profile)
    return lambda: scene.returned["a"] == ["SUCCESS"] and scene.entry(PG_LEVEL_2M).has_host_priority


def _relocated_under_reader(kernel: Kernel, profile: Profile) -> Seen:
    state = _running(S.NL_MAPPED, S.EXPORTED_BLOCKEDW, phase="LIVE_EXPORT", guest=Guest.CURRENT)
    scene = Scene(kernel, profile, state)
    world = scene.world
    old = world.mapped()
    scene.thread("a", "PAGE.RELOCATE at entry")

    def seen() -> bool:
        freed = kernel.prepare(tdh_phymem_page_rdmd(world.module, pfn=old)).rcx == 0
        return freed and world.vcpus["guest"].inside

    return seen


def _removed_stays(kernel: Kernel, profile: Profile) -> Seen:
    state = _running(S.NL_MAPPED, S.BLOCKED, entry_age=Age.PREVIOUS, level=PG_LEVEL_2M, phase="LIVE_IMPORT")
    scene = Scene(kernel, profile, state)
    keys = ("PAGE.REMOVE", "SEPT.ADD")
    scene.thread("a", *(f"{key} at entry" for key in keys))

    def seen() -> bool:
        blocked = [
            scene.now(key) for key in ("RANGE.BLOCK at parent", "TRACK at TD", "SEPT.REMOVE at parent")
        ]
        reopened = [scene.now("RANGE.UNBLOCK at parent"), scene.now("PAGE.AUG at entry")]
        return (
            scene.returned["a"] == ["SUCCESS", "EPT_ENTRY_STATE_INCORRECT|RCX"]
            and blocked == ["SUCCESS", "SUCCESS", "EPT_PAGE_NOT_FREE|RCX"]
            and reopened == ["SUCCESS", "SUCCESS"]
        )

    return seen


def _running_elsewhere(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.FREE))
    returned = _enter_on(scene, {"a": "a", "b": "a"})
    return lambda: "VCPU_STATE_INCORRECT" in returned.values()


def _enter_on(scene: Scene, vcpus: dict[str, str]) -> dict[str, str]:
    """Each thread enters a vCPU on its own LP."""
    returned: dict[str, str] = {}
    world = scene.world

    def enter(who: str, whose: str) -> Steps[None]:
        ret = yield from tdh_vp_enter(
            world.module, tdvpr_pfn=world.vcpus[whose].pfn, lp=world.lps[who], guest=world.leave
        )
        returned[who] = str(ret).removeprefix("TDX_")

    for who, whose in vcpus.items():
        scene.kernel.thread(who, enter(who, whose))
    return returned


def _counter_is_merged(kernel: Kernel, profile: Profile) -> Seen:
    state = _running(S.NL_BLOCKED, S.PENDING, parent_age=Age.PREVIOUS, rest=S.PENDING, level=PG_LEVEL_2M)
    scene = Scene(kernel, profile, state)
    cell = _cell(scene, PG_LEVEL_2M)
    cell.v = int(Septe(cell.v).with_accept_counter(256))
    home = scene.world.home
    scene.thread("a", "PAGE.PROMOTE at parent")

    def seen() -> bool:
        large = scene.entry(scene.world.parent_level)
        if scene.returned["a"] != ["SUCCESS"] or large >> 12 & 511 != 256:
            return False
        steps = ("RANGE.BLOCK at parent", "TRACK at TD", "PAGE.DEMOTE at parent")
        return [scene.now(key) for key in steps] == ["SUCCESS"] * 3 and scene.entry().pfn_at(2) == home

    return seen


def _aug_does_not_release(kernel: Kernel, profile: Profile) -> Seen:
    state = _running(S.NL_MAPPED, S.PENDING)
    scene = Scene(kernel, profile, state)
    scene.world.tdcs.pending_ve_disable = False
    scene.thread("a", "VP.ENTER (zero-step) at vCPU", "VP.ENTER (zero-step) at vCPU")
    violation = "SUCCESS|EPT_VIOLATION"
    return lambda: scene.returned["a"] == [violation] * 2 and "zero_step_blocked_entry" in kernel.met


def _stays_associated(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.NL_MAPPED, S.FREE))
    scene.world.vcpus["a"].assoc_lpid.v = NOT_ASSOCIATED
    scene.world.tdcs.num_assoc_vcpus.v -= 1
    scene.thread("a", "VP.ENTER at vCPU")
    scene.thread("b", "TRACK at TD")

    def seen() -> bool:
        world = scene.world
        if scene.returned["a"] != ["OPERAND_BUSY|TD_EPOCH"]:
            return False
        later = tdh_vp_enter(
            world.module, tdvpr_pfn=world.vcpus["a"].pfn, lp=world.lps["b"], guest=world.leave
        )
        return str(kernel.prepare(later)) == "TDX_VCPU_ASSOCIATED"

    return seen


def _interrupted_demote(kernel: Kernel, profile: Profile) -> Seen:
    scene = Scene(kernel, profile, _running(S.BLOCKED, parent_age=Age.PREVIOUS))
    world = scene.world
    world.lps["a"].interrupt_pending = lambda: True
    scene.thread("a", "PAGE.DEMOTE at parent")

    def seen() -> bool:
        free = kernel.prepare(tdh_phymem_page_rdmd(world.module, pfn=world.spare)).rcx == 0
        interrupted = scene.returned["a"] == ["INTERRUPTED_RESTARTABLE"]
        return interrupted and free and world.spare in world.module.overwritten

    return seen


QUIRKS = (
    Quirk(
        1,
        "ACCEPT against AUG: PAGE_SIZE_MISMATCH for a page of the right size",
        _false_mismatch,
        ("1.0", "2.0"),
    ),
    Quirk(
        1,
        "ACCEPT of 2M against DEMOTE: an EPT violation instead of PAGE_SIZE_MISMATCH",
        _false_violation,
        ("2.0",),
    ),
    Quirk(1, "ACCEPT of a REMOVED entry: PAGE_SIZE_MISMATCH", _removed_is_mismatch, ("2.0",)),
    Quirk(2, "a host call that lost to ACCEPT has no priority afterwards", _priority_lost, LATER),
    Quirk(
        3, "a host call loses to a guest that must keep off itself", _lost_to_one_that_may_not, ("1.0", "2.0")
    ),
    Quirk(
        4,
        "a walker that has passed the parent tries an entry of the S-EPT page that PROMOTE has freed",
        _walk_into_freed_page,
        ("1.0", *LATER),
        is_hazard=True,
    ),
    Quirk(5, "VP.ENTER of a suspect makes AUG busy on the tree", _suspect_blocks_host, LATER),
    Quirk(5, "VP.ENTER of a suspect is itself busy on the tree", _host_blocks_suspect, LATER),
    Quirk(
        6,
        "host priority stays on a free entry, and a guest is busy with nobody there",
        _priority_on_free_lock,
    ),
    Quirk(7, "TRACK between BLOCK's two writes costs another TRACK", _one_more_track),
    Quirk(8, "UNBLOCK names SEPT_TREE when tracking is missing", _wrong_operand, LATER),
    Quirk(9, "a second #VE before the first was fetched is #DF", _double_fault),
    Quirk(10, "BLOCK of a blocked page is a warning, and BEPOCH stays", _block_twice),
    Quirk(11, "host priority on a child makes PROMOTE refuse", _priority_spoils_merge, ("1.0", *LATER)),
    Quirk(11, "host priority of child 0 is merged into the large leaf", _priority_is_merged, ("1.0", *LATER)),
    Quirk(
        12,
        "RELOCATE frees a page that a vCPU inside may still read by an old translation",
        _relocated_under_reader,
        is_hazard=True,
    ),
    Quirk(13, "REMOVE of 2M in an import leaves an entry that only AUG can use again", _removed_stays),
    Quirk(14, "a vCPU that runs elsewhere is VCPU_STATE_INCORRECT", _running_elsewhere),
    Quirk(15, "PROMOTE to 1G takes an accept counter along, DEMOTE forgets it", _counter_is_merged, ("1.0",)),
    Quirk(
        16,
        "a PENDING page does not release a suspect, although its guest would get #VE",
        _aug_does_not_release,
        ("1.0", *LATER),
    ),
    Quirk(17, "VP.ENTER that fails on the epoch leaves the vCPU bound to its LP", _stays_associated),
    Quirk(
        18,
        "an interrupted DEMOTE has written the new page, which is nobody's",
        _interrupted_demote,
        ("1.0", *LATER),
    ),
)
