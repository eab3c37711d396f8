"""The kernel: one clock, many threads, and one place where it is decided who goes next.

`Kernel` is a `simpy.Environment`. Ordinary SimPy processes and timeouts run in it too (they are never choices); what is
ours are threads that yield accesses. Every ready thread has one pending access with a due time. A step picks one, performs
it, resumes its thread, and files the thread's next access. How the pick is made is the only difference between a timing
run and a search:

- `window_ns = 0` and no strategy: earliest due first, ties by seed. That loop (`_run_by_time`) is a heap and little else.
- otherwise a strategy picks among all accesses due no later than `window_ns` after the earliest (`_run_by_choice`).

Time never runs backwards: an access performed before an earlier-due one makes the clock jump, and the other one is late.
A model spends time with `spend`, a plain call: the thread's next access is due that much later. So time costs no step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, TypeVar

import simpy
from simpy.core import EmptySchedule
from simpy.events import NORMAL, PENDING

from sim.access import BLOCKED, Access, Blocked, Cell, Resume, Steps, UseAfterFree
from sim.dependence import Gate, Touch, unnoted
from sim.findings import Broken, Finding
from sim.locks import Lock, LockMisuse, Mutex, RwLock, RwSem, SpinLock
from sim.rcu import Rcu
from sim.signals import Signal
from sim.streams import Stream, Streams
from sim.syncs import STARTS, WAKES, Sync
from sim.thread import NEVER, Thread

if TYPE_CHECKING:
    from sim.costs import CostModel
    from sim.events import Event, EventLog
    from sim.histogram import Histogram
    from sim.progress import Progress

T = TypeVar("T")

INFINITY = 1 << 62
"""A window that no due time exceeds: full interleaving. In nanoseconds."""

LOOP_STEPS = 64
"""How many of the last steps before the step limit show what an execution that hits it is going round in."""

Pick = Callable[["Kernel", Sequence[Thread]], int]
Check = Callable[["Kernel", Thread, Access], None]
Judge = Callable[[Thread, Access], None]
Truth = Callable[[], "bool | Broken | None"]

_TIE_FACTOR = 6364136223846793005
_TIE_MASK = (1 << 64) - 1


class StopExecution(BaseException):
    """Ends the execution because a finding was made and the kernel was told to stop at one."""


class ModelBug(AssertionError):
    """A defect of the model or of tdsim, not of what is modelled. Args: one sentence."""


class Kernel(simpy.Environment):
    """A world of threads and shared words, to be run once.

    Args:
        seed: of every random stream of this world, and of the order of accesses due at the same time; any int.
        window_ns: how much later than the earliest access a picked one may be due; 0 to INFINITY.
        stop_at_finding: end the execution at the first finding (searches), or go on (timing runs).
        max_steps: at most so many steps; one more ends the execution as inconclusive.
    """

    def __init__(
        self, seed: int = 0, *, window_ns: int = 0, stop_at_finding: bool = True, max_steps: int = INFINITY
    ) -> None:
        # Not simpy.Environment.__init__, which binds classes anew for every environment: worlds are built by the thousand.
        self._now: Any = 0
        self._active_proc = None
        self._others: list[tuple[int, int, int, simpy.Event]] = []
        self._heap: list[tuple[int, int, Thread]] = []
        self._ready: list[Thread] | None = None
        self.picks: list[Thread] = []
        self.accesses: list[Access] = []
        self._ties = 0
        self._tie_state = seed * 2 + 1 if seed else 0
        self.seed = seed
        self.window_ns = window_ns
        self.stop_at_finding = stop_at_finding
        self.max_steps = max_steps
        self.steps = 0
        self.exhausted = False
        self.threads: list[Thread] = []
        self.current: Any = None  # a Thread whenever the model runs
        self.findings: list[Finding] = []
        self.counters: dict[str, int] = {}
        self.histograms: dict[str, Histogram] | None = None
        self.events: EventLog | None = None
        self.costs: CostModel | None = None
        self._streams: Streams | None = None
        self._rcu: Rcu | None = None
        self._checks: list[Check] = []
        self._judges: dict[type, Judge] = {}
        self._blockers: list[Callable[[Thread], None]] = []
        self._wanted: list[str] = []
        self._always: list[tuple[str, str, Truth]] = []
        self._at_end: list[tuple[str, str, Truth]] = []
        self._sometimes: dict[str, Callable[[], bool]] = {}
        self.met: set[str] = set()
        self.accepted_races: list[tuple[str, str, str, str]] = []
        self.syncs: list[Sync] | None = None  # None while nobody wants to know
        self.progress: Progress | None = None

    # What a world is made of.

    def cell(self, name: str, value: T) -> Cell[T]:
        """A shared word."""
        return Cell(name, value)

    def rwlock(self, name: str) -> RwLock:
        """A queued rwlock."""
        return RwLock(self, name)

    def rwsem(self, name: str) -> RwSem:
        """A rw semaphore: a queued rwlock that may be held while sleeping."""
        return RwSem(self, name)

    def spinlock(self, name: str) -> SpinLock:
        """A queued spinlock."""
        return SpinLock(self, name)

    def mutex(self, name: str, kind: str = "") -> Mutex:
        """A mutex; those of one `kind` share their latency."""
        return Mutex(self, name, kind)

    def rcu(self) -> Rcu:
        """The world's RCU domain."""
        if self._rcu is None:
            self._rcu = Rcu(self, "rcu")
        return self._rcu

    def srcu(self, name: str) -> Rcu:
        """A new SRCU domain."""
        return Rcu(self, name, sleepable=True)

    def signal(self, name: str) -> Signal:
        """A wake-up."""
        return Signal(self, name)

    def stream(self, name: str) -> Stream:
        """The random stream of this purpose: same seed and name, same numbers, whatever else draws."""
        if self._streams is None:
            self._streams = Streams(self.seed)
        return self._streams.stream(name)

    def thread(self, name: str, steps: Steps[Any], *, daemon: bool = False, start_ns: int = 0) -> Thread:
        """Start a thread; it runs to its first access as a step of its own, due `start_ns` from now."""
        thread = Thread(self, name, steps, len(self.threads), daemon=daemon)
        self.threads.append(thread)
        self.sync(STARTS, thread)
        thread.pending = Start(thread)
        thread.due_ns = self._now + start_ns
        self._file(thread)
        return thread

    def join(self, thread: Thread) -> Access:
        """Wait until `thread` has ended."""
        return Join(thread)

    def always(self, text: str, predicate: Truth, kind: str = "unmet") -> None:
        """`predicate` must not be False or Broken after any step; `kind` is the finding's (DESIGN.md section 4)."""
        self._always.append((text, kind, predicate))

    def at_end(self, text: str, predicate: Truth, kind: str = "unmet") -> None:
        """`predicate` must hold when every thread has ended."""
        self._at_end.append((text, kind, predicate))

    def sometimes(self, text: str, predicate: Callable[[], bool] | None = None) -> None:
        """Some execution must meet this: after some step `predicate` holds, or the model calls `reached(text)`."""
        self._wanted.append(text)
        if predicate is not None:
            self._sometimes[text] = predicate

    def reached(self, text: str) -> None:
        """The model passed a place worth knowing (a retry, a BUSY): counts it and meets the `sometimes` of that name."""
        self.counters[text] = self.counters.get(text, 0) + 1
        self.met.add(text)

    def retried(self, what: str) -> None:
        """The running thread is about to try the same thing again: what `sim.progress` watches, if it is attached."""
        if self.progress is not None:
            self.progress.retried(what)

    def progressed(self) -> None:
        """The running thread got somewhere: an instruction retired, a request was served."""
        if self.progress is not None:
            self.progress.progressed()

    @property
    def wanted(self) -> list[str]:
        """The texts of all `sometimes` of this world, in order."""
        return list(dict.fromkeys(self._wanted))

    def accept_race(self, cell: str, one: str, other: str, reason: str) -> None:
        """Two functions may access a word unordered; the modelled code means it, and `reason` says where (`sim.races.Benign`)."""
        self.accepted_races.append((cell, one, other, reason))

    def check(self, check: Check) -> None:
        """Call `check(kernel, thread, access)` after every step; it may call `find`."""
        self._checks.append(check)

    def judge(self, target: type, judge: Judge) -> None:
        """Call `judge(thread, access)` after every step whose access is about a `target` (of that very class).

        Quicker than a check, for most accesses concern no judge. One judge a class.
        """
        assert target not in self._judges
        self._judges[target] = judge

    def when_blocked(self, look: Callable[[Thread], None]) -> None:
        """Call `look(thread)` whenever a thread has begun to wait."""
        self._blockers.append(look)

    # What a model says while it runs. None of these yields.

    @property
    def now_ns(self) -> int:
        """The running thread's time: the clock plus what the thread has spent since its last access."""
        return self._now + self.current.debt_ns if self.current is not None else self._now  # type: ignore[no-any-return]

    def spend(self, ns: int) -> None:
        """The running thread's next access is due `ns` later."""
        self.current.debt_ns += ns

    def charge(self, name: str) -> int:
        """Spend one draw of the named cost, if the world has costs; returns the nanoseconds."""
        if self.costs is None:
            return 0
        ns = self.costs.draw(name)
        self.current.debt_ns += ns
        return ns

    def draw(self, name: str) -> int:
        """One draw of the named cost, in nanoseconds, to be spent in parts; 0 if the world has no costs."""
        return 0 if self.costs is None else self.costs.draw(name)

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter."""
        self.counters[name] = self.counters.get(name, 0) + n

    def record(self, name: str, ns: int) -> None:
        """Add a latency, in nanoseconds, to the histogram of that name, if latencies are kept."""
        histograms = self.histograms
        if histograms is None:
            return
        histogram = histograms.get(name)
        if histogram is None:
            from sim.histogram import Histogram  # noqa: PLC0415 - hunts never need it

            histogram = histograms[name] = Histogram()
        histogram.record(ns)

    def emit(self, event: Event) -> None:
        """Log an event. Guard it: `if kernel.events is not None`, so that a dark run does not even make it."""
        if self.events is not None:
            thread = self.current
            self.events.write(self.now_ns, self.steps, thread.name if thread is not None else "-", event)

    def find(self, kind: str, title: str, **details: Any) -> None:
        """Make a finding. Ends the execution if the kernel stops at findings (StopExecution passes through the model)."""
        threads = [self.current] if self.current is not None else []
        others = [t for t in self.threads if not t.done and t is not self.current]
        finding = Finding(
            kind=kind,
            title=title,
            threads=tuple(t.name for t in threads + others),
            where=tuple(
                f"{t.name}: {' < '.join(reversed(t.stack()))}" for t in threads + others if t.stack()
            ),
            seed=self.seed,
            step=self.steps,
            now_ns=self.now_ns,
            details={name: str(value) for name, value in details.items()},
        )
        if finding.fingerprint not in {known.fingerprint for known in self.findings}:
            self.findings.append(finding)
        if self.stop_at_finding:
            raise StopExecution

    def wake(self, thread: Thread, given: Any = None) -> None:
        """Make a blocked thread ready: it goes on with `given`. The caller's access is what woke it."""
        self.sync(WAKES, thread)
        blocked_on = thread.blocked_on
        thread.pending = Resume(blocked_on.target if blocked_on is not None else thread, given)
        thread.due_ns = self._now
        self._file(thread)

    def sync(self, how: str, target: Any) -> None:
        """The running thread orders something by a plain call; `how` is a word of `sim.syncs`."""
        if self.syncs is not None and self.current is not None:
            self.syncs.append(Sync(self.steps, how, self.current, target))

    def arm(self, thread: Thread, access: Access, after_ns: int) -> None:
        """Let a thread that is about to block perform `access` after `after_ns`, unless it is woken before."""
        thread.pending = access
        thread.due_ns = self._now + after_ns
        self._file(thread)

    # SimPy's side.

    def schedule(self, event: simpy.Event, priority: Any = NORMAL, delay: Any = 0) -> None:
        """File an ordinary SimPy event; it happens at its time and is never a choice."""
        self._ties += 1
        heappush(self._others, (self._now + delay, int(priority), self._ties, event))

    def peek(self) -> Any:
        """When the next thing is due."""
        dues = [entry[0] for entry in self._others[:1]]
        dues += [thread.due_ns for thread in self.threads if thread.tie != NEVER]
        return min(dues, default=float("inf"))

    def step(self) -> None:
        """Perform the step that is due first.

        Raises: EmptySchedule: nothing is left to do.
        """
        due_ns = self.peek()
        if self._others and self._others[0][0] <= due_ns:
            self._run_simpy_event()
            return
        if not any(thread.ready for thread in self.threads):
            raise EmptySchedule
        limit = self.max_steps
        self.max_steps = self.steps + 1
        try:
            self._run_by_time(None)
        finally:
            self.max_steps = limit
            self.exhausted = False

    def run(self, until: Any = None) -> Any:
        """Run by time: to quiescence, or (`until` an int) up to but not including that nanosecond, or until an event."""
        if isinstance(until, simpy.Event):
            while not until.processed:
                self.step()
            return until.value
        self._run_by_time(until)
        if until is not None:
            self._now = max(self._now, until)
        return None

    def execute(self, pick: Pick | None = None, *, near_limit: Pick | None = None) -> None:
        """Run the world once, to its end, and judge it.

        Args:
            pick: chooses each step; None is time order.
            near_limit: chooses the last `LOOP_STEPS` steps before `max_steps` instead of `pick`, if it comes to that: who
                wants to know where an execution goes round need not look at every step of all the others.
        """
        try:
            if pick is None:
                self._run_by_time(None)
            elif near_limit is None:
                self._run_by_choice(pick)
            else:
                limit = self.max_steps
                self.max_steps = max(self.steps, limit - LOOP_STEPS)
                self._run_by_choice(pick)
                self.max_steps = limit
                if self.exhausted:
                    self.exhausted = False
                    self._run_by_choice(near_limit)
            if self.exhausted:
                self._judge_cut()
            else:
                self._judge_end()
        except StopExecution:
            pass
        finally:
            self.close()

    def prepare(self, steps: Steps[T]) -> T:
        """Run steps to their end while the world is built: nobody else is there, no time passes, nothing is chosen.

        Raises: ModelBug: a step has to wait for somebody.
        """
        builder = Thread(self, "boot", steps, -1, daemon=True)
        before, self.current = self.current, builder
        value = None
        try:
            while True:
                access: Any = builder.send(value)
                value = access.perform(builder)
                if value is BLOCKED:
                    raise ModelBug(f"world building waits for {access!r}: {builder.stack()}")
                access._value = value
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            self.current = before

    def close(self) -> None:
        """Drop what still runs."""
        for thread in self.threads:
            if not thread.done:
                thread._generator.close()

    # The two loops. Whoever changes one changes the other; test_loops_agree holds them together.

    def _file(self, thread: Thread) -> None:
        """Put a thread whose `pending` and `due_ns` are set among the candidates."""
        self._ties = tie = self._ties + 1
        if self._tie_state:
            self._tie_state = state = (self._tie_state * _TIE_FACTOR + 1442695040888963407) & _TIE_MASK
            tie |= (state >> 32) << 64
        ready = self._ready
        if ready is None:
            heappush(self._heap, (thread.due_ns, tie, thread))
        elif thread.tie == NEVER:
            ready.append(thread)
        thread.tie = tie

    def _run_by_time(self, until: int | None) -> None:
        heap = self._heap
        others = self._others
        judges = self._judges
        progress = self.progress
        after = self._after_step if self._checks or self._always or self._sometimes else None
        for self.steps in range(self.steps, self.max_steps):  # noqa: B020 - the range is made once
            while True:
                while heap and heap[0][2].tie != heap[0][1]:
                    heappop(heap)
                if others and (not heap or others[0][0] <= heap[0][0]):
                    if until is not None and others[0][0] >= until:
                        return
                    self._run_simpy_event()
                    continue
                break
            if not heap or (until is not None and heap[0][0] >= until):
                return
            due_ns, _, thread = heappop(heap)
            self._now = max(self._now, due_ns)
            self.current = thread
            thread.tie = NEVER
            access = thread.pending
            try:
                value = access.perform(thread)  # type: ignore[union-attr]
                if value is BLOCKED:
                    self._block(thread, access)
                    continue
                access._value = value  # type: ignore[union-attr]
                thread.blocked_on = None
                if judges:
                    judge = judges.get(access.target.__class__)  # type: ignore[union-attr]
                    if judge is not None:
                        judge(thread, access)  # type: ignore[arg-type]
                if progress is not None and progress.looking:
                    progress.observe(thread, access)  # type: ignore[arg-type]
                if after is not None:
                    after(thread, access)
                following = thread.send(value)
            except StopIteration as stop:
                self._finish(thread, stop.value)
                continue
            except (UseAfterFree, LockMisuse) as wrong:
                self._misused(thread, wrong)
                continue
            if not isinstance(following, Access):
                self._await_simpy(thread, following)
                continue
            thread.pending = following
            thread.due_ns = due_ns = self._now + thread.debt_ns
            thread.debt_ns = 0
            self._ties = tie = self._ties + 1
            if self._tie_state:
                self._tie_state = state = (self._tie_state * _TIE_FACTOR + 1442695040888963407) & _TIE_MASK
                tie |= (state >> 32) << 64
            thread.tie = tie
            heappush(heap, (due_ns, tie, thread))
        self._out_of_steps()

    def _run_by_choice(self, pick: Pick) -> None:
        ready = self._ready
        if ready is None:
            self._ready = ready = [entry[2] for entry in sorted(self._heap) if entry[2].tie == entry[1]]
            self._heap.clear()
        others = self._others
        picked = self.picks.append
        happens = self.accesses.append
        window_ns = self.window_ns
        everything = window_ns >= INFINITY
        judges = self._judges
        progress = self.progress
        after = self._after_step if self._checks or self._always or self._sometimes else None
        for self.steps in range(self.steps, self.max_steps):  # noqa: B020 - the range is made once
            while others and (not ready or others[0][0] <= min(t.due_ns for t in ready)):
                self._run_simpy_event()
            if not ready:
                return
            if everything or len(ready) == 1:
                thread = ready.pop(pick(self, ready))
            else:
                latest_ns = min(t.due_ns for t in ready) + window_ns
                candidates = [t for t in ready if t.due_ns <= latest_ns]
                thread = candidates[pick(self, candidates)]
                ready.remove(thread)
            if thread.due_ns > self._now:  # noqa: PLR1730 - max() is a call, and this is the hot loop
                self._now = thread.due_ns
            self.current = thread
            thread.tie = NEVER
            access = thread.pending
            picked(thread)
            happens(access)  # type: ignore[arg-type]
            try:
                value = access.perform(thread)  # type: ignore[union-attr]
                if value is BLOCKED:
                    self._block(thread, access)
                    continue
                access._value = value  # type: ignore[union-attr]
                thread.blocked_on = None
                if judges:
                    judge = judges.get(access.target.__class__)  # type: ignore[union-attr]
                    if judge is not None:
                        judge(thread, access)  # type: ignore[arg-type]
                if progress is not None and progress.looking:
                    progress.observe(thread, access)  # type: ignore[arg-type]
                if after is not None:
                    after(thread, access)
                following = thread.send(value)
            except StopIteration as stop:
                self._finish(thread, stop.value)
                continue
            except (UseAfterFree, LockMisuse) as wrong:
                self._misused(thread, wrong)
                continue
            if not isinstance(following, Access):
                self._await_simpy(thread, following)
                continue
            thread.pending = following
            thread.due_ns = self._now + thread.debt_ns
            thread.debt_ns = 0
            self._ties = tie = self._ties + 1
            if self._tie_state:
                self._tie_state = state = (self._tie_state * _TIE_FACTOR + 1442695040888963407) & _TIE_MASK
                tie |= (state >> 32) << 64
            thread.tie = tie
            ready.append(thread)
        self._out_of_steps()

    def _out_of_steps(self) -> None:
        self.steps = self.max_steps
        self.exhausted = bool(self._others) or any(thread.ready for thread in self.threads)

    def _judge_cut(self) -> None:
        ring = self._ring()
        if ring:
            self.find("deadlock", "threads wait for each other while others go on", **ring)

    def _block(self, thread: Thread, access: Access | None) -> None:
        thread.blocked_on = access
        thread.blocked_since_ns = self._now
        judge = self._judges.get(access.target.__class__) if access is not None else None
        if judge is not None:
            judge(thread, access)  # type: ignore[arg-type]
        if access is not None and self.progress is not None and self.progress.looking:
            self.progress.observe(thread, access)
        for look in self._blockers:
            look(thread)
        if self._checks or self._always or self._sometimes:
            self._after_step(thread, access)

    def _after_step(self, thread: Thread, access: Access | None) -> None:
        if access is not None:
            for check in self._checks:
                check(self, thread, access)
            if self.syncs:
                self.syncs.clear()
        for text, kind, predicate in self._always:
            self._judge(text, kind, predicate)
        for text, wanted in self._sometimes.items():
            if text not in self.met and unnoted(wanted):
                self.met.add(text)

    def _judge(self, text: str, kind: str, predicate: Truth) -> None:
        verdict = unnoted(predicate)
        if verdict is False:
            self.find(kind, f"not true: {text}")
        elif isinstance(verdict, Broken):
            self.find(kind, f"not true: {text}", **verdict.details)

    def _judge_end(self) -> None:
        stuck = [thread for thread in self.threads if not thread.done and not thread.daemon]
        if stuck:
            self.current = stuck[0]
            waits = {
                thread.name: f"{thread.blocked_on!r} held by {_names(thread.blocked_on)}" for thread in stuck
            }
            ring = self._ring()
            self.find("deadlock", f"nobody can move: {', '.join(waits)}", **waits, **ring)
            return
        for text, kind, predicate in self._at_end:
            self._judge(text, kind, predicate)

    def _ring(self) -> dict[str, str]:
        """Who waits for whom in a ring, as a detail of a finding; nothing, if nobody does."""
        from sim.waits import cycle, describe  # noqa: PLC0415 - most executions never ask

        ring = cycle(self.threads)
        return {"cycle": describe(ring)} if ring else {}

    def _finish(self, thread: Thread, value: Any) -> None:
        if thread.debt_ns:  # what it spent last is its own time, not everybody's
            thread.pending = End(thread, value)
            thread.due_ns = self._now + thread.debt_ns
            thread.debt_ns = 0
            self._file(thread)
            return
        thread.done = True
        thread._ok = True
        thread._value = value
        thread.pending = None
        callbacks, thread.callbacks = thread.callbacks, None  # type: ignore[assignment]
        for callback in callbacks or ():
            callback(thread)

    def _misused(self, thread: Thread, wrong: Exception) -> None:
        thread.done = True
        if isinstance(wrong, UseAfterFree):
            self.find(wrong.args[1], f"{thread} touches {wrong.args[0]} after it was freed")
        else:
            self.find("lock-rule", str(wrong))

    def _await_simpy(self, thread: Thread, event: Any) -> None:
        if not isinstance(event, simpy.Event):
            raise ModelBug(f"{thread} yielded {event!r}, which is not an access ({thread.stack()[-1:]})")
        if event.callbacks is None:
            raise ModelBug(f"{thread} yielded an event that has happened already: make a fresh one")
        thread.blocked_on = Resume(
            event if isinstance(event, Thread) else type(event).__name__
        )  # no address in a trace
        event.callbacks.append(lambda done: self.wake(thread, done._value))

    def _run_simpy_event(self) -> None:
        due_ns, _, _, event = heappop(self._others)
        self._now = max(self._now, due_ns)
        self.current = None  # no thread of ours is at work
        callbacks, event.callbacks = event.callbacks, None  # type: ignore[assignment]
        for callback in callbacks:
            callback(event)
        if not event._ok and not getattr(event, "_defused", False):
            raise event._value


def _names(access: Access | None) -> str:
    holders: Iterable[Thread] = getattr(access.target, "holders", list)() if access is not None else ()
    return ", ".join(thread.name for thread in holders) or "nobody"


class Start(Access):
    """A thread's first step."""

    __slots__ = ()
    verb = "start"
    target: Thread

    def perform(self, thread: Thread) -> None:
        return None


class End(Access):
    """The last step of a thread that spent time after its last access."""

    __slots__ = ("given",)
    verb = "end"
    target: Thread

    def __init__(self, target: Thread, given: Any) -> None:
        self.target = target
        self.given = given

    def perform(self, thread: Thread) -> None:
        raise StopIteration(self.given)


class Join(Access):
    """Wait for the end of a thread."""

    __slots__ = ()
    verb = "join"
    reads = acquires = True
    target: Thread

    def perform(self, thread: Thread) -> Blocked | Any:
        joined = self.target
        if joined._value is not PENDING:
            return joined._value
        joined.callbacks.append(lambda done: thread.kernel.wake(thread, done._value))
        return BLOCKED

    def touches(self) -> tuple[Touch, ...]:
        return ()

    def gate(self) -> Gate:
        return Gate(self.target, waits=True)


__all__ = ["INFINITY", "Kernel", "Lock", "ModelBug", "Pick", "StopExecution"]
