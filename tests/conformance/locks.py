"""A row of the table of locks, tried.

What a row says, and how it is seen, each time in a fresh module:

- nothing held: the call succeeds, and every lock is free after it;
- the object held by somebody in a conflicting mode: exactly the row's error;
- held in a compatible mode: no error; for a page that is found without a walk, its parents in the PAMT held: no error either;
- this object and all later ones held: still this row's error; and in a call that succeeds the words are taken in the table's order;
- `held_until`: the lock is free after return, or inside the guest, or from the next list entry on, as the row says;
- implicit and none: the call succeeds although somebody has that lock; count: the REFCOUNT is up inside the guest; associate: another LP
  has the vCPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from sim import Cell, Steps
from sim.access import Access
from tdx.module import TDX_1_5_01, Profile, Status, TdExit
from tdx.module.ept_violation import private_ept_violation
from tests.conformance.calling import Outcome, call, require_modelled
from tests.conformance.calls import CALLS, Call
from tests.conformance.judge import is_status, operand_number
from tests.conformance.lock_worlds import (
    HP_READER,
    LockWord,
    entry_word,
    levels,
    locks_of,
    ready,
    suspect,
    ways_to,
)
from tests.conformance.situation import NotExpressible, Situation
from tests.conformance.table import ENTRY_STATUSES, LockRow
from tests.conformance.world import World
from vcpu.addresses import PG_LEVEL_4K, PgLevel, gpa_of

ENTRY = "GPA_ENTRY_STATUS_"
VIOLATION = "GUEST_EPT_VIOLATION"
ENTER = "TDH.VP.ENTER"
OTHER_LP = 7
EXCLUSIVE, SHARED = "exclusive", "shared"
MODES = (EXCLUSIVE, SHARED)

Try = tuple[str, list[str]]
"""What was tried, and what was not as it must be."""


@dataclass
class LockVerdict:
    """What came of a row."""

    row: LockRow
    tried: int = 0
    differences: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def judge_lock(row: LockRow, of_call: Sequence[LockRow], profile: Profile = TDX_1_5_01) -> LockVerdict:
    """Try one row; `of_call` are all rows of its call."""
    verdict = LockVerdict(row)
    later = sorted((other for other in of_call if other.order > row.order), key=lambda other: other.order)
    try:
        for what, found in _tries(row, later, profile):
            verdict.tried += 1
            verdict.differences += [f"{what}: {difference}" for difference in found]
    except NotExpressible as reason:
        verdict.skipped.append(str(reason))
    return verdict


def _tries(row: LockRow, later: Sequence[LockRow], profile: Profile) -> Iterator[Try]:
    if row.seamcall == VIOLATION:
        yield "tree and entry held", _violation(profile)
        return
    require_modelled(row.seamcall)
    call_ = CALLS.get(row.seamcall)
    if call_ is None:
        raise NotExpressible(f"{row.seamcall}: how it is called is not in calls.py")
    for level in levels(call_):
        for what, found in Trial(row, later, call_, level, profile).all():
            yield (f"{level.short}, {what}" if call_.levels else what), found


class Trial:
    """One row at one level."""

    def __init__(
        self, row: LockRow, later: Sequence[LockRow], call_: Call, level: PgLevel, profile: Profile
    ) -> None:
        self.row = row
        self.later = [other for other in later if other.mode in MODES]
        self.call = call_
        self.level = level
        self.profile = profile

    def all(self) -> Iterator[Try]:
        """Everything that this mode says."""
        modes: dict[str, Callable[[], Iterator[Try]]] = {
            "shared": self.taken,
            "exclusive": self.taken,
            "implicit": self.not_taken,
            "none": self.not_taken,
            "count": self.counted,
            "associate": self.associated,
        }
        return modes[self.row.mode]()

    def world(self) -> World:
        """A fresh one, in which the call would succeed."""

        def prepare(want: Situation) -> None:
            want.profile = self.profile
            if self.row.held_until == "next list entry":
                want.list_entries = 2

        world = ready(self.call, self.level, prepare)
        if self.call.name == ENTER and self.row.object == "SEPT_TREE":
            suspect(world)
        return world

    def words(self, world: World) -> list[LockWord]:
        """The row's object there."""
        return locks_of(self.row, world)

    # Locks that are taken.

    def taken(self) -> Iterator[Try]:
        """The object is a lock that the call tries."""
        yield "nothing held", self.alone()
        for number, word in enumerate(self.words(self.world())):
            name = word.cell.name
            if self.row.mode == SHARED and not word.reader:
                yield name, ["taken shared, but nobody can share it"]
            conflicts, compatible = self.modes(word)
            for how in conflicts:
                yield f"{name} held {how}", self.held(number, how, fails=True)
            for how in compatible:
                yield f"{name} held {how}", self.held(number, how, fails=False)
        if self.row.kind.endswith("implicit_leaf"):
            for number in range(len(ways_to(self.row, self.world()))):
                yield "a parent held exclusive", self.parent_held(number)
        if self.later:
            yield "all later ones held too", self.all_later_held()

    def modes(self, word: LockWord) -> tuple[Sequence[str], Sequence[str]]:
        """How somebody else may hold it: in conflict, and without."""
        if not word.reader:
            return (EXCLUSIVE,), ()
        if self.row.mode == SHARED or word.parent:
            return (EXCLUSIVE,), (SHARED,)
        return MODES, ()

    def held(self, number: int, how: str, *, fails: bool) -> list[str]:
        """Somebody has one of the words."""
        world = self.world()
        word = self.words(world)[number]
        word.hold(how)
        outcome = _make(world)
        return _fails_as(self.row.error, word, world, outcome) if fails else _succeeds(outcome)

    def parent_held(self, number: int) -> list[str]:
        """Somebody has the PAMT entry above a page whose leaf alone is locked."""
        world = self.world()
        ways_to(self.row, world)[number].hold(EXCLUSIVE)
        return _succeeds(_make(world))

    def all_later_held(self) -> list[str]:
        """Somebody has this lock and all that would be taken after it."""
        world = self.world()
        mine = self.words(world)[0]
        mine.hold(EXCLUSIVE)
        for other in self.later:
            for word in locks_of(other, world):
                if word.cell is not mine.cell:
                    word.hold(EXCLUSIVE)
        return _fails_as(self.row.error, mine, world, _make(world))

    def alone(self) -> list[str]:
        """Nothing held: it succeeds, takes this lock before the later ones, and has let go when the row says."""
        world = self.world()
        rows = [self.row, *(other for other in self.later if not _is_conditional(other))]
        history = History({str(one): locks_of(one, world)[0] for one in rows})
        outcome = _make(world, watch=history.watch)
        return _succeeds(outcome) or [*history.out_of_order(), *history.let_go(self.row)]

    # Everything else.

    def not_taken(self) -> Iterator[Try]:
        """Implicit and none: it does not matter that somebody has it."""
        if self.row.object in ("none", "SEPT_WALK"):
            world = self.world()
            for cell in _all_locks(world):
                cell.v |= 1
            yield "everything held", _is_not_busy(_make(world))
            return
        for number, word in enumerate(self.words(self.world())):
            yield f"{word.cell.name} held exclusive", self.held(number, EXCLUSIVE, fails=False)
        if self.row.mode == "implicit":
            for how in MODES:
                world = self.world()
                LockWord(world.pamt(world.tdr.pfn).lock, HP_READER).hold(how)
                yield f"TDR held {how}", _is_busy(_make(world))

    def counted(self) -> Iterator[Try]:
        """The REFCOUNT of the epoch is up inside the guest and down after."""
        world = self.world()
        epoch = world.tdcs.epoch
        inside: list[int] = []
        outcome = _make(world, inside=lambda: inside.append(epoch.peek().refcount(epoch.peek().epoch)))
        after = epoch.peek().refcount(epoch.peek().epoch)
        found = (
            []
            if (inside, after) == ([1], 0)
            else [f"REFCOUNT 1 inside and 0 after, but {inside} and {after}"]
        )
        yield "one vCPU", [*_succeeds(outcome), *found]

    def associated(self) -> Iterator[Try]:
        """The vCPU belongs to one LP, and stays there after return."""
        world = self.world()
        found = _succeeds(_make(world))
        stays = world.vcpu.assoc_lpid.peek() == world.lp.lpid
        if not stays:
            found.append(f"associated after return, but it is {world.vcpu.assoc_lpid.peek()}")
        yield "associated with none", found
        world = self.world()
        world.vcpu.assoc_lpid.v = OTHER_LP
        yield "associated with another LP", _fails_as(self.row.error, None, world, _make(world))
        world = self.world()
        world.vcpu.assoc_lpid.v = world.lp.lpid
        yield "associated with this LP", _succeeds(_make(world))


def _is_conditional(row: LockRow) -> bool:
    """Whether a call may well succeed without it."""
    return row.seamcall == ENTER and row.object == "SEPT_TREE"


GUEST = Access("the guest runs")
"""What a watcher of TDH.VP.ENTER sees once when the guest runs."""


class History:
    """Lock words before every access of a call, and once when the guest runs."""

    def __init__(self, words: dict[str, LockWord]) -> None:
        self._words = words
        self._before = {name: word.cell.peek() for name, word in words.items()}
        self._taken_at: dict[str, int] = {}
        self._given_back: set[str] = set()
        self._inside: set[str] = set()
        self._steps = 0

    def watch(self, access: Access) -> None:
        """Look at all words."""
        self._steps += 1
        for name in self._words:
            if self._is_taken(name):
                self._taken_at.setdefault(name, self._steps)
                self._given_back.discard(name)
                if access is GUEST:
                    self._inside.add(name)
            elif name in self._taken_at:
                self._given_back.add(name)

    def _is_taken(self, name: str) -> bool:
        word = self._words[name]
        return word.is_taken(word.cell.peek(), self._before[name])

    def out_of_order(self) -> list[str]:
        """Which of them was never taken, or after the next one."""
        at = self._taken_at
        missing = [f"{name} is to be taken, but never is" for name in self._words if name not in at]
        wrong = [
            f"{one} is to be taken before {other}, but is not"
            for one, other in pairwise(self._words)
            if at.get(one, 0) > at.get(other, self._steps)
        ]
        return missing + wrong

    def let_go(self, row: LockRow) -> list[str]:
        """Whether the row's lock was held as long as it says; in any case it is free at the end."""
        name, until = str(row), row.held_until
        found = []
        if self._is_taken(name) and "left set on success" not in row.note:
            found.append("free after return, but it is held")
        if until == "TD exit" and name not in self._inside:
            found.append("held while the guest runs, but it is free")
        if until in ("just before guest entry", "epoch sampled") and name in self._inside:
            found.append("free while the guest runs, but it is held")
        if (until.startswith("pamt_") or until == "next list entry") and name not in self._given_back:
            found.append(f"held until {until}, but it is held to the end")
        return found


# Calls and what came of them.


def _make(
    world: World,
    *,
    inside: Callable[[], object] | None = None,
    watch: Callable[[Access], None] | None = None,
) -> Outcome:
    """Make the call; TDH.VP.ENTER gets a guest that leaves at once."""
    if world.want.call.name != ENTER:
        return call(world, watch)

    def guest() -> Steps[TdExit]:
        if inside is not None:
            inside()
        if watch is not None:
            watch(GUEST)
        yield world.module.state.read_once()
        return TdExit.external_interrupt()

    return call(world, watch, guest=guest)


def _succeeds(outcome: Outcome) -> list[str]:
    """Whether nothing was in the way."""
    ret, listed = outcome.ret, outcome.listed
    fine = outcome.exit is None and not outcome.interrupted and ret is not None and ret.ok
    if fine and (listed is None or listed.status == 0):
        return []
    return [f"the call is to succeed, but gave {outcome}"]


def _fails_as(error: str, word: LockWord | None, world: World, outcome: Outcome) -> list[str]:
    """Whether it failed with just this error."""
    if error.startswith(ENTRY):
        number = ENTRY_STATUSES.index(error.removeprefix(ENTRY))
        met = outcome.listed is not None and outcome.listed.status == number
    else:
        name, _, operand = error.partition("|")
        if operand == "R9..R11" and word is not None:
            operand = word.operand
        expected = Status[name] + operand_number(operand or "-", world)
        ret = outcome.ret
        met = outcome.exit is None and ret is not None and is_status(expected, ret.rax, world)
    return [] if met else [f"{error}, but the call gave {outcome}"]


def _is_busy(outcome: Outcome) -> list[str]:
    busy = outcome.ret is not None and outcome.ret.status is Status.TDX_OPERAND_BUSY
    return [] if busy else [f"covered by the TDR, but the call gave {outcome}"]


def _is_not_busy(outcome: Outcome) -> list[str]:
    """Whether it got through; TDG.VP.VMCALL leaves to the host."""
    refused = outcome.ret is not None and not outcome.ret.ok
    return [f"no lock to be busy, but the call gave {outcome}"] if refused else []


def _all_locks(world: World) -> Iterator[Cell[int]]:
    """All locks of a TD but its entries'."""
    tdcs = world.tdcs
    yield from (tdcs.op_state_lock, tdcs.sept_tree_lock, tdcs.epoch_lock, tdcs.migration.lock)
    yield from (world.module.kot.lock, world.pamt(world.tdr.pfn).lock, world.pamt(world.vcpu.pfn).lock)


def _violation(profile: Profile) -> list[str]:
    """An EPT violation of the guest: the entry is looked at without a lock."""

    def prepare(want: Situation) -> None:
        want.profile = profile

    world = ready(CALLS["TDG.MEM.PAGE.ACCEPT"], PG_LEVEL_4K, prepare)
    for cell in _all_locks(world):
        cell.v |= 1
    entry_word(world.entry).hold(EXCLUSIVE)
    before = world.entry.peek()
    left = world.run(private_ept_violation(world.module, world.td, world.vcpu, gpa_of(world.gfn), 1, 0x1000))
    if not isinstance(left, TdExit) or world.entry.peek() != before:
        return [f"an exit that leaves the entry alone, but it gave {left} and {world.entry.peek():#x}"]
    return []
