"""The detector: one handler an operation, and the two doors through which steps come in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from simpy.events import PENDING

from sim.access import Access
from sim.clocks import Stamp
from sim.findings import Finding
from sim.kernel import StopExecution
from sim.races import ops, report
from sim.races.memory import Gate, Origin, Seen, Side, Word, place_key, place_of
from sim.races.report import Benign
from sim.syncs import GIVES, STARTS, TAKES, WAKES

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.syncs import Sync
    from sim.thread import Thread

Handler = Callable[[Side, Any, Any, Any], None]
"""Takes the thread, the target, the access, and what `place_of` finds its place by."""


class Detector:
    """Finds the data races of one execution.

    Attributes:
        findings: what was found; of an attached detector they are among the kernel's as well.
        excused: how often each `Benign` held.
    """

    def __init__(
        self, benign: Iterable[tuple[str, str, str, str]] = (), kernel: Kernel | None = None
    ) -> None:
        self.benign = tuple(Benign(*entry) for entry in benign)
        self.excused: dict[Benign, int] = {}
        self.findings: list[Finding] = []
        self._fingerprints: set[str] = set()
        self._kernel = kernel
        self._sides: list[Side] = []
        self._words: defaultdict[Any, Word] = defaultdict(Word)
        self._gates: defaultdict[Any, Gate] = defaultdict(Gate)
        self._step = 0
        self._now_ns = 0
        self._handlers: dict[str, Handler | None] = {
            ops.NOTHING: None,
            "plain-read": self._plain_read,
            "read": self._read,
            "load-acquire": self._load_acquire,
            "plain-write": self._plain_write,
            "write": self._write,
            "store-release": self._store_release,
            "rmw": self._rmw,
            "take-read": self._take_read,
            "take-write": self._take_write,
            "drop-read": self._drop_read,
            "drop-write": self._drop_write,
            "rcu-enter": self._rcu_enter,
            "rcu-leave": self._rcu_leave,
            "rcu-synchronize": self._rcu_synchronize,
            "join": self._join,
            "await": self._acquire,
            "await-take": self._await_take,
            "time-out": self._timed_out,
            "acquire": self._acquire,
            "release": self._release,
        }
        self._by_class: dict[type[Access], Handler | None] = {}

    # The two doors: a kernel's check, and a step of a log.

    def __call__(self, kernel: Kernel, thread: Thread, access: Access) -> None:
        """The kernel's check."""
        syncs = kernel.syncs
        try:
            handler = self._by_class[access.__class__]
        except KeyError:
            handler = self._by_class[access.__class__] = self._handler(access)
        happened = access._value is not PENDING
        if handler is None and happened and not syncs:
            return
        step = self._step = kernel.steps
        if syncs:
            self._between_steps(syncs)
        side = self._side(thread.index, thread.name)
        if not happened:
            self._blocked(side, handler, access.target, access, thread)
        elif handler is not None:
            handler(side, access.target, access, thread)
        if syncs:
            self._within_step(syncs, step)

    def _handler(self, access: Access) -> Handler | None:
        """What handles all accesses of this one's class."""
        word = ops.word_of(access)
        handlers = self._handlers
        if isinstance(word, str):
            return handlers[word]

        def each(side: Side, target: Any, access: Any, source: Any) -> None:
            handler = handlers[word(access)]
            assert handler is not None
            handler(side, target, access, source)

        return each

    def logged(
        self, op: str, tid: int, thread: str, target: Any, access: Any, at: str, *,
        done: bool, step: int, now_ns: int, syncs: Iterable[tuple[int, str, int, Any]],
    ) -> None:  # fmt: skip
        """One step of a log; of `syncs`, the thread that orders and a target that is a thread are by number.

        Raises: KeyError: there is no such `op`.
        """
        self._step, self._now_ns = step, now_ns
        for when, how, by, what in syncs:
            if when < step:
                self._order(how, self._side(by), what)
        side = self._side(tid, thread)
        handler = self._handlers[op]
        if not done:
            self._blocked(side, handler, target, access, at)
        elif handler is not None:
            handler(side, target, access, at)
        for when, how, by, what in syncs:
            if when == step:
                self._order(how, self._side(by), what)

    # What is between two steps, was blocked, or is said by plain calls.

    def _between_steps(self, syncs: Iterable[Sync]) -> None:
        """Before this step: what its forerunners' threads did after their accesses."""
        for sync in syncs:
            if sync.step < self._step:
                self._order_of(sync)

    def _within_step(self, syncs: Iterable[Sync], step: int) -> None:
        """After this step's access: what happened in the middle of it."""
        for sync in syncs:
            if sync.step == step:
                self._order_of(sync)

    def _order_of(self, sync: Sync) -> None:
        by, target = sync.by, sync.target
        if by.index < 0:
            return  # it fills the world, before everything
        if sync.how in {STARTS, WAKES}:
            target = target.index
        self._order(sync.how, self._side(by.index, by.name), target)

    def _order(self, how: str, by: Side, target: Any) -> None:
        if how == WAKES:
            sleeper = self._side(target)
            wake, sleeper.wake = sleeper.wake, None
            if wake is not None:
                wake(by)
            else:  # it yielded a thread, not an access
                sleeper.join(by.stamp(Origin("end of thread", by, self._step)))
        elif how == STARTS:
            young = self._side(target)
            young.join(by.stamp(Origin(young, by, self._step)))
        elif how == GIVES:
            self._gates[target].given[by.index] = by.stamp(Origin(f"{how} {target}", by, self._step))
        elif how == TAKES:
            gate = self._gates[target]
            by.join_all(gate.given.values())
            gate.given = {}

    def _blocked(self, side: Side, handler: Handler | None, target: Any, access: Any, source: Any) -> None:
        """The access happened, but what it acquires is there only when its thread is woken.

        All that the waker has done comes before that, unless the wait is for a word: then it depends on how that was written.
        """
        ends: dict[int, Stamp] = {}
        if handler == self._handlers["rcu-synchronize"]:
            handler, ends = None, self._grace_begins(side, target, access)
        for_word = handler == self._handlers["load-acquire"]

        def wake(by: Side) -> None:
            side.join_all(ends.values())
            if not for_word:
                side.join(by.stamp(Origin("wake-up", by, self._step)))
            if handler is not None:
                handler(side, target, access, source)

        side.wake = wake

    def _side(self, index: int, name: str = "") -> Side:
        sides = self._sides
        if index < len(sides):
            side = sides[index]
            if side.name or not name:
                return side
            side.name = name
            return side
        for young in range(len(sides), index + 1):
            sides.append(Side(young, ""))
        sides[index].name = name
        return sides[index]

    # Words.

    def _plain_read(self, side: Side, target: Any, access: Any, source: Any) -> None:
        word = self._words[target]
        now = Seen(side.time, side, access, place_of(source), side.locks, self._step)
        for writes in (word.plain_writes, word.marked_writes):
            if writes:
                self._compare(now, writes, target)
        word.plain_reads[side.index, place_key(now.place)] = now

    def _read(self, side: Side, target: Any, access: Any, source: Any) -> None:
        word = self._words[target]
        index = side.index
        stamp = word.stamp
        if stamp is not None and stamp[0] != index and side.seen.get(stamp[0], 0) < stamp[1]:
            side.unordered[stamp[0]] = stamp
        last = word.marked_reads.get(index)
        if last is not None and last[0] == side.time:
            return
        now = Seen(side.time, side, access, place_of(source), side.locks, self._step)
        if word.plain_writes:
            self._compare(now, word.plain_writes, target)
        word.marked_reads[index] = now

    def _load_acquire(self, side: Side, target: Any, access: Any, source: Any) -> None:
        stamp = self._words[target].stamp
        if stamp is not None:
            side.join(stamp)
        self._read(side, target, access, source)

    def _plain_write(self, side: Side, target: Any, access: Any, source: Any) -> None:
        word = self._words[target]
        now = Seen(side.time, side, access, place_of(source), side.locks, self._step)
        for others in (word.plain_writes, word.plain_reads, word.marked_writes, word.marked_reads):
            if others:
                racing = self._compare(now, others, target)
                others.clear()
                others.update(racing)
        word.plain_writes[side.index, place_key(now.place)] = now
        word.stamp = None

    def _write(self, side: Side, target: Any, access: Any, source: Any) -> None:
        word = self._words[target]
        self._marked_write(word, side, access, source)
        word.stamp = side.barrier

    def _store_release(self, side: Side, target: Any, access: Any, source: Any) -> None:
        word = self._words[target]
        word.stamp = side.stamp(self._marked_write(word, side, access, source))

    def _rmw(self, side: Side, target: Any, access: Any, source: Any) -> None:
        """A full barrier: what marked loads saw before is acquired, and marked stores after it release what came before."""
        if side.unordered:
            side.join_all(side.unordered.values())
            side.unordered = {}
        word = self._words[target]
        if word.stamp is not None:
            side.join(word.stamp)
        word.stamp = side.barrier = side.stamp(self._marked_write(word, side, access, source))

    def _marked_write(self, word: Word, side: Side, access: Any, source: Any) -> Seen:
        now = Seen(side.time, side, access, place_of(source), side.locks, self._step)
        if word.plain_writes:
            self._compare(now, word.plain_writes, access.target)
        if word.plain_reads:
            self._compare(now, word.plain_reads, access.target)
        word.marked_writes[side.index] = now
        return now

    # Locks: a writer is ordered with everybody, readers only with writers.

    def _release_of(self, side: Side, access: Any) -> Stamp:
        return side.stamp(Origin(access, side, self._step))

    def _take_read(self, side: Side, target: Any, access: Any, source: Any) -> None:
        side.join_all(self._gates[target].last.values())
        side.locks = (*side.locks, (target, "read"))

    def _take_write(self, side: Side, target: Any, access: Any, source: Any) -> None:
        gate = self._gates[target]
        side.join_all(gate.last.values())
        side.join_all(gate.all.values())
        side.locks = (*side.locks, (target, "write"))

    def _drop_read(self, side: Side, target: Any, access: Any, source: Any) -> None:
        self._gates[target].all[side.index] = self._release_of(side, access)
        side.locks = tuple(held for held in side.locks if held[0] is not target)

    def _drop_write(self, side: Side, target: Any, access: Any, source: Any) -> None:
        gate = self._gates[target]
        gate.all = {}
        gate.last = {side.index: self._release_of(side, access)}
        side.locks = tuple(held for held in side.locks if held[0] is not target)

    # RCU and SRCU: each read section either ends before a grace period does, or begins after it began.

    def _rcu_enter(self, side: Side, target: Any, access: Any, source: Any) -> None:
        gate = self._gates[target]
        depth = gate.inside.get(side.index, 0)
        gate.inside[side.index] = depth + 1
        if not depth:
            side.join_all(gate.last.values())

    def _rcu_leave(self, side: Side, target: Any, access: Any, source: Any) -> None:
        gate = self._gates[target]
        index = side.index
        depth = gate.inside.get(index, 0)
        if depth > 1:
            gate.inside[index] = depth - 1
            return
        gate.inside.pop(index, None)
        stamp = gate.all[index] = self._release_of(side, access)
        for waits_for, ends in gate.graces:
            if index in waits_for:
                waits_for.discard(index)
                ends[index] = stamp
        gate.graces = [grace for grace in gate.graces if grace[0]]

    def _grace_begins(self, side: Side, target: Any, access: Any) -> dict[int, Stamp]:
        """Start of a grace period; returns the ends of read sections that it waits for, to be completed meanwhile."""
        gate = self._gates[target]
        ends = dict(gate.all)
        if gate.inside:
            gate.graces.append((set(gate.inside), ends))
        gate.last[side.index] = self._release_of(side, access)
        return ends

    def _rcu_synchronize(self, side: Side, target: Any, access: Any, source: Any) -> None:
        side.join_all(self._grace_begins(side, target, access).values())

    # Threads, signals, and whatever else declares that it acquires or releases.

    def _join(self, side: Side, target: Any, access: Any, source: Any) -> None:
        joined = self._side(target if isinstance(target, int) else target.index)
        if joined is not side:
            side.join(joined.stamp(Origin("end of thread", joined, self._step)))

    def _acquire(self, side: Side, target: Any, access: Any, source: Any) -> None:
        side.join_all(self._gates[target].given.values())

    def _await_take(self, side: Side, target: Any, access: Any, source: Any) -> None:
        gate = self._gates[target]
        side.join_all(gate.given.values())
        gate.given = {}

    def _timed_out(self, side: Side, target: Any, access: Any, source: Any) -> None:
        side.wake = None

    def _release(self, side: Side, target: Any, access: Any, source: Any) -> None:
        self._gates[target].given[side.index] = self._release_of(side, access)

    # Verdicts.

    def _compare(self, now: Seen, others: dict[Any, Seen], target: Any) -> dict[Any, Seen]:
        """Judge an access against earlier ones; returns those that nothing orders before it."""
        side = now.side
        index, seen = side.index, side.seen
        racing = {}
        for key, before in others.items():
            other = before.side.index
            if other != index and seen.get(other, 0) < before.time:
                racing[key] = before
                self._race(now, before, target)
        return racing

    def _race(self, now: Seen, before: Seen, target: Any) -> None:
        cell = str(target)
        one, other = sorted(map(report.told, (now, before)), key=lambda told: (told.place, told.verb))
        entry = report.excuse(one, other, cell, self.benign)
        if entry is not None:
            self.excused[entry] = self.excused.get(entry, 0) + 1
            return
        kernel = self._kernel
        finding = report.race(
            one, other, cell, report.last_sync(before.side, now.side),
            seed=0 if kernel is None else kernel.seed,
            step=self._step,
            now_ns=self._now_ns if kernel is None else kernel.now_ns,
        )  # fmt: skip
        if finding.fingerprint in self._fingerprints:
            return
        self._fingerprints.add(finding.fingerprint)
        self.findings.append(finding)
        if kernel is not None:
            kernel.findings.append(finding)
            if kernel.stop_at_finding:
                raise StopExecution


def attach(kernel: Kernel) -> Detector:
    """Watch the kernel's execution for data races; those it accepts (`Kernel.accept_race`) are none."""
    detector = Detector(kernel.accepted_races, kernel)
    kernel.syncs = kernel.syncs or []
    kernel.check(detector)
    return detector
