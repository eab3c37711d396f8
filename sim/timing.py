"""Timing runs with chosen latencies: every draw at its mean, but for those told otherwise.

A *draw* is named by its thread, its cost and its number among the draws of that cost by that thread, so that it is the
same draw in every execution in which the thread takes the same way. `Change` is what `sim.witness` looks for: a draw at
another value, or a thread that starts at another time (no latency of the table, so it has no probability).

`least_delays` finds changes that put given steps into a given order: the times of the steps are the variables of a system
of difference constraints, solved as a longest path (Bellman, Ford), so each step happens as early as it can.

Limits. A latency drawn through a sampler that the world took while it was built is not seen, and stays as the world has
it. A latency that is spent in parts counts as spent at once, where it is drawn. Lines of locks are taken to be served in
the order of the execution that was traced. Whoever uses a solution runs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sim.costs import CostModel
from sim.kernel import Kernel, ModelBug
from sim.trace import Setting, Step, Trace, by_time, happened_before, trace

if TYPE_CHECKING:
    from sim.costs import Distribution, Sampler
    from sim.kernel import Pick

START = ""
"""The cost name that stands for the start of a thread."""


class DrawId(NamedTuple):
    """Which draw: the nth (from 0) of the cost `name` by `thread`; the name START is the thread's start."""

    thread: str
    name: str
    nth: int


Changes = Mapping[DrawId, int]
"""Latencies in ns by draw; for a start, how much later than in the world."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A draw of a traced execution: what it gave, what it could have given, and the step after which it was made."""

    id: DrawId
    ns: int
    distribution: Distribution | None
    step: int

    @property
    def bounds_ns(self) -> tuple[int, int]:
        """What it can be; a start has no upper bound."""
        return self.distribution.bounds_ns() if self.distribution is not None else (0, 1 << 40)


class ChosenCosts(CostModel):
    """A cost model that gives the means and the chosen values, and writes down who drew what."""

    def __init__(self, kernel: Kernel, table: CostModel, chosen: Changes) -> None:
        super().__init__(table.streams, table._distributions, jitter=False)
        self.draws: list[Draw] = []
        self._kernel = kernel
        self._chosen = chosen
        self._drawn: Counter[tuple[str, str]] = Counter()
        self._means: dict[str, int] = {}

    def draw(self, name: str) -> int:
        thread = self._kernel.current.name
        which = DrawId(thread, name, self._drawn[thread, name])
        self._drawn[thread, name] += 1
        distribution = self.distribution(name)
        mean_ns = self._means.get(name)
        if mean_ns is None:
            mean_ns = self._means[name] = self.mean_ns(name)
        ns = self._chosen.get(which, mean_ns)
        self.draws.append(Draw(which, ns, distribution, self._kernel.steps))
        return ns

    def sampler(self, name: str, thread: str = "") -> Sampler:
        self.distribution(name)
        return lambda: self.draw(name)


def run_timed(setting: Setting, changes: Changes) -> Kernel:
    """A timing run with these changes."""
    return setting.execute(None, arm=lambda kernel: _choose(kernel, changes))


def trace_timed(
    setting: Setting, changes: Changes, choose: Pick = by_time, *, stop_at_finding: bool = True
) -> tuple[Trace, list[Draw]]:
    """The same with every step and draw; under another `choose`, what a schedule does at these latencies."""
    models: list[ChosenCosts] = []

    def arm(kernel: Kernel) -> None:
        _choose(kernel, changes)
        if isinstance(kernel.costs, ChosenCosts):
            models.append(kernel.costs)

    traced = trace(setting, choose, stop_at_finding=stop_at_finding, arm=arm)
    first = [step for step in traced.steps if step.parent < 0 and step.op == 0]
    ids = [DrawId(step.thread, START, 0) for step in first]
    starts = [Draw(which, changes.get(which, 0), None, -1) for which in ids]
    return traced, starts + [draw for model in models for draw in model.draws]


def _choose(kernel: Kernel, changes: Changes) -> None:
    if kernel.costs is not None:
        kernel.costs = ChosenCosts(kernel, kernel.costs, changes)
    for thread in kernel.threads:
        later_ns = changes.get(DrawId(thread.name, START, 0), 0)
        if later_ns:
            thread.due_ns += later_ns
            kernel._file(thread)


@dataclass(frozen=True, slots=True)
class Delays:
    """The latencies that give an order, or why there are none: `cycle` is a ring of steps that cannot all be in time.

    `broken` are the pairs (i, j) of that ring that are ordered only because they conflict; leave one out and ask again.
    """

    changes: dict[DrawId, int]
    cycle: tuple[Step, ...] = ()
    broken: tuple[tuple[int, int], ...] = ()


def least_delays(
    steps: Sequence[Step],
    draws: Sequence[Draw],
    *,
    starts: bool,
    without: Collection[tuple[int, int]] = (),
) -> Delays:
    """Longer latencies with which these steps happen in this order in time, as far as conflicting ones are concerned.

    Args:
        steps, draws: of one traced execution with every latency at its mean.
        starts: whether threads may start later, too.
        without: pairs (i, j) of conflicting steps whose order is not asked for.
    """
    room = _room(steps, draws, starts=starts)
    _, racing = happened_before(steps, gates=True)
    source = len(steps)
    edges: list[
        tuple[int, int, int]
    ] = []  # (a, b, ns): b is at least ns after a; the source is the start of time
    for step in steps:
        k, parent = step.number, step.parent if step.parent >= 0 else source
        slack_ns = sum(draw.bounds_ns[1] - draw.ns for draw in room.get(k, ()))
        edges += [(parent, k, step.delay_ns), (k, parent, -step.delay_ns - slack_ns)]
        edges += [(i, k, 1) for i in racing[k] if (i, k) not in without]
    times, ring = _longest_paths(source, edges)
    if ring:
        pairs = sorted({(a, b) for a, b in ring if b < source and a in racing[b]})
        return Delays({}, tuple(steps[k] for k in sorted({a for a, _ in ring} - {source})), tuple(pairs))
    changes = {}
    for step in steps:
        extra_ns = times[step.number] - times[step.parent if step.parent >= 0 else source] - step.delay_ns
        for draw in room.get(step.number, ()):
            taken_ns = min(extra_ns, draw.bounds_ns[1] - draw.ns)
            if taken_ns:
                changes[draw.id] = draw.ns + taken_ns
            extra_ns -= taken_ns
    return Delays(changes)


def _room(steps: Sequence[Step], draws: Sequence[Draw], *, starts: bool) -> dict[int, list[Draw]]:
    """By step, the draws that were made just before it: what was drawn after a step delays its thread's next one."""
    followers: dict[int, int] = {}
    last: dict[str, int] = {}
    first: dict[str, int] = {}
    for step in steps:
        first.setdefault(step.thread, step.number)
        if step.thread in last:
            followers[last[step.thread]] = step.number
        last[step.thread] = step.number
    room: dict[int, list[Draw]] = {}
    for draw in draws:
        if draw.distribution is not None:
            if draw.step in followers:
                room.setdefault(followers[draw.step], []).append(draw)
        elif starts:
            room.setdefault(first[draw.id.thread], []).append(draw)
    return room


def _longest_paths(
    source: int, edges: Sequence[tuple[int, int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The earliest times that keep every edge, the source at 0; or the edges (a, b) of a ring that never comes to rest."""
    times = [0] * (source + 1)
    came_from = [-1] * (source + 1)
    for round_number in range(1, source + 3):
        moved = -1
        for a, b, ns in edges:
            due_ns = times[a] + ns
            if times[b] < due_ns:
                times[b] = due_ns
                came_from[b] = moved = a
        if moved < 0:
            return times, []
        if round_number % RING_CHECK == 0 or round_number > source:
            ring = _ring(came_from, moved)
            if ring:
                return times, ring
    raise ModelBug("a longest path longer than its nodes has no ring")


RING_CHECK = 8
"""After so many rounds each, look whether the paths have closed: most rings are short."""


def _ring(came_from: Sequence[int], node: int) -> list[tuple[int, int]]:
    """The edges of the ring that the path to `node` runs into, if it does."""
    seen: dict[int, int] = {}
    path: list[int] = []
    while node >= 0 and node not in seen:
        seen[node] = len(path)
        path.append(node)
        node = came_from[node]
    if node < 0:
        return []
    nodes = path[seen[node] :]
    return [(came_from[b], b) for b in nodes]
