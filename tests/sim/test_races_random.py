"""The detector against brute force, on random programs: the same words race, in every single execution."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from sim import Kernel
from sim.races import Detector, FactTeller, LoggedStep, attach, replay
from tests.sim.happens_before import Trace, racy_words

CELLS = ("x", "y", "p", "q")
"""Two words of data, which few operations touch, and two flags."""

SEEDS = st.integers(0, 1 << 32)


class Program:
    """A world made of operations; call it with a kernel to fill it."""

    def __init__(self, *threads):
        self.threads = threads

    def __repr__(self):
        return f"Program{self.threads!r}"

    def __call__(self, k):
        self.k = k
        self.cells = [k.cell(name, 0) for name in CELLS]
        self.mutex, self.rwlock, self.signal = k.mutex("m"), k.rwlock("rw"), k.signal("s")
        self.domains = {"rcu": k.rcu(), "srcu": k.srcu("srcu")}
        self.trace = Trace(self.cells)
        for name, operations in zip("abc", self.threads, strict=False):
            k.thread(name, self.run(name, operations))
        return self.trace

    def run(self, name, operations):
        """The steps of a thread, or of a part of one."""
        for kind, *arguments in operations:
            if kind in PLAIN_CALLS:
                getattr(self, f"_{kind}")(name, *arguments)
            elif kind in BRACKETS:
                opening, closing = BRACKETS[kind](self)
                yield opening()
                yield from self.run(name, *arguments)
                yield closing()
            else:
                yield from getattr(self, f"_{kind}")(name, *arguments)

    def _plain_read(self, name, cell):
        yield self.cells[cell].read()

    def _plain_write(self, name, cell):
        yield self.cells[cell].write(5)

    def _read(self, name, cell):
        yield self.cells[cell].read_once()

    def _write(self, name, cell):
        yield self.cells[cell].write_once(6)

    def _acquire(self, name, cell):
        yield self.cells[cell].load_acquire()

    def _release(self, name, cell):
        yield self.cells[cell].store_release(7)

    def _cmpxchg(self, name, cell, expect):
        yield self.cells[cell].cmpxchg(expect, 8)

    def _add(self, name, cell):
        yield self.cells[cell].fetch_add(1)

    def _until(self, name, cell):
        yield self.cells[cell].wait_until(bool)

    def _synchronize(self, name, domain):
        yield self.domains[domain].synchronize()

    def _barrier(self, name, domain):
        yield self.domains[domain].barrier()

    def _raise(self, name):
        yield self.signal.raise_()

    def _wait(self, name, take):
        yield self.signal.wait(take=take)

    def _join(self, name):
        children = [thread for thread in self.k.threads if thread.name.startswith(f"{name}'")]
        if children:
            yield self.k.join(children[-1])

    def _call(self, name, domain):
        self.trace.calls.append((self.domains[domain], self.trace.last_of(self.k.current)))
        made = len(self.k.threads)
        self.domains[domain].call("nothing", lambda: None)
        self._made(made)

    def _spawn(self, name, operations):
        made = len(self.k.threads)
        self.k.thread(f"{name}'{made}", self.run(f"{name}'{made}", operations))
        self._made(made)

    def _made(self, before):
        for thread in self.k.threads[before:]:
            self.trace.made[thread.index] = self.trace.last_of(self.k.current)


PLAIN_CALLS = {"call", "spawn"}
BRACKETS = {
    "mutex": lambda program: (program.mutex.lock, program.mutex.unlock),
    "reading": lambda program: (program.rwlock.read_lock, program.rwlock.read_unlock),
    "writing": lambda program: (program.rwlock.write_lock, program.rwlock.write_unlock),
    "rcu": lambda program: (program.domains["rcu"].read_lock, program.domains["rcu"].read_unlock),
    "srcu": lambda program: (program.domains["srcu"].read_lock, program.domains["srcu"].read_unlock),
}


class Maker:
    """Makes random programs about one way to meet, or all: a word of data is touched by few operations around the meetings."""

    def __init__(self, seed):
        self.random = Random(seed)
        meetings = [self._flag, self._lock, self._rcu, self._signal, self._thread]
        self.meet = self.random.choice([*meetings, self._any])
        self.meetings = meetings

    def program(self):
        """Two or three threads."""
        return Program(*(self._many(2, 5, self._operation) for _ in range(self.random.choice([2, 2, 3]))))

    def _many(self, low, high, make):
        return [make() for _ in range(self.random.randint(low, high))]

    def _any(self):
        return self.random.choice(self.meetings)()

    def _operation(self):
        return self.random.choice([self._data, self.meet, self.meet])()

    def _data(self):
        kind = self.random.choice(["plain_read", "plain_write", "plain_write", "read", "write"])
        return (kind, self.random.randrange(2))

    def _flag(self):
        flag = self.random.choice([2, 2, 2, 3])
        kind = self.random.choice(
            ["read", "write", "acquire", "release", "add", "add", "until", "cmpxchg", "plain_write"]
        )
        return (kind, flag, self.random.choice([0, 5, 6])) if kind == "cmpxchg" else (kind, flag)

    def _section(self):
        inside = [self._data, self._data, self._data, self._nested]
        return [self.random.choice(inside)() for _ in range(self.random.choice([1, 1, 2]))]

    def _nested(self):
        return (self._domain(), [self._data()])

    def _domain(self):
        return self.random.choice(["rcu", "rcu", "rcu", "srcu"])

    def _lock(self):
        return (self.random.choice(["mutex", "reading", "reading", "writing"]), self._section())

    def _rcu(self):
        kind = self.random.choice(["section", "section", "synchronize", "synchronize", "call", "barrier"])
        return (self._domain(), self._section()) if kind == "section" else (kind, self._domain())

    def _signal(self):
        return self.random.choice([("raise",), ("raise",), ("wait", True), ("wait", True), ("wait", False)])

    def _thread(self):
        return self.random.choice([("spawn", self._section()), ("join",)])


def walk(program, seed):
    """One random walk with everything watching; the brute-force trace, the detector, and the steps as a log has them."""
    k = Kernel(stop_at_finding=False, max_steps=500)
    trace = program(k)
    detector, teller, log = attach(k), FactTeller(k), []

    def record(kernel, thread, access):
        verb = repr(access).removesuffix(f" {access.target}")
        facts = teller.facts(kernel, thread, access)
        log.append(LoggedStep(kernel.now_ns, kernel.steps, thread.name, verb, str(access.target), facts))

    k.check(trace)
    k.check(record)
    random = Random(seed)
    k.execute(lambda _kernel, candidates: random.randrange(len(candidates)))
    return trace, detector, log


@settings(derandomize=True, deadline=None, max_examples=400)
@given(SEEDS)
def test_the_detector_agrees_with_brute_force(seed):
    """The same words race, in each of ten walks, and each finding names two threads that really do."""
    program = Maker(seed).program()
    for number in range(10):
        trace, detector, _ = walk(program, seed + number)
        racy = racy_words(trace)
        names = [thread.name for thread in program.k.threads]

        assert {finding.details["cell"] for finding in detector.findings} == set(racy), program
        for finding in detector.findings:
            pairs = [{names[i] for i in pair} for pair in racy[finding.details["cell"]]]
            assert set(finding.threads) in pairs, program


@settings(derandomize=True, deadline=None, max_examples=400)
@given(SEEDS)
def test_a_log_gives_the_same_answer(seed):
    """Field for field: kind, title, places, threads, step, time, details."""
    program = Maker(seed).program()
    _, detector, log = walk(program, seed)

    assert replay(Detector(), log) == detector.findings, program
