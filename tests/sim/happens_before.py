"""Happens-before the slow way: a graph over the steps of a whole trace, and reachability in it. What `sim.races` must agree with.

Nothing here has a clock. The trace is walked once more for every kind of edge, by the meaning of the operations: who read
from which write, which release came before which acquisition, who was inside when a grace period began.
"""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

from sim import access as cells
from sim.kernel import Join, Start
from sim.locks import Acquire, Release
from sim.rcu import Enter, Leave, Reclaim, Synchronize
from sim.signals import Await, Raise

ACQUIRING = (cells.LoadAcquire, cells.WaitUntil, cells.Cmpxchg, cells.Xchg, cells.Update)
FULL_BARRIER = (cells.Cmpxchg, cells.Xchg, cells.Update)
RELEASING = (cells.StoreRelease, *FULL_BARRIER)


class Step(NamedTuple):
    """One step of the thread of that number; of an access that blocked, the step that blocked and, later on, its `Resume`."""

    thread: int
    access: object
    done: bool
    values: dict


class Trace:
    """A check that writes everything down. `calls` and `made` are told by the program, which makes these plain calls."""

    def __init__(self, watched):
        self.watched = watched
        self.steps = []
        self.calls = []
        self.made = {}

    def __call__(self, kernel, thread, access):
        """One step."""
        values = {cell: cell.peek() for cell in self.watched}
        self.steps.append(Step(thread.index, access, access.processed, values))

    def last_of(self, thread):
        """The number of the latest step of a thread, which is making a plain call."""
        return max(i for i, step in enumerate(self.steps) if step.thread == thread.index)


def racy_words(trace):
    """The words that race, each with the pairs of threads that do."""
    graph = _Graph(trace)
    racy = {}
    for (i, a), (j, b) in combinations(graph.accesses, 2):
        if (
            a.cell is not b.cell
            or a.thread == b.thread
            or not (a.writes or b.writes)
            or (a.marked and b.marked)
        ):
            continue
        if not graph.before[j] >> i & 1:
            racy.setdefault(a.cell.name, set()).add(frozenset((a.thread, b.thread)))
    return racy


class _Use(NamedTuple):
    thread: int
    cell: object
    writes: bool
    marked: bool


class _Graph:
    def __init__(self, trace):
        self.trace = trace
        self.steps = trace.steps
        self.edges = set()
        self.published = {}
        """What an acquire that reads from a write is ordered after: the write, or its thread's last full barrier."""
        self.accesses = []
        self._program_order()
        self._threads()
        self._words()
        self._locks()
        self._rcu()
        self._signals()
        self.before = [0] * len(self.steps)
        predecessors = [[] for _ in self.steps]
        for i, j in self.edges:
            assert i < j, "every edge goes forward in the trace"
            predecessors[j].append(i)
        for j, sources in enumerate(predecessors):
            for i in sources:
                self.before[j] |= self.before[i] | 1 << i

    def _of(self, *classes):
        return [(i, step) for i, step in enumerate(self.steps) if isinstance(step.access, classes)]

    def _ends(self, i):
        """The step at which what was tried in step i has come about: the same one, or the next of the thread; else None."""
        if self.steps[i].done:
            return i
        return next(
            (j for j in range(i + 1, len(self.steps)) if self.steps[j].thread == self.steps[i].thread), None
        )

    def _program_order(self):
        latest = {}
        for i, step in enumerate(self.steps):
            if step.thread in latest:
                self.edges.add((latest[step.thread], i))
            latest[step.thread] = i

    def _threads(self):
        for i, step in self._of(Start):
            if step.thread in self.trace.made:
                self.edges.add((self.trace.made[step.thread], i))
        for i, step in self._of(Join):
            end = self._ends(i)
            if end is not None:
                self.edges |= {
                    (j, end) for j in range(end) if self.steps[j].thread == step.access.target.index
                }

    def _words(self):
        """Who reads from which write, and what that orders."""
        latest_write = {}
        barrier = {}
        seen = {}
        for i, step in enumerate(self.steps):
            access, thread = step.access, step.thread
            waited = None
            if isinstance(access, cells.Resume) and isinstance(self._blocked(i), cells.WaitUntil):
                access, waited = self._blocked(i), self._woken_at(i)
            elif not step.done or not isinstance(access, cells.CellAccess):
                continue
            cell = access.target
            writes = access.writes and access.wrote
            full = isinstance(access, FULL_BARRIER) and writes
            source = latest_write.get(cell) if waited is None else self._write_at(cell, waited)
            published = self.published.get(source) if source is not None else None
            if full:
                self.edges |= {(j, i) for j in seen.pop(thread, ())}
                barrier[thread] = i
            if published is not None and access.marked and access.reads:
                if isinstance(access, ACQUIRING):
                    self.edges.add((published, i))
                else:
                    seen.setdefault(thread, []).append(published)
            if writes:
                latest_write[cell] = i
                if isinstance(access, RELEASING):
                    self.published[i] = i
                elif access.marked and thread in barrier:
                    self.published[i] = barrier[thread]
            self.accesses.append((i, _Use(thread, cell, writes, access.marked)))

    def _blocked(self, i):
        """What the `Resume` in step i goes on with."""
        thread = self.steps[i].thread
        return next(step.access for step in reversed(self.steps[:i]) if step.thread == thread)

    def _woken_at(self, i):
        """The step whose value ended the wait that is resumed in step i: the first one that does."""
        wait = self._blocked(i)
        tried = max(j for j in range(i) if self.steps[j].thread == self.steps[i].thread)
        return next(j for j in range(tried + 1, i) if wait.condition(self.steps[j].values[wait.target]))

    def _write_at(self, cell, i):
        """The latest write of the word at or before step i."""
        return max(
            j
            for j in range(i + 1)
            if isinstance(self.steps[j].access, cells.CellAccess)
            and self.steps[j].access.target is cell
            and self.steps[j].done
            and self.steps[j].access.writes
            and self.steps[j].access.wrote
        )

    def _locks(self):
        for i, taken in self._of(Acquire):
            end = self._ends(i)
            if end is None:
                continue
            for j, dropped in self._of(Release):
                same = dropped.access.target is taken.access.target
                if same and j < end and "write" in {taken.access.mode, dropped.access.mode}:
                    self.edges.add((j, end))

    def _rcu(self):
        asked_for = self._callers()
        for i, waiting in self._of(Synchronize):
            end = self._ends(i)
            latest = max(j for j in range(i) if self.steps[j].thread == waiting.thread)
            begin = [latest, *asked_for.get(i, ())]  # not i, which may be the end as well
            self.edges |= {(j, i) for j in begin}
            for enter, leave in self._sections(waiting.access.target):
                if enter > i:
                    self.edges |= {(j, enter) for j in begin}
                elif leave is not None and end is not None:
                    self.edges.add((leave, end))

    def _callers(self):
        """By the step that begins a grace period, those who queued the callbacks that run after it."""
        found = {}
        for number, (domain, call) in enumerate(self.trace.calls):
            turn = sum(1 for earlier, _ in self.trace.calls[:number] if earlier is domain)
            mine = [(i, step.thread) for i, step in self._of(Reclaim) if step.access.target is domain]
            if turn < len(mine):
                run, reclaimer = mine[turn]
                begins = max(i for i, step in self._of(Synchronize) if step.thread == reclaimer and i < run)
                found.setdefault(begins, []).append(call)
        return found

    def _sections(self, domain):
        """(enter, leave) of the outermost read sections; leave is None for one that is still open."""
        depth, opened, sections = {}, {}, []
        for i, step in self._of(Enter, Leave):
            if step.access.target is not domain:
                continue
            thread = step.thread
            depth[thread] = depth.get(thread, 0) + (1 if isinstance(step.access, Enter) else -1)
            if isinstance(step.access, Enter) and depth[thread] == 1:
                opened[thread] = i
            elif depth[thread] == 0:
                sections.append((opened.pop(thread), i))
        return sections + [(i, None) for i in opened.values()]

    def _signals(self):
        """A flag: who takes it has seen all that set it since it was last taken; who waits gets it from who sets it."""
        given, waiting = {}, {}
        for i, step in self._of(Raise, Await):
            signal = step.access.target
            if isinstance(step.access, Raise):
                given.setdefault(signal, []).append(i)
                for waiter in waiting.pop(signal, []):
                    takes = self.steps[waiter].access.take
                    if takes and not given[signal]:  # an earlier waiter took it
                        waiting.setdefault(signal, []).append(waiter)
                        continue
                    end = self._ends(waiter)
                    if end is not None:
                        self.edges.add((i, end))
                    if takes:
                        given[signal] = []
            elif step.done:
                self.edges |= {(j, i) for j in given.get(signal, ())}
                if step.access.take:
                    given[signal] = []
            else:
                waiting.setdefault(signal, []).append(i)
