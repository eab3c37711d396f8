"""An exploration that is no pair of the table: a world of its own, searched to the end under the rules of `tdx.module.watch`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sim import Kernel, explore
from tdx.module import TdxModule
from tdx.module.watch import watch

Outcome = Callable[[], str | None]
"""What an execution came to; None if the search broke it off, because another one goes on like it."""
Fill = Callable[[Kernel], tuple[TdxModule, Outcome]]


class Explored(NamedTuple):
    """What all interleavings of one world came to."""

    name: str
    executions: int
    exhausted: bool
    outcomes: tuple[str, ...]
    """What was returned, in every way that occurs."""
    expected: tuple[str, ...]
    """Kinds of findings that the world is about, and that were seen."""
    alarms: tuple[str, ...]
    """Anything else that was found, and kinds that were expected and never seen."""


@dataclass(frozen=True, slots=True)
class Exploration:
    """One world. `fill` puts threads into a kernel; `expected` are kinds of findings that some order must bring."""

    name: str
    fill: Fill
    expected: frozenset[str] = frozenset()

    def run(self) -> Explored:
        """Search it with `dpor`, to the end."""
        current: list[Outcome] = []
        judged: set[object] = set()
        outcomes: set[str] = set()

        def world(kernel: Kernel) -> None:
            module, outcome = self.fill(kernel)
            watch(kernel, module, judged)
            current[:] = [outcome]

        def ended(kernel: Kernel) -> None:
            outcome = None if kernel.findings else current[0]()
            if outcome is not None:
                outcomes.add(outcome)

        report = explore(world, strategy="dpor", races=False, after=ended)
        kinds = {finding.kind for finding in report.findings}
        alarms = [
            f"{finding.kind}: {finding.title} {finding.details}"
            for finding in report.findings
            if finding.kind not in self.expected
        ]
        alarms += [f"{kind}: expected, and not found" for kind in self.expected - kinds]
        return Explored(
            self.name,
            report.executions,
            report.exhausted and not report.cut,
            tuple(sorted(outcomes)),
            tuple(sorted(kinds & self.expected)),
            tuple(sorted(alarms)),
        )
