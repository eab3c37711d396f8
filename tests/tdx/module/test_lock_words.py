"""Each kind of lock word against a reference that knows its actors: every word that up to three of them can reach.

The reference is written as what must be true of locks (who holds, who has failed, who asked for priority), not as bits.
"""

from dataclasses import dataclass, replace
from itertools import permutations, product

import pytest

from sim import Cell, Kernel
from tdx.module import PROFILES, SeptState
from tdx.module.guest_lock import guest_lock_entry, guest_unlock_entry
from tdx.module.locks import Held
from tdx.module.septe import TDEL, TDHP, Septe, make
from tdx.module.sharex import EXCLUSIVE, HP, HP_EXCLUSIVE, HP_READER, READER, Sharex, SharexHp
from tdx.module.status import Refused
from tdx.module.walk import Walk
from tests.tdx.module.worlds import World, run
from vcpu.addresses import PG_LEVEL_4K

ACTORS = (0, 1, 2)
FAILED_MAX = 3
"""Failed readers pile up until the exclusive holder leaves; as many as there are actors will do."""


@dataclass(frozen=True)
class Truth:
    """What is true of a lock."""

    shared: frozenset[int] = frozenset()
    exclusive: int | None = None
    failed: int = 0
    """Readers that failed since the exclusive holder came."""
    priority: bool = False

    def word(self, reader, hp):
        """As the module keeps it."""
        return (
            (self.exclusive is not None)
            + reader * (len(self.shared) + self.failed)
            + (HP if hp and self.priority else 0)
        )

    def moves(self):
        """What each actor may try: whether it wins, and what is true then."""
        for actor in ACTORS:
            if actor == self.exclusive:
                yield "release_exclusive", True, Truth(priority=self.priority)
            elif actor in self.shared:
                rest = self.shared - {actor}
                yield "release_shared", True, replace(self, shared=rest)
                won = not rest
                promoted = Truth(exclusive=actor) if won else replace(self, priority=True)
                yield "try_promote", won, promoted
            else:
                free = self.exclusive is None
                if free:
                    yield "try_shared", True, replace(self, shared=self.shared | {actor}, priority=False)
                elif self.failed < FAILED_MAX:
                    yield "try_shared", False, replace(self, failed=self.failed + 1, priority=True)
                won = free and not self.shared
                yield "try_exclusive", won, Truth(exclusive=actor) if won else replace(self, priority=True)


WON = {"try_shared": "is_shareable", "try_exclusive": "is_free", "try_promote": "is_single_reader"}


@pytest.mark.parametrize(("kind", "reader", "hp"), [(Sharex, READER, False), (SharexHp, HP_READER, True)])
def test_a_lock_word_tells_the_truth(kind, reader, hp):
    """Every move from every state that three actors can reach: who wins, and the word after it."""
    assert EXCLUSIVE == HP_EXCLUSIVE == 1
    known, todo, moves = {Truth()}, [Truth()], 0
    while todo:
        before = todo.pop()
        for move, wins, after in before.moves():
            if move == "try_promote" and not hp:
                continue  # nothing promotes such a lock
            lock = kind("lock", before.word(reader, hp))
            access = getattr(lock, move)()
            seen = access.perform(None)
            if move in WON:
                assert getattr(lock, WON[move])(seen) is wins, (before, move)
            assert lock.v == after.word(reader, hp), (before, move, after)
            moves += 1
            if after not in known:
                known.add(after)
                todo.append(after)

    assert moves > 100
    assert {state.exclusive for state in known} == {None, 0, 1, 2}
    assert max(len(state.shared) for state in known) == 3


# The module's attempts are up to two instructions; the model's are one. Here they are taken apart again.


def host_shared(cell):
    """Count itself in, then look at what it was counted into."""
    old = yield lambda: xadd(cell, HP_READER)
    if old & HP_EXCLUSIVE:
        yield lambda: bits(cell, HP, 0)
        return False
    if old & HP:
        yield lambda: bits(cell, 0, HP)
    return True


def host_exclusive(cell):
    """Try the free word, then the word that is free but for host priority."""
    old = yield lambda: cmpxchg(cell, 0, HP_EXCLUSIVE)
    if old == HP:
        return (yield lambda: cmpxchg(cell, HP, HP_EXCLUSIVE)) == HP
    if old:
        yield lambda: bits(cell, HP, 0)
    return old == 0


def release_shared(cell):
    yield lambda: xadd(cell, -HP_READER)
    return True


def release_exclusive(cell):
    yield lambda: bits(cell, 0, ~HP)
    return True


def xadd(cell, n):
    old, cell[0] = cell[0], cell[0] + n
    return old


def bits(cell, on, off):
    old, cell[0] = cell[0], (cell[0] | on) & ~off
    return old


def cmpxchg(cell, expect, new):
    old = cell[0]
    if old == expect:
        cell[0] = new
    return old


def outcomes_by_instruction(word, programs):
    """What every interleaving of the instructions leads to: results by actor, and the word."""
    found, todo = set(), [()]
    while todo:
        schedule = todo.pop()
        cell = [word]
        running = [program(cell) for program in programs]
        pending = [next(steps) for steps in running]
        results = [None] * len(programs)
        for actor in schedule:
            value = pending[actor]()
            try:
                pending[actor] = running[actor].send(value)
            except StopIteration as stop:
                pending[actor], results[actor] = None, stop.value
        ready = [actor for actor, step in enumerate(pending) if step is not None]
        if not ready:
            found.add((tuple(results), cell[0]))
        todo += [(*schedule, actor) for actor in ready]
    return found


MERGED = {
    host_shared: ("try_shared", "is_shareable"),
    host_exclusive: ("try_exclusive", "is_free"),
    release_shared: ("release_shared", None),
    release_exclusive: ("release_exclusive", None),
}


def outcomes_by_access(word, programs):
    """The same with one access each, in every order."""
    found = set()
    for order in permutations(range(len(programs))):
        lock = SharexHp("lock", word)
        results = [True] * len(programs)
        for actor in order:
            move, won = MERGED[programs[actor]]
            seen = getattr(lock, move)().perform(None)
            if won is not None:
                results[actor] = getattr(lock, won)(seen)
        found.add((tuple(results), lock.v))
    return found


ATTEMPTS = (host_shared, host_exclusive)
SITUATIONS = [
    *((word, pair) for word in (0, HP) for pair in product(ATTEMPTS, repeat=2)),
    *((word, pair) for word in (0, HP) for pair in product(ATTEMPTS, repeat=3)),
    *(
        (HP_EXCLUSIVE | hp, (*pair, release_exclusive))
        for hp in (0, HP)
        for pair in product(ATTEMPTS, repeat=2)
    ),
    *((HP_READER | hp, (*pair, release_shared)) for hp in (0, HP) for pair in product(ATTEMPTS, repeat=2)),
]


@pytest.mark.parametrize(("word", "programs"), SITUATIONS)
def test_one_access_for_an_attempt_loses_nothing_but_a_priority_bit(word, programs):
    """Whatever the instructions can lead to, attempts of one access can: the same winners, and the same word but for HP."""
    fine, coarse = outcomes_by_instruction(word, programs), outcomes_by_access(word, programs)

    assert coarse <= fine
    assert {(won, after & ~HP) for won, after in fine} == {(won, after & ~HP) for won, after in coarse}


@pytest.mark.parametrize(
    ("word", "programs", "missed"),
    [
        (HP, (host_shared, host_exclusive), {((True, False), HP_READER)}),
        (
            HP,
            (host_exclusive, host_exclusive),
            {((True, False), HP_EXCLUSIVE), ((False, True), HP_EXCLUSIVE)},
        ),
        (
            HP_EXCLUSIVE,
            (host_shared, host_exclusive, release_exclusive),
            {((False, True, True), HP_EXCLUSIVE | HP)},
        ),
    ],
    ids=["a winner wipes a loser's bit", "a loser sets none", "a loser sets it after the next has won"],
)
def test_what_becomes_of_a_priority_bit_that_the_model_does_not_see(word, programs, missed):
    """The three ways in which two instructions differ from one; each is a moment, and concerns guests only."""
    assert outcomes_by_instruction(word, programs) - outcomes_by_access(word, programs) == missed


# An S-EPT entry's own bits. Hosts and guests try, hold, let go; the reference knows who holds, and whether priority was asked for.


class EntryWorld:
    """One entry and the module's own steps on it, each actor's attempt alone."""

    def __init__(self, profile):
        self.world = World(Kernel(), profile=profile, vcpus=0, finalize=False)
        self.module = self.world.module
        self.septe = Cell("septe", int(make(SeptState.PENDING, 5)))

    def do(self, move, word):
        """Make a move on that word; returns whether it won, and the word after it."""
        self.septe.v = word
        won = run(self.world.kernel, getattr(self, move)())
        return won, self.septe.v

    def host_try(self):
        page = next(page for page in self.module.sept_pages.values() if page.level == PG_LEVEL_4K)
        held = Held(self.module, "")
        try:
            yield from held.entry(Walk(self.septe, Septe(self.septe.v), page))
        except Refused:
            return False
        return True

    def host_release(self):
        yield self.module.write_entry(self.septe, Septe(self.septe.v & ~(TDEL | TDHP)), unlock=True)
        return True

    def guest_try(self):
        lost = yield from guest_lock_entry(self.module, self.septe)
        return lost is None

    def guest_release(self):
        yield guest_unlock_entry(self.module, self.septe)
        return True


@dataclass(frozen=True)
class EntryTruth:
    """Who holds an entry (h0, h1 are hosts, g0 a guest), and whether a host has asked for priority."""

    holder: str | None = None
    priority: bool = False

    def word(self):
        return make(SeptState.PENDING, 5) | TDEL * (self.holder is not None) | TDHP * self.priority

    def moves(self, writes_drop_tdhp):
        for actor in ("h0", "h1", "g0", "g1"):
            host = actor[0] == "h"
            if actor == self.holder:
                kept = self.priority and not (host and writes_drop_tdhp)
                yield "host_release" if host else "guest_release", True, EntryTruth(None, kept)
            elif host:
                won = self.holder is None
                yield "host_try", won, EntryTruth(actor) if won else replace(self, priority=True)
            else:
                won = self.holder is None and not self.priority
                yield "guest_try", won, EntryTruth(actor) if won else self


@pytest.mark.parametrize("release", sorted(set(PROFILES) - {"1.0"}))
def test_an_entry_s_lock_bits_tell_the_truth(release):
    """Every move from every state; a host that wrote the word wipes priority in releases that write it blindly."""
    profile = PROFILES[release]
    entry = EntryWorld(profile)
    known, todo = {EntryTruth()}, [EntryTruth()]
    while todo:
        before = todo.pop()
        for move, wins, after in before.moves(profile.writes_drop_tdhp):
            assert entry.do(move, before.word()) == (wins, after.word()), (before, move)
            if after not in known:
                known.add(after)
                todo.append(after)

    assert {state.priority for state in known if state.holder is None} == {False, True}
    assert {state.holder for state in known} == {None, "h0", "h1", "g0", "g1"}


def test_in_1_0_guests_lock_entries_by_bit_8_and_hosts_do_not():
    """A host's turn leaves the word alone; one guest at a time."""
    entry = EntryWorld(PROFILES["1.0"])
    free = int(make(SeptState.PENDING, 5))
    locked = free | 1 << 8

    for word in (free, locked):
        assert entry.do("host_try", word) == (True, word)
    assert entry.do("guest_try", free) == (True, locked)
    assert entry.do("guest_try", locked) == (False, locked)
    assert entry.do("guest_release", locked) == (True, free)
