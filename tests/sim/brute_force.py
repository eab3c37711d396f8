"""Every interleaving of a small world, the slow way, and what searches that reduce must agree with.

A program is a list of threads, a thread a list of operations, an operation a tuple: its name and its arguments (see
`Program`). All threads write down what they receive.
"""

from __future__ import annotations

from typing import NamedTuple

from sim import INFINITY, Kernel, strategies
from sim.dependence import Notes, conflict


class Seen(NamedTuple):
    """One execution: what came out, the class of its order, and whether it had notes (touches of plain calls)."""

    outcome: tuple
    trace: frozenset
    noted: bool


class Searched(NamedTuple):
    """A search that ended: the outcome of every execution, and how many more were cut short as redundant."""

    outcomes: list
    cut: int
    proved: bool


class Program:
    """A world made of operations; call it with a kernel to fill it."""

    def __init__(self, *threads):
        self.threads = threads

    def __repr__(self):
        return f"Program{self.threads!r}"

    def __call__(self, k):
        self.k = k
        self.cells = [k.cell(f"c{i}", 0) for i in range(3)]
        self.locks = [k.mutex("m0"), k.spinlock("m1")]
        self.rwlock = k.rwlock("rw")
        self.domains = [k.rcu(), k.srcu("srcu")]
        self.signals = [k.signal("s0"), k.signal("s1")]
        self.received = {}
        self.started = {}
        for i, operations in enumerate(self.threads):
            self.started[f"t{i}"] = k.thread(f"t{i}", self._thread(f"t{i}", operations))

    def _thread(self, name, operations):
        received = self.received[name] = []
        yield from self._run(name, received, operations)
        return tuple(received)

    def _run(self, name, received, operations):
        for number, (kind, *arguments) in enumerate(operations):
            yield from getattr(self, f"_{kind}")(name, received, number, *arguments)

    def _read(self, name, received, number, cell):
        received.append((yield self.cells[cell].read()))

    def _write(self, name, received, number, cell, value):
        yield self.cells[cell].write_once(value)

    def _cmpxchg(self, name, received, number, cell, expect, new):
        received.append((yield self.cells[cell].cmpxchg(expect, new)))

    def _add(self, name, received, number, cell):
        received.append((yield self.cells[cell].fetch_add(1)))

    def _xchg(self, name, received, number, cell, value):
        received.append((yield self.cells[cell].xchg(value)))

    def _until(self, name, received, number, cell, value):
        received.append((yield self.cells[cell].wait_until(lambda seen: seen >= value)))

    def _locked(self, name, received, number, lock, inside):
        yield self.locks[lock].lock()
        yield from self._run(name, received, inside)
        yield self.locks[lock].unlock()

    def _reading(self, name, received, number, inside):
        yield self.rwlock.read_lock()
        yield from self._run(name, received, inside)
        yield self.rwlock.read_unlock()

    def _writing(self, name, received, number, inside):
        yield self.rwlock.write_lock()
        yield from self._run(name, received, inside)
        yield self.rwlock.write_unlock()

    def _contended(self, name, received, number, cell):
        yield self.cells[cell].read_once()
        received.append(self.rwlock.contended)

    def _inside(self, name, received, number, domain, inside):
        yield self.domains[domain].read_lock()
        yield from self._run(name, received, inside)
        yield self.domains[domain].read_unlock()

    def _synchronize(self, name, received, number, domain):
        yield self.domains[domain].synchronize()

    def _call(self, name, received, number, cell):
        yield self.cells[cell].read_once()
        target = self.cells[cell]

        def add():
            target.v += 10
            target.notify()

        self.domains[0].call("add 10", add)

    def _raise(self, name, received, number, signal):
        yield self.signals[signal].raise_()

    def _await(self, name, received, number, signal, bound_ns, take):
        received.append(str((yield self.signals[signal].wait(bound_ns, take=take))))

    def _spawn(self, name, received, number, operations):
        yield self.cells[2].read_once()
        child = f"{name}.{number}"
        self.started[name, "child"] = self.k.thread(child, self._thread(child, operations))

    def _join(self, name, received, number, of):
        thread = self.started.get((name, "child") if of is None else of)
        if thread is not None:
            received.append((yield self.k.join(thread)))

    def _bug(self, name, received, number, cell, value):
        seen = yield self.cells[cell].read_once()
        if seen == value:
            self.k.find("kvm-bug", f"{name} saw {value}")

    def outcome(self):
        """What one can tell of an execution that has ended: of one that a finding cut short, the finding alone."""
        findings = tuple(sorted((finding.kind, finding.title) for finding in self.k.findings))
        if findings and not self.k.findings[0].title.startswith("nobody can move"):
            return findings
        return (
            tuple(cell.peek() for cell in self.cells),
            tuple(sorted((name, tuple(values)) for name, values in self.received.items())),
            findings,
        )


def every_interleaving(program, *, executions=20_000, max_steps=10_000):
    """The executions of all interleavings; None if there are more than that."""
    seen = []
    path = []
    while True:
        if len(seen) == executions:
            return None
        widths = []

        def pick(kernel, candidates, widths=widths):
            step = len(widths)
            widths.append(len(candidates))
            if step == len(path):
                path.append(0)
            return path[step]

        seen.append(execute(program, pick, max_steps))
        while path and path[-1] + 1 == widths[len(path) - 1]:
            path.pop()
        if not path:
            return seen
        path[-1] += 1


def search(world, text, outcome=None):
    """What a strategy saw; `outcome` is asked after every execution, a `Program` by default."""
    outcome = world.outcome if outcome is None else outcome
    plan = strategies.strategy(text, 0)
    outcomes = []
    cut = 0
    while True:
        kernel = Kernel(window_ns=INFINITY)
        if not plan.begin(kernel, len(outcomes) + cut):
            return Searched(outcomes, cut, plan.exhaustive)
        world(kernel)
        kernel.execute(plan.pick)
        plan.end(kernel)
        if getattr(plan, "redundant", False):
            cut += 1
        else:
            outcomes.append(outcome())


def execute(program, pick, max_steps=10_000):
    """One execution and its class: which accesses there were, and the order of those that are dependent."""
    kernel = Kernel(window_ns=INFINITY, max_steps=max_steps)
    program(kernel)
    events = []

    def noted_pick(kernel, candidates):
        _take_notes(events)  # of the code behind the last access
        return pick(kernel, candidates)

    kernel.check(lambda _kernel, thread, access: events.append([thread.name, access, ()]))
    before, Notes.taken = Notes.taken, []
    try:
        kernel.execute(noted_pick)
        _take_notes(events)
    finally:
        Notes.taken = before
    return Seen(program.outcome(), trace_of(events), any(notes for _, _, notes in events))


def _take_notes(events):
    if events and Notes.taken:
        events[-1][2] += tuple(Notes.taken)
    Notes.taken.clear()


def trace_of(events):
    """The order of all pairs of dependent accesses: the same for equivalent executions, and only for those."""
    counts = {}
    named = []
    for name, access, notes in events:
        touched = (*access.touched(), *notes)
        if touched:
            number = counts[name] = counts.get(name, 0) + 1
            named.append((name, number, touched))
    pairs = set()
    for late, (name, number, touched) in enumerate(named):
        pairs.add((name, number, touched))
        for other, other_number, other_touched in named[:late]:
            if other != name and conflict(touched, other_touched):
                pairs.add((other, other_number, name, number))
    return frozenset(pairs)
