"""`dpor`, `dpor:values`: one execution per class of equivalent interleavings (optimal dynamic partial-order reduction).

Two interleavings are equivalent if swapping neighbouring independent steps makes one of the other; `sim.dependence` says
what is independent. Every execution, once it has ended, is searched for races: steps of two threads that conflict, with
nothing in between. Each race makes an obligation: run, from just before its first step, what does not depend on that step,
then the second step. Obligations wait in the wakeup tree of the place where they branch off; what was explored from a place
sleeps there until something dependent happens. So no execution ends equivalent to another, and none is missed.
Source: Abdulla, Aronis, Jonsson, Sagonas, "Optimal dynamic partial order reduction", POPL 2014 (algorithm 2), JACM 2017.

What is a step here. Starts and ends of threads are independent of everything. A thread that waited at a gate (lock, RCU,
join) goes on as part of the step that let it through: waiting in line is no step (see `sim.dependence`). Nothing disables a
step, with two exceptions that are added to the races by hand: a wake-up disarms a bounded wait, and a finding ends the world.
What a step would have touched in another order is not known before it runs there; what it touched in this order is the best
guess, and errs only by exploring too much: such an execution is cut short as soon as it shows (`redundant`).

`dpor:values` looks at values, too. A store that changes nothing is a read. A wait for a word (`wait_until`) is one step,
which cannot happen before the word is right: when it began does not count. Both leave every final state and every finding.

Guarantee: every final state, deadlock and finding at a step's own place. Properties that are looked at after *every* step
(`always`, `sometimes` with a predicate) see intermediate states, which equivalent interleavings do not share: in a world
that has any, all steps that change something are taken as dependent, which is right and slow.
Pitfalls. Full interleaving only (`window_ns` infinite), no SimPy events, executions a function of their picks; a model that
lets the clock decide is not such a function. Two threads of one name are told apart by the order in which they were made.
`exhaustive` is False where the search cannot vouch for having seen everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from sim.access import Access, CellAccess, FreedCell, Resume, WaitUntil
from sim.dependence import EVERYTHING, READ, WRITE, Notes, Touch
from sim.kernel import INFINITY, End, ModelBug, StopExecution
from sim.strategies.dpor_order import NOWHERE, Footprints, Order, Race, Step, Wait
from sim.strategies.dpor_tree import Branch, Entry, insert
from sim.thread import Thread

if TYPE_CHECKING:
    from sim.kernel import Kernel

PATIENCE = 200
"""After so many steps in a row a thread gives way: one that spins would keep the others from ever starting."""

_PROPERTY: Touch = ("*property", WRITE)
_FATAL: Touch = ("*fatal", READ)
_FOREIGN: Touch = ("*foreign", READ)

ThreadName = tuple[str, int]
"""A thread's name, and how many were made before it under the same one."""


class Root(NamedTuple):
    """Where a search begins: after the steps of `path`, with threads asleep whose next step another search begins with."""

    path: tuple[ThreadName, ...]
    asleep: dict[ThreadName, tuple[Touch, ...]]


WHOLE = Root((), {})


class Dpor:
    """The tree of executions, one a class, from left to right."""

    complete_after: ClassVar[int | None] = None

    def __init__(self, *, values: bool = False, root: Root = WHOLE) -> None:
        """Search all interleavings, or with `root` those that begin there and that no root before it has."""
        self.values = values
        self.root = root
        self.redundant = False
        self.executions = 0
        self.complete = 0
        self.exhaustive = True
        self.steps: list[Step] = []
        """The current execution; what `begin` finds of it is the prefix to repeat."""
        self._first = 0
        """The first step that the execution before this one did not make."""
        self._prints = Footprints()
        self._numbers: dict[ThreadName, int] = {}
        """Threads by name and occurrence."""
        self._apart: set[int] = set()
        """Footprints of sleepers that cover only what begins with them: steps that made a finding, after which nothing came,
        and those of another search, whose races are not known here.
        """
        self._noted = False
        """Whether plain calls touch anything: then what a step will touch is known only when it has happened."""
        self._picks: list[int] = []
        self._gates: list[int | None] = []
        """As long as `_picks`: the gate a step plays a part at."""
        self._following: list[Branch] = []
        self._begin_execution()
        for name in (*root.path, *root.asleep):
            self._numbers.setdefault(name, len(self._numbers))

    def _begin_execution(self) -> None:
        Notes.taken = None
        self.redundant = False
        self._live = False
        self._made = 0
        self._replayed = len(self._picks)
        self._thread: Thread | None = None
        self._turns = 0
        self._access: Access | None = None
        self._was: Any = None
        self._folded = False
        self._fold: list[Thread] = []
        self._known: dict[Thread, Access | None] = {}
        self._armed: set[Thread] = set()
        self._thread_numbers: dict[Thread, int] = {}
        self._gate_numbers: dict[Any, int] = {}

    # The protocol.

    def begin(self, kernel: Kernel, execution: int) -> bool:
        if kernel.window_ns < INFINITY:
            raise ValueError("dpor needs full interleaving: window_ns must be INFINITY")
        self._begin_execution()
        return bool(self.steps) or not self.executions

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        made = self._made
        self._made = made + 1
        if made < self._replayed:
            index = self._picks[made]
            gate = self._gates[made]
            if gate is not None:
                self._gate_numbers[candidates[index].pending.gate().target] = gate  # type: ignore[union-attr]
            return index
        if self._live:
            self._settle(kernel, candidates)
            if not self._fold and self.values:
                self._fold = _all_waiting(candidates)
            if self._fold:
                self._folded = True
                return self._picked(candidates, self._fold.pop(), None)
            step = self._next_step(made)
        else:
            self._wake_up(kernel, candidates)
            step = self.steps[-1] if self.steps else self._next_step(made)
        thread = self._choose(step, candidates)
        self._folded = False
        return self._picked(candidates, thread, self._describe(kernel, step, thread))

    def end(self, kernel: Kernel) -> None:
        if not self._live:
            if kernel.steps or self.steps:
                raise ModelBug("dpor: the same picks led elsewhere: the world is not deterministic")
        elif not self.redundant:
            self._settle(kernel, kernel._ready or ())
        self.executions += 1
        self.complete += not self.redundant and not kernel.exhausted
        if kernel.exhausted or kernel._others:
            self.exhaustive = False
        self._plan(kernel)
        Notes.taken = None
        self._backtrack()

    def claim(self) -> str:
        """What has been covered."""
        if self.steps or not self.executions:
            return f"dpor: {self.complete} classes of interleavings so far"
        proviso = "" if self.exhaustive else ", as far as dependence was declared"
        return f"dpor: {self.complete} classes of interleavings, all{proviso}"

    # One execution.

    def _next_step(self, made: int) -> Step:
        if not self.steps:
            step = Step(made, {}, self._way_to_root())
        else:
            last = self.steps[-1]
            conflicts = self._prints.conflicts[last.print_]
            sleep = {thread: mark for thread, mark in last.sleep.items() if not conflicts >> mark & 1}
            step = Step(made, sleep, self._following)
        if len(self.steps) == len(self.root.path):
            for name, touches in self.root.asleep.items():
                mark = self._prints.number((*touches, _FOREIGN))
                self._apart.add(mark)
                step.sleep[self._numbers[name]] = mark
        self.steps.append(step)
        return step

    def _way_to_root(self) -> list[Branch]:
        """The root's path, as a plan of a single branch."""
        branches: list[Branch] = []
        for name in reversed(self.root.path):
            branch = Branch(self._numbers[name], 0)
            branch.children = branches
            branches = [branch]
        return branches

    def _choose(self, step: Step, candidates: Sequence[Thread]) -> Thread:
        """The next branch of the wakeup tree; without one, any thread that does not sleep, the last one for `PATIENCE` steps.

        Raises: StopExecution: everything from here has been explored.
        """
        numbers = self._thread_numbers
        planned = bool(step.branches)
        while step.branches:
            branch = step.branches.pop(0)
            if branch.thread in step.sleep:
                continue  # it was planned for a step that touches less than it might have
            for thread in candidates:
                if numbers[thread] == branch.thread and not (self.values and _waiting(thread)):
                    step.thread = branch.thread
                    self._following = branch.children
                    return thread
            if not self.values:
                raise ModelBug(
                    "dpor: a step that was possible is not: not deterministic, or an access touches more than it says"
                )
        self._following = []
        sleep = step.sleep
        last = self._thread
        chosen = None
        for thread in () if planned else candidates:
            if numbers[thread] in sleep or (self.values and _waiting(thread)):
                continue
            if thread is last and self._turns < PATIENCE:
                chosen = thread
                break
            if chosen is None or chosen is last:
                chosen = thread
        if chosen is None:
            self.steps.pop()
            self.redundant = True
            raise StopExecution
        self._turns = self._turns + 1 if chosen is last else 0
        step.thread = numbers[chosen]
        return chosen

    def _picked(self, candidates: Sequence[Thread], thread: Thread, gate: int | None) -> int:
        self._thread = thread
        self._access = access = thread.pending
        if self.values:
            self._was = _value(access)
        index = next(i for i, candidate in enumerate(candidates) if candidate is thread)
        self._picks.append(index)
        self._gates.append(gate)
        return index

    def _describe(self, kernel: Kernel, step: Step, thread: Thread) -> int | None:
        """Note what is known of a step before it happens: its part at a gate."""
        access: Any = thread.pending
        step.begin()
        if self.values:
            step.wait = _wait_of(access)
        gate = access.gate()
        if gate is None:
            return None
        _, step.waits, step.opens, step.closes, step.exclusive = gate
        if isinstance(gate.target, Thread):
            step.gate = NOWHERE - 1 - self._number(kernel, gate.target)
            return None
        step.gate = self._gate_numbers.setdefault(gate.target, len(self._gate_numbers))
        return step.gate

    def _number(self, kernel: Kernel, thread: Thread) -> int:
        number = self._thread_numbers.get(thread)
        if number is None:
            name = thread.name
            occurrence = 0
            for other in kernel.threads:
                if other is thread:
                    break
                occurrence += other.name == name
            number = self._numbers.setdefault((name, occurrence), len(self._numbers))
            self._thread_numbers[thread] = number
        return number

    def _wake_up(self, kernel: Kernel, candidates: Sequence[Thread]) -> None:
        """The prefix has been repeated: from here on, watch."""
        self._live = True
        Notes.taken = []
        self._watched = bool(kernel._always or kernel._sometimes)
        for thread in candidates:
            self._known[thread] = thread.pending
            self._number(kernel, thread)
            if thread.blocked_on is not None and not isinstance(thread.pending, Resume):
                self._armed.add(thread)

    def _settle(self, kernel: Kernel, candidates: Sequence[Thread]) -> None:
        """The step picked last has happened: note what it touched and whom it made ready."""
        step = self.steps[-1]
        access: Any = self._access
        last: Any = self._thread
        notes = Notes.taken
        if self._folded:
            if notes:
                self.exhaustive = False  # it might have looked a little later
                touches = tuple(sorted({*self._prints.touches(step.print_), *notes}))
                step.print_ = self._prints.number(touches)
        else:
            touches = self._touched(step, access)
            if notes or self._watched:
                touches = self._with_property(tuple(sorted({*touches, *notes})), access)  # type: ignore[misc]
            step.print_ = self._prints.number(touches)
        if notes:
            self._noted = True
            notes.clear()
        if kernel._others:
            self.exhaustive = False
        known = self._known
        for thread in candidates:
            pending = thread.pending
            if known.get(thread) is pending:
                continue
            if thread is not last:
                number = self._number(kernel, thread)
                step.enables.append((number, self._thread_numbers[last]))
                if thread in self._armed:
                    self._armed.discard(thread)
                    step.disarms.append((number, self._guess(known[thread])))
            elif thread.blocked_on is not None:
                self._armed.add(thread)
            else:
                self._armed.discard(thread)
            known[thread] = pending
            if isinstance(pending, End) or (
                isinstance(pending, Resume)
                and thread.blocked_on is not None
                and thread.blocked_on.gate() is not None
            ):
                self._fold.append(thread)

    def _touched(self, step: Step, access: Access) -> tuple[Touch, ...]:
        """What the step has touched."""
        touched = access.touched()
        if self.values and isinstance(access, CellAccess) and access.writes:
            name = access.target.name
            if touched == ((name, WRITE),) and _value(access) == self._was:
                return ((name, READ),)
            step.was = name, self._was
        return touched

    def _guess(self, access: Any) -> int:
        """The footprint of a step that has not happened."""
        touches = EVERYTHING if self._noted else access.touches()
        return self._prints.number(self._with_property(touches, access))

    def _with_property(self, touches: tuple[Touch, ...], access: Access) -> tuple[Touch, ...]:
        if not self._watched:
            return touches
        changes = access.gate() is not None or any(mode != READ for _, mode in touches)
        return (*touches, _PROPERTY) if changes else touches

    # After an execution.

    def _plan(self, kernel: Kernel) -> None:
        """Find the races of the execution, and put what they oblige us to try into the wakeup trees."""
        order = Order(self.steps, self._prints, self._first)
        for race in order.races:
            self._oblige(order, race)
        if not self.steps or self.redundant:
            return
        if self.values:
            for thread in kernel.threads:
                waited = thread.blocked_on
                wait = None if thread.done or thread.ready or waited is None else _wait_of(waited)
                if wait is not None:
                    for race in order.race_of_wait(self._number(kernel, thread), self._guess(waited), wait):
                        self._oblige(order, race)
        if kernel._ready:
            self._cut_short(kernel, order)

    def _cut_short(self, kernel: Kernel, order: Order) -> None:
        """The execution ended while threads could go on: what of these would have come is to be tried as well.

        A finding ends the world, so its step disables every other: each of them is to go first. At the step limit only the
        races of the next steps are known.
        """
        last = self.steps[-1]
        woken = {number for number, _ in last.enables}
        for thread in kernel._ready or ():
            number = self._number(kernel, thread)
            guess = self._guess(thread.pending)
            if kernel.exhausted:
                for race in order.foresee(number, guess):
                    self._oblige(order, race)
            elif number not in woken:
                self._oblige(order, Race(len(self.steps) - 1, number, guess, 0))
            elif self._folded:
                self.exhaustive = False  # it might have gone on before the one that made the finding
        last.fatal = not kernel.exhausted

    def _oblige(self, order: Order, race: Race) -> None:
        """Unless what sleeps before the early step covers it, plan: what does not depend on that, then the late step."""
        early, thread, print_, before = race
        if early < len(self.root.path):
            return  # whatever else could be tried there is a root of its own
        rest = order.independent_of(early)
        steps = self.steps
        conflicts = self._prints.conflicts
        place = steps[early]
        touched = 1 << print_
        bits = 0
        for i in rest:
            touched |= 1 << steps[i].print_
            bits |= 1 << i
        first: dict[int, bool] = {}
        for i in rest:
            first.setdefault(steps[i].thread, not order.before[i] & bits)
        rivals = conflicts[print_]
        for i in rest:
            if rivals >> steps[i].print_ & 1:
                before |= 1 << i
        first.setdefault(thread, not before & bits)
        for asleep, mark in place.sleep.items():
            is_first = first.get(asleep)
            if is_first or (is_first is None and not conflicts[mark] & touched and mark not in self._apart):
                return
        sequence = [Entry(steps[i].thread, steps[i].print_, order.before[i], 1 << i) for i in rest]
        sequence.append(Entry(thread, print_, before, 0))
        insert(place.branches, sequence, conflicts)

    def _backtrack(self) -> None:
        """Go back to the last place from which something is still to be tried."""
        steps = self.steps
        while steps:
            step = steps[-1]
            step.sleep[step.thread] = self._mark(step)
            while step.branches and step.branches[0].thread in step.sleep:
                del step.branches[0]
            if step.branches:
                del self._picks[step.pick :], self._gates[step.pick :]
                self._first = len(steps) - 1
                return
            steps.pop()

    def _mark(self, step: Step) -> int:
        """What is kept of a step that has been explored: its footprint, and whether it ended the world."""
        if not step.fatal:
            return step.print_
        mark = self._prints.number((*self._prints.touches(step.print_), _FATAL))
        self._apart.add(mark)
        return mark


def _value(access: Access | None) -> Any:
    """The word that an access is about, if it is about one."""
    if not isinstance(access, CellAccess) or isinstance(access.target, FreedCell):
        return None
    return access.target.v


def _wait_of(access: Access) -> Wait | None:
    """What a step waits for, if it is for words to change."""
    if isinstance(access, WaitUntil):
        return Wait(access.target.name, access.condition)
    return None if type(access).held_up is Access.held_up else Wait("", lambda _value: True)


def _waiting(thread: Thread) -> bool:
    """Whether the thread's next step has to wait for a word."""
    access = thread.pending
    return access is not None and access.held_up()


def _all_waiting(candidates: Sequence[Thread]) -> list[Thread]:
    """The candidates, if they all have to wait."""
    return list(candidates) if all(_waiting(thread) for thread in candidates) else []


def dpor(argument: str) -> Dpor | None:
    """Make the strategy; None if there is none of that argument."""
    return Dpor(values=bool(argument)) if argument in {"", "values"} else None
