"""Latencies: distributions as tables of integers, and a model that draws from them by name.

A draw never calls libm. A distribution is 1024 equally likely integer nanoseconds, made once, when it is first
drawn from, out of: quantiles of the stored normal table, `Decimal.exp()` and `.ln()` (correctly rounded by
definition, hence the same everywhere), integer arithmetic, and a rounding that leaves the mean where it was
asked for. So a run has the same bytes on every platform. The tables end at the quantile 2047/2048 (3.3 standard
deviations): a rarer and longer latency is a `Mixture`'s business.

Every name draws from a stream of its own; so does every (name, thread), for whoever wants latencies that do not
depend on the order in which threads draw. What things cost is not known here: see `scenarios.costs`.

    model = CostModel(Streams(7), {"walk": lognormal(mean=10, floor=8, shape="0.5")})
    model.draw("walk")                  # integer ns
    walk_ns = model.sampler("walk")     # for hot paths: walk_ns() saves the look-up
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import TypeAlias

from sim._normal_table import MIDPOINTS, SCALE_BITS
from sim.streams import MASK, MULTIPLIER, Stream, Streams

Number: TypeAlias = int | float | str | Fraction
"""A float stands for its shortest decimal form: 13.7 is exactly 137/10."""
Sampler: TypeAlias = Callable[[], int]
Table: TypeAlias = tuple[int, ...]

TABLE_BITS = 10
TABLE_SIZE = 1 << TABLE_BITS
_INDEX_SHIFT = 128 - TABLE_BITS
_POINT = 40
"""Fixed-point numbers here have 40 binary places: a picosecond is a billion units."""
_CONTEXT = Context(prec=28, rounding=ROUND_HALF_EVEN)


class UnknownCost(KeyError):
    """A cost that nobody defined; the text names the nearest that exist."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        super().__init__(name, known)
        self.name = name
        self.nearest = tuple(get_close_matches(name, known, n=3, cutoff=0.5))

    def __str__(self) -> str:
        if not self.nearest:
            return f"no cost is called {self.name!r}"
        return f"no cost is called {self.name!r}; the nearest are {', '.join(self.nearest)}"


class Distribution:
    """How long one thing takes. Immutable and hashable; build one with the functions below."""

    __slots__ = ()

    def expected(self) -> Fraction:
        """The exact mean in ns; rounded, it is what the model answers when jitter is off."""
        raise NotImplementedError

    def sampler(self, stream: Stream) -> Sampler:
        """A function that draws one latency: integer ns >= 0, at most two steps of `stream`."""
        raise NotImplementedError

    def scaled(self, factor: Number) -> "Distribution":
        """The same shape with every latency `factor` times as long."""
        raise NotImplementedError

    def chance_at_least(self, value_ns: int) -> Fraction:
        """The exact probability that a draw is `value_ns` or longer."""
        raise NotImplementedError

    def bounds_ns(self) -> tuple[int, int]:
        """The shortest and the longest latency that a draw can be."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Constant(Distribution):
    """Always the same latency."""

    value: Fraction

    def expected(self) -> Fraction:
        return self.value

    def sampler(self, stream: Stream) -> Sampler:
        value_ns = round(self.value)
        return lambda: value_ns

    def scaled(self, factor: Number) -> "Constant":
        return Constant(self.value * exact(factor))

    def chance_at_least(self, value_ns: int) -> Fraction:
        return Fraction(round(self.value) >= value_ns)

    def bounds_ns(self) -> tuple[int, int]:
        return round(self.value), round(self.value)


class Tabled(Distribution):
    """A distribution that is one table of TABLE_SIZE equally likely latencies, in increasing order."""

    __slots__ = ()

    def points(self) -> Sequence[int]:
        """The table's entries in fixed point, increasing, with the mean `expected()`."""
        raise NotImplementedError

    def table(self) -> Table:
        """The latencies in integer ns; their mean is `expected()` to within 1/2048 ns. Cached by parameters."""
        return _table(self)

    def sampler(self, stream: Stream) -> Sampler:
        table = _table(self)

        def draw() -> int:
            state = stream.state = stream.state * MULTIPLIER & MASK
            return table[state >> _INDEX_SHIFT]

        return draw

    def chance_at_least(self, value_ns: int) -> Fraction:
        return Fraction(sum(latency >= value_ns for latency in self.table()), TABLE_SIZE)

    def bounds_ns(self) -> tuple[int, int]:
        table = self.table()
        return table[0], table[-1]


@dataclass(frozen=True, slots=True)
class Lognormal(Tabled):
    """`floor + exp(mu + shape Z)`, mu such that the mean is `mean`: never below `floor`, a tail to the right."""

    mean: Fraction
    floor: Fraction
    shape: Fraction

    def expected(self) -> Fraction:
        return self.mean

    def points(self) -> Sequence[int]:
        floor = _fixed(self.floor)
        excess = _fixed(self.mean) - floor
        return [floor + (excess * factor >> _POINT) for factor in _lognormal_factors(self.shape)]

    def scaled(self, factor: Number) -> "Lognormal":
        k = exact(factor)
        return Lognormal(self.mean * k, self.floor * k, self.shape)


@dataclass(frozen=True, slots=True)
class Normal(Tabled):
    """Normal with standard deviation `deviation`, cut at `clip` deviations on both sides."""

    mean: Fraction
    deviation: Fraction
    clip: Fraction

    def expected(self) -> Fraction:
        return self.mean

    def points(self) -> Sequence[int]:
        mean, deviation = _fixed(self.mean), _fixed(self.deviation)
        most = int(self.clip * (1 << SCALE_BITS))
        return [mean + (max(-most, min(most, z)) * deviation >> SCALE_BITS) for z in MIDPOINTS]

    def scaled(self, factor: Number) -> "Normal":
        k = exact(factor)
        return Normal(self.mean * k, self.deviation * k, self.clip)


@dataclass(frozen=True, slots=True)
class BoundedPareto(Tabled):
    """A power-law tail of exponent `alpha` between `low` and `high`; an entry is the mean of its 1/1024 share."""

    low: Fraction
    high: Fraction
    alpha: Fraction

    def expected(self) -> Fraction:
        return self._weight() * (self._height(Fraction(1)) - self._height(Fraction(0)))

    def points(self) -> Sequence[int]:
        weight = self._weight() * TABLE_SIZE
        heights = [self._height(Fraction(i, TABLE_SIZE)) for i in range(TABLE_SIZE + 1)]
        return [_fixed(weight * (after - before)) for before, after in pairwise(heights)]

    def scaled(self, factor: Number) -> "BoundedPareto":
        k = exact(factor)
        return BoundedPareto(self.low * k, self.high * k, self.alpha)

    def _cut(self) -> Fraction:
        """The share of the unbounded law that lies below `high`."""
        return 1 - _power(self.low / self.high, self.alpha)

    def _height(self, quantile: Fraction) -> Fraction:
        """`(x / low) ** (1 - alpha)`, negated, where x is the value at `quantile`: it grows with x's mass."""
        return -_power(1 - quantile * self._cut(), 1 - 1 / self.alpha)

    def _weight(self) -> Fraction:
        """What turns a difference of heights into an integral of x times the density."""
        return self.alpha / (self.alpha - 1) * self.low / self._cut()


@dataclass(frozen=True, slots=True)
class Mixture(Distribution):
    """`tail` with the given probability, else `body`."""

    body: Distribution
    tail: Distribution
    probability: Fraction

    def expected(self) -> Fraction:
        return self.body.expected() * (1 - self.probability) + self.tail.expected() * self.probability

    def sampler(self, stream: Stream) -> Sampler:
        body, tail = self.body.sampler(stream), self.tail.sampler(stream)
        threshold = round(self.probability * (1 << 64))

        def draw() -> int:
            state = stream.state = stream.state * MULTIPLIER & MASK
            return tail() if state >> 64 < threshold else body()

        return draw

    def scaled(self, factor: Number) -> "Mixture":
        return Mixture(self.body.scaled(factor), self.tail.scaled(factor), self.probability)

    def chance_at_least(self, value_ns: int) -> Fraction:
        in_body, in_tail = self.body.chance_at_least(value_ns), self.tail.chance_at_least(value_ns)
        return in_body * (1 - self.probability) + in_tail * self.probability

    def bounds_ns(self) -> tuple[int, int]:
        parts = [self.body] * (self.probability < 1) + [self.tail] * (self.probability > 0)
        return min(part.bounds_ns()[0] for part in parts), max(part.bounds_ns()[1] for part in parts)


def constant(value: Number) -> Constant:
    """Always `value` ns, rounded to an integer. Raises: ValueError: it is negative."""
    value = exact(value)
    _require(value >= 0, "a latency of at least 0", value)
    return Constant(value)


def lognormal(mean: Number, *, shape: Number, floor: Number = 0) -> Lognormal:
    """A lognormal above `floor`: X = floor + exp(mu + shape Z) with mean `mean`.

    Raises: ValueError: unless 0 <= floor <= mean and 0 <= shape <= 3.
    """
    mean, floor, shape = exact(mean), exact(floor), exact(shape)
    _require(0 <= floor <= mean, f"a floor between 0 and the mean {float(mean)}", floor)
    _require(0 <= shape <= 3, "a shape between 0 and 3", shape)
    return Lognormal(mean, floor, shape)


def normal(mean: Number, *, cv: Number, clip: Number = 4) -> Normal:
    """A normal of coefficient of variation `cv`, cut at `clip` standard deviations.

    Raises: ValueError: unless the cut keeps latencies positive.
    """
    mean, cv, clip = exact(mean), exact(cv), exact(clip)
    _require(mean >= 0, "a mean of at least 0", mean)
    _require(cv >= 0 and clip >= 0 and cv * clip <= 1, "cv * clip between 0 and 1", cv * clip)
    return Normal(mean, mean * cv, clip)


def bounded_pareto(low: Number, high: Number, *, alpha: Number) -> BoundedPareto:
    """A power-law tail between `low` and `high` ns.

    Raises: ValueError: unless 0 < low < high, alpha > 0 and alpha is not 1.
    """
    low, high, alpha = exact(low), exact(high), exact(alpha)
    _require(0 < low < high, f"a low end between 0 and {float(high)}", low)
    _require(alpha > 0 and alpha != 1, "a positive alpha other than 1", alpha)
    return BoundedPareto(low, high, alpha)


def mixture(body: Distribution, tail: Distribution, *, probability: Number) -> Mixture:
    """Draw from `tail` with `probability`, else from `body`. Raises: ValueError: it is not in [0, 1]."""
    probability = exact(probability)
    _require(0 <= probability <= 1, "a probability", probability)
    return Mixture(body, tail, probability)


class CostModel:
    """What each named thing costs in one run: `draw(name)` gives integer ns.

    Args:
        streams: where randomness comes from; the stream of `name` is `cost.<name>`.
        costs: the distributions to begin with; `define` adds and replaces.
        jitter: False makes every draw the rounded mean and leaves the streams alone.
    """

    def __init__(
        self, streams: Streams, costs: Mapping[str, Distribution] | None = None, *, jitter: bool = True
    ) -> None:
        self.streams = streams
        self.jitter = jitter
        self._distributions: dict[str, Distribution] = dict(costs or {})
        self._samplers: dict[str, Sampler] = {}

    def define(self, name: str, distribution: Distribution) -> None:
        """Give `name` a distribution, in place of the one it had. Samplers handed out before keep the old one."""
        self._distributions[name] = distribution
        self._samplers = {key: s for key, s in self._samplers.items() if key.partition("@")[0] != name}

    def distribution(self, name: str) -> Distribution:
        """What `name` draws from. Raises: UnknownCost."""
        try:
            return self._distributions[name]
        except KeyError:
            raise UnknownCost(name, self.names()) from None

    def names(self) -> tuple[str, ...]:
        """Every defined name, sorted."""
        return tuple(sorted(self._distributions))

    def draw(self, name: str) -> int:
        """One latency of `name`, in ns. Raises: UnknownCost."""
        sampler = self._samplers.get(name)
        if sampler is None:
            sampler = self.sampler(name)
        return sampler()

    def sampler(self, name: str, thread: str = "") -> Sampler:
        """A function that draws from `name`; with `thread`, from that thread's own stream of it.

        Raises: UnknownCost.
        """
        key = f"{name}@{thread}" if thread else name
        sampler = self._samplers.get(key)
        if sampler is None:
            distribution = self.distribution(name)
            if not self.jitter:
                distribution = Constant(distribution.expected())
            sampler = self._samplers[key] = distribution.sampler(self.streams.stream(f"cost.{key}"))
        return sampler

    def mean_ns(self, name: str) -> int:
        """The rounded mean of `name`. Raises: UnknownCost."""
        return round(self.distribution(name).expected())


def exact(number: Number) -> Fraction:
    """The fraction that a number as written stands for. Raises: ValueError: it is no finite number."""
    try:
        return Fraction(str(number) if isinstance(number, float) else number)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"expected a finite number, got {number!r}") from None


def _require(holds: bool, what: str, got: Fraction) -> None:
    if not holds:
        raise ValueError(f"expected {what}, got {float(got)}")


@lru_cache(maxsize=4096)
def _table(distribution: Tabled) -> Table:
    """Round `points()` down, then the largest remainders up, until the sum is the mean's. Order is kept."""
    points = distribution.points()
    mask = (1 << _POINT) - 1
    table = [point >> _POINT for point in points]
    missing = round(distribution.expected() * TABLE_SIZE) - sum(table)
    assert 0 <= missing <= TABLE_SIZE, (distribution, missing)
    by_remainder = sorted(range(TABLE_SIZE), key=lambda i: (points[i] & mask, i), reverse=True)
    for i in by_remainder[:missing]:
        table[i] += 1
    return tuple(table)


@lru_cache(maxsize=64)
def _lognormal_factors(shape: Fraction) -> Table:
    """`exp(shape z)` at the normal midpoints, in fixed point, divided by their mean."""
    sigma = _decimal(shape / (1 << SCALE_BITS))
    factors = [_CONTEXT.exp(_CONTEXT.multiply(sigma, Decimal(z))) for z in MIDPOINTS]
    total = Decimal(0)
    for factor in factors:
        total = _CONTEXT.add(total, factor)
    unit = _CONTEXT.divide(Decimal(TABLE_SIZE << _POINT), total)
    return tuple(int(_CONTEXT.multiply(factor, unit)) for factor in factors)


@lru_cache(maxsize=64)
def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """`base ** exponent` by exp and ln: not every version of Decimal rounds its own power correctly."""
    logarithm = _CONTEXT.ln(_decimal(base))
    return Fraction(_CONTEXT.exp(_CONTEXT.multiply(logarithm, _decimal(exponent))))


def _decimal(number: Fraction) -> Decimal:
    return _CONTEXT.divide(Decimal(number.numerator), Decimal(number.denominator))


def _fixed(number: Fraction) -> int:
    return round(number * (1 << _POINT))
