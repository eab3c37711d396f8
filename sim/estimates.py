"""What a number of executions says about the ones that were not made.

All of these take executions as independent draws from one distribution. That is so for `random` and `pos`, nearly so for the
strategies that learn (their first few executions differ), and not at all for exhaustive ones, which must not be asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil, exp, log, log1p, sqrt
from typing import NamedTuple

CONFIDENCE = 0.95
Z = 1.959963984540054
"""The standard normal quantile that leaves 2.5 % on either side."""


def wilson(hits: int, executions: int) -> tuple[float, float]:
    """The 95 % interval of a rate, from hits among executions (Wilson 1927); (0, 1) if there were none."""
    if executions == 0:
        return 0.0, 1.0
    rate = hits / executions
    centre = rate + Z * Z / (2 * executions)
    spread = Z * sqrt(rate * (1 - rate) / executions + Z * Z / (4 * executions * executions))
    scale = 1 + Z * Z / executions
    # At the ends the interval touches 0 or 1 exactly; floats come close.
    low = (centre - spread) / scale if hits else 0.0
    high = (centre + spread) / scale if hits < executions else 1.0
    return low, high


def rule_of_three(executions: int) -> float:
    """With 95 % confidence, an upper bound of the rate of what never showed: 3/N."""
    return min(1.0, 3 / executions) if executions else 1.0


def unseen_mass(counts: Iterable[int]) -> float:
    """The chance that the next execution is of a class not seen yet: classes seen once, per execution (Good 1953).

    Args:
        counts: how many executions each class had.
    """
    once = executions = 0
    for count in counts:
        executions += count
        once += count == 1
    return once / executions if executions else 1.0


def pct_floor(threads: int, steps: int, depth: int) -> float:
    """The probability with which one execution of `pct:depth` hits a bug of that depth, at least: 1/(n k^(d-1))."""
    ways: int = max(threads, 1) * max(steps, 1) ** (depth - 1)
    return 1 / ways


class PctBound(NamedTuple):
    """What executions of `pct:depth` guarantee together, on worlds of at most `threads` threads and `steps` steps.

    A given bug of that depth was missed with a probability of at most exp(log_missed). Bounds of independent searches add
    up: that is `together`.
    """

    depth: int
    threads: int
    steps: int
    log_missed: float

    @property
    def missed_below(self) -> float:
        """The probability."""
        return exp(self.log_missed)

    def together(self, other: PctBound) -> PctBound:
        """The bound of both searches."""
        return PctBound(
            self.depth,
            max(self.threads, other.threads),
            max(self.steps, other.steps),
            self.log_missed + other.log_missed,
        )

    def __str__(self) -> str:
        if not self.log_missed:
            return (
                f"pct:{self.depth}: no bound yet, no execution had change points drawn over its whole length"
            )
        return (
            f"pct:{self.depth}: a bug of depth {self.depth} (n = {self.threads} threads, k = {self.steps} steps) was missed "
            f"with probability at most {self.missed_below:.3g}; each execution hits it with at least "
            f"{pct_floor(self.threads, self.steps, self.depth):.2g}"
        )


def pct_executions(threads: int, steps: int, depth: int, confidence: float = CONFIDENCE) -> int:
    """How many executions of `pct:depth` find a bug of that depth with this confidence."""
    floor = pct_floor(threads, steps, depth)
    return 1 if floor >= 1 else ceil(log(1 - confidence) / log1p(-floor))


__all__ = ["CONFIDENCE", "PctBound", "pct_executions", "pct_floor", "rule_of_three", "unseen_mass", "wilson"]
