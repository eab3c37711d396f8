"""Shares: how a hunt is cut, and how one share is done. The same for one worker and for twenty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import ceil
from time import monotonic
from typing import Any, NamedTuple

from scenarios.campaign.case import Opened
from scenarios.campaign.coverage import Tracer
from scenarios.errors import ScenarioError
from sim import Finding, Kernel, Report, explore
from sim.estimates import PctBound
from sim.states import Misfit
from sim.strategies.dpor import Root
from sim.strategies.dpor_split import roots
from sim.streams import derive

EXECUTIONS = 64
"""Executions of a share: enough that a message costs nothing, few enough that a killed worker loses little."""

FOR_EVER = 10**9
"""Shares of a hunt that only time ends."""

WHOLE = ("fifo", "replay", "dfs", "dpor", "states", "exhaustive")
"""Strategies that walk one tree: they have one share, but for the parts of `dpor`."""

PARTS = 16
"""About how many parts the tree of a `dpor` hunt is cut into: enough for some workers, and finding them takes half a second."""


def is_whole(strategy: str) -> bool:
    """Whether it walks one tree, to its end."""
    return strategy.partition(":")[0] in WHOLE


class Progress(NamedTuple):
    """How a hunt goes. `classes`, `ids` and `pairs` are those of the shares that are done."""

    executions: int = 0
    steps_max: int = 0
    classes: int = 0
    ids: int = 0
    pairs: int = 0
    findings: int = 0


Tick = Callable[[Progress], None]


class Limit:
    """When a search has to end: after some seconds (None: never), or because somebody says so."""

    def __init__(self, seconds: float | None = None) -> None:
        self.expired = False
        """Somebody said so."""
        self._at_s = None if seconds is None else monotonic() + seconds

    def expire(self) -> None:
        """End it: the execution that is under way is the last one."""
        self.expired = True

    @property
    def over(self) -> bool:
        """Whether it has to end now."""
        return self.expired or (self._at_s is not None and monotonic() >= self._at_s)

    @property
    def left_s(self) -> float | None:
        """Seconds left; None is for ever."""
        if self.expired:
            return 0.0
        return None if self._at_s is None else max(0.0, self._at_s - monotonic())


@dataclass(frozen=True, slots=True)
class Share:
    """Some executions of a hunt, from a seed of their own; None is as many as there are. `root`: those of one part of a tree."""

    index: int
    seed: int
    executions: int | None
    root: Root | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """A hunt cut into shares of a fixed size: how many workers there are does not show in it.

    The seed of a share depends on the hunt's seed and its index alone; share 0 has the hunt's own. `executions` None is until
    the tree of an exhaustive strategy ends, or for ever.

    With `roots` a share is a part of the tree. The parts are searched in order, as far as `executions` reach for all of them:
    each may use what those before it have left.
    """

    strategy: str
    seed: int
    executions: int | None
    roots: tuple[Root, ...] = ()

    @property
    def count(self) -> int:
        """How many shares there are."""
        if self.roots:
            return len(self.roots)
        if is_whole(self.strategy):
            return 1
        return FOR_EVER if self.executions is None else ceil(self.executions / EXECUTIONS)

    def share(self, index: int, used: int = 0) -> Share:
        """The share of that index, from 0; those before it have `used` so many executions, at least, of a tree's."""
        if self.roots:
            left = None if self.executions is None else self.executions - used
            return Share(index, self.seed, left, self.roots[index])
        if self.count == 1:
            return Share(0, self.seed, self.executions)
        seed = derive(self.seed, f"share.{index}") & 0xFFFF_FFFF if index else self.seed
        left = EXECUTIONS if self.executions is None else self.executions - index * EXECUTIONS
        return Share(index, seed, min(EXECUTIONS, left))


@dataclass(slots=True)
class ShareResult:
    """What a share came to: `sim`'s report, and what only this layer looks at.

    `built` is the part of `counters` that building the worlds took. `first` tells in which of its executions, from 1, each
    finding came up first; `ids` are the steps of the reference that its `traced` executions took.
    """

    index: int
    report: Report
    wanted: list[str] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    built: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    traced: int = 0

    def as_json(self) -> dict[str, Any]:
        """Plain data, to cross a pipe."""
        report = asdict(self.report)
        report["met"] = sorted(self.report.met)
        report["orders"] = list(self.report.orders.items())
        return asdict(self) | {"report": report}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> ShareResult:
        """What `as_json` told."""
        report = Report(**told["report"])
        report.met = set(report.met)
        report.orders = dict(told["report"]["orders"])
        report.bounds = tuple(PctBound(*bound) for bound in report.bounds)
        report.findings = [finding_from(finding) for finding in told["report"]["findings"]]
        return cls(**told | {"report": report})


def finding_from(told: dict[str, Any]) -> Finding:
    """A finding from its JSON; what is not a finding's own is left aside.

    Raises: KeyError, TypeError, AssertionError: it is none.
    """
    names = Finding.__slots__
    lists = {name: tuple(told[name]) for name in ("threads", "where", "steps")}
    return Finding(**{name: told[name] for name in names} | lists)


def run_share(
    opened: Opened, share: Share, *, limit: Limit, stop_at_first: bool, tick: Tick | None = None
) -> ShareResult:
    """Do a share, here. `limit` may end it early; its result then says how far it came.

    Raises: ScenarioError: the strategy cannot search this world.
    """
    case = opened.case
    watch = _Watch(opened, tick)
    try:
        report = explore(
            watch.world,
            strategy=case.strategy,
            executions=share.executions,
            seed=share.seed,
            stop_at_first=stop_at_first,
            window_ns=opened.window_ns,
            memory_model=case.memory_model,
            max_steps=case.max_steps,
            pairs_every=EXECUTIONS,
            root=share.root,
            stop=lambda: limit.over,
            after=watch.after,
        )
    except Misfit as exc:
        raise ScenarioError(
            f"cannot search this world: {exc}",
            f"--strategy {case.strategy}",
            remedy="use dpor, or exhaustive, which chooses",
        ) from exc
    return ShareResult(
        index=share.index,
        report=report,
        wanted=watch.wanted,
        counters=dict(sorted(watch.counters.items())),
        built=dict(sorted(watch.built.items())),
        first=watch.first,
        ids=sorted(watch.tracer.ids()),
        traced=watch.traced,
    )


class _Watch:
    """Looks at each execution once it has ended, and traces the first one."""

    def __init__(self, opened: Opened, tick: Tick | None) -> None:
        self._opened = opened
        self._tick = tick
        self._executions = 0
        self._steps_max = 0
        self.wanted: list[str] = []
        self.counters: dict[str, int] = {}
        self.built: dict[str, int] = {}
        self._building: dict[str, int] = {}
        self.first: dict[str, int] = {}
        self.tracer = Tracer()
        self.traced = 0

    def world(self, kernel: Kernel) -> None:
        """The case's world; a tracer's, the first time."""
        if not self.traced:
            self.traced = 1
            kernel.check(self.tracer)
        self._opened.world(kernel)
        self._building = dict(kernel.counters)

    def after(self, kernel: Kernel) -> None:
        """Take stock of an execution."""
        self._executions += 1
        self._steps_max = max(self._steps_max, kernel.steps)
        self.wanted = kernel.wanted
        for total, counts in ((self.counters, kernel.counters), (self.built, self._building)):
            for name, n in counts.items():
                total[name] = total.get(name, 0) + n
        for finding in kernel.findings:
            self.first.setdefault(finding.fingerprint, self._executions)
        if self._tick is not None:
            self._tick(Progress(self._executions, self._steps_max, findings=len(self.first)))


def cut_of(opened: Opened, executions: int | None) -> Cut:
    """How the hunt of a case is cut. The executions that finding the parts of a tree takes, up to their roots, are not counted."""
    case = opened.case
    name, _, argument = case.strategy.partition(":")
    parts: tuple[Root, ...] = ()
    if name == "dpor":
        parts = tuple(roots(opened.world, PARTS, seed=case.seed, values=argument == "values"))
    return Cut(case.strategy, case.seed, executions, parts)


def settled(
    opened: Opened, cut: Cut, results: list[ShareResult], *, limit: Limit, stop_at_first: bool
) -> list[ShareResult]:
    """What counts of parts that were done at the same time, each as if those before it had left it all executions.

    At most one has used more than was left: it is done again with that, and those behind it do not count.
    """
    if not cut.roots or cut.executions is None:
        return results
    used = 0
    kept: list[ShareResult] = []
    for result in results:
        if used == cut.executions:
            break
        if used + result.report.executions > cut.executions:
            share = cut.share(result.index, used)
            kept.append(run_share(opened, share, limit=limit, stop_at_first=stop_at_first))
            break
        kept.append(result)
        used += result.report.executions
    return kept


class Tally:
    """The progress of a hunt, over the shares that are done and the one that is under way."""

    def __init__(self, tick: Tick | None) -> None:
        self._tick = tick
        self._done = Progress()
        self._classes: set[int] = set()
        self._ids: set[str] = set()
        self._pairs: set[str] = set()
        self._found: set[str] = set()

    def under_way(self, now: Progress) -> None:
        """Some of a share is done."""
        done = self._done
        if self._tick is not None:
            self._tick(
                done._replace(
                    executions=done.executions + now.executions,
                    steps_max=max(done.steps_max, now.steps_max),
                    findings=max(done.findings, now.findings),
                )
            )

    def add(self, result: ShareResult) -> None:
        """A share is done."""
        report = result.report
        self._classes |= report.orders.keys()
        self._ids |= set(result.ids)
        self._pairs |= report.pairs.keys()
        self._found |= {finding.fingerprint for finding in report.findings}
        self._done = Progress(
            self._done.executions + report.executions,
            max(self._done.steps_max, report.steps_max),
            len(self._classes),
            len(self._ids),
            len(self._pairs),
            len(self._found),
        )
        if self._tick is not None:
            self._tick(self._done)


def run_here(
    opened: Opened, cut: Cut, *, limit: Limit, stop_at_first: bool, tick: Tick | None
) -> list[ShareResult]:
    """Do all shares in this process, one after the other."""
    done: list[ShareResult] = []
    tally = Tally(tick)
    under_way = tally.under_way if tick is not None else None
    used = 0
    for index in range(cut.count):
        if limit.over or (cut.roots and used == cut.executions):
            break
        result = run_share(
            opened, cut.share(index, used), limit=limit, stop_at_first=stop_at_first, tick=under_way
        )
        done.append(result)
        used += result.report.executions
        tally.add(result)
        if stop_at_first and result.report.findings:
            break
    return done
