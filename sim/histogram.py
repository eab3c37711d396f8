"""Latency histograms with HdrHistogram's buckets, statistics and file formats, at three significant digits.

A histogram is a dict of counts by bucket index, plus the exact minimum, maximum and sum. Values below 2048 ns have
a bucket each; above, a bucket is at most 1/1024 of its values wide. Merging adds counts, so the result does not
depend on the order in which workers report. Percentiles follow HdrHistogram: the highest value that shares a
bucket with the wanted one; the minimum, maximum and mean are exact.

Written formats: the compressed V2 encoding, the log (`.hlog`, version 1.3) and the percentile text (`.hgrm`). The
bytes depend on the recorded values alone: no clock is read, and the zlib container holds stored blocks, because
different builds of zlib compress differently.
"""

import struct
from base64 import b64encode
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import sqrt
from typing import TextIO
from zlib import adler32

SIGNIFICANT_DIGITS = 3
HOUR_NS = 3_600_000_000_000
"""The encoded range, unless a longer latency was recorded."""

_LINEAR_BITS = 11
_COOKIE = 0x1C849303 | 0x10
_COMPRESSED_COOKIE = 0x1C849304 | 0x10
_STORED_MAX = 0xFFFF
_TICKS_PER_HALF_DISTANCE = 5


class Histogram:
    """A recorder of integer nanoseconds >= 0."""

    __slots__ = ("_max", "_min", "_sum", "counts")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self._min = 1 << 63
        self._max = -1
        self._sum = 0

    def record(self, value_ns: int) -> None:
        """Count one latency. Raises: ValueError: it is negative or 2**63 ns or more."""
        if value_ns < self._min:
            if value_ns < 0:
                raise ValueError(f"expected a latency of at least 0 ns, got {value_ns}")
            self._min = value_ns
        if value_ns > self._max:
            if value_ns >> 63:
                raise ValueError(f"expected a latency below 2**63 ns, got {value_ns}")
            self._max = value_ns
        self._sum += value_ns
        shift = value_ns.bit_length() - _LINEAR_BITS
        index = value_ns if shift <= 0 else (shift << 10) + (value_ns >> shift)
        try:
            self.counts[index] += 1
        except KeyError:
            self.counts[index] = 1

    def merge(self, other: "Histogram") -> None:
        """Add everything `other` recorded."""
        for index, count in other.counts.items():
            self.counts[index] = self.counts.get(index, 0) + count
        self._min = min(self._min, other._min)
        self._max = max(self._max, other._max)
        self._sum += other._sum

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (self.counts, self.min, self.max, self._sum) == (
            other.counts,
            other.min,
            other.max,
            other._sum,
        )

    __hash__ = None  # type: ignore[assignment]  # it changes with every record

    def __repr__(self) -> str:
        return f"Histogram(count={self.count}, min={self.min}, max={self.max})"

    @property
    def count(self) -> int:
        """How many values were recorded."""
        return sum(self.counts.values())

    @property
    def min(self) -> int:
        """The least value, exactly; 0 when nothing was recorded."""
        return self._min if self.counts else 0

    @property
    def max(self) -> int:
        """The greatest value, exactly; 0 when nothing was recorded."""
        return self._max if self.counts else 0

    @property
    def mean(self) -> float:
        """The exact mean, rounded once; 0.0 when nothing was recorded."""
        return self._sum / self.count if self.counts else 0.0

    def percentile(self, percent: float | str | Fraction) -> int:
        """The value that `percent` of all values do not exceed, as HdrHistogram gives it.

        That is the highest value in its bucket, so it may exceed `max`, by less than a thousandth; for 0 it is
        the lowest in its bucket. A float stands for its shortest decimal form. Returns: 0 when nothing was recorded.
        Raises: ValueError: not between 0 and 100.
        """
        percent = Fraction(str(percent))
        if not 0 <= percent <= 100:
            raise ValueError(f"expected a percentage between 0 and 100, got {float(percent)}")
        if not self.counts:
            return 0
        wanted = max(1, int(percent * self.count / 100 + Fraction(1, 2)))
        seen = 0
        for index, count in sorted(self.counts.items()):
            seen += count
            if seen >= wanted:
                return lowest_equivalent(index) if percent == 0 else highest_equivalent(index)
        raise AssertionError("the counts do not add up to their sum")

    def summary(self) -> dict[str, int | float]:
        """The row of `summary.json`: count, min, p50, p90, p99, p999, max, mean. Percentiles are cut at max."""
        percentiles: dict[str, float | Fraction] = {
            "p50": 50,
            "p90": 90,
            "p99": 99,
            "p999": Fraction(999, 10),
        }
        return {
            "count": self.count,
            "min": self.min,
            **{name: min(self.percentile(percent), self.max) for name, percent in percentiles.items()},
            "max": self.max,
            "mean": round(self.mean, 3),
        }

    def encode_v2(self) -> str:
        """The compressed V2 encoding in base64: what every HdrHistogram library decodes."""
        counts = b"".join(_counts_v2(self.counts))
        highest = max(HOUR_NS, highest_equivalent(max(self.counts, default=0)))
        body = struct.pack(">iiiiqqd", _COOKIE, len(counts), 0, SIGNIFICANT_DIGITS, 1, highest, 1.0) + counts
        packed = _zlib_stored(body)
        return b64encode(struct.pack(">ii", _COMPRESSED_COOKIE, len(packed)) + packed).decode("ascii")

    def write_hgrm(self, file: TextIO, name: str = "") -> None:
        """Write the percentile text that HdrHistogram's plotter reads, values in ns.

        With `name`, a comment line before it says whose it is.
        """
        if name:
            file.write(f"#[Name = {name}]\n")
        file.write(f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}\n\n")
        for value, level, seen in self._percentile_rows():
            row = f"{value:12.3f} {float(level):2.12f} {seen:10d}"
            file.write(f"{row}\n" if level == 1 else f"{row} {float(1 / (1 - level)):14.2f}\n")
        buckets = max(1, self.max.bit_length() - _LINEAR_BITS + 1)
        file.write(f"#[Mean    = {self.mean:12.3f}, StdDeviation   = {self._deviation():12.3f}]\n")
        file.write(f"#[Max     = {float(self.max):12.3f}, Total count    = {self.count:12d}]\n")
        file.write(f"#[Buckets = {buckets:12d}, SubBuckets     = {1 << _LINEAR_BITS:12d}]\n")

    def _percentile_rows(self) -> Iterator[tuple[int, Fraction, int]]:
        """(value, level in [0, 1], values up to it): five levels for each halving of what is left to 1."""
        total = self.count
        seen, half, tick = 0, 0, 0
        highest = 0
        for index, count in sorted(self.counts.items()):
            seen += count
            highest = highest_equivalent(index)
            while True:
                level = 1 - Fraction(
                    2 * _TICKS_PER_HALF_DISTANCE - tick, _TICKS_PER_HALF_DISTANCE << half + 1
                )
                if seen < level * total:
                    break
                yield highest, level, seen
                tick += 1
                if tick == _TICKS_PER_HALF_DISTANCE:
                    half, tick = half + 1, 0
                if seen == total:
                    break
        if total:
            yield highest, Fraction(1), total

    def _deviation(self) -> float:
        """The standard deviation of the buckets' middles around the exact mean, as exact sums rounded at the end."""
        if not self.counts:
            return 0.0
        count = self.count
        mean = Fraction(self._sum, count)
        square = sum((_middle(index) - mean) ** 2 * n for index, n in self.counts.items())
        return sqrt(float(Fraction(square) / count))


def write_hlog(file: TextIO, histograms: Mapping[str, Histogram], *, length_ns: int = 0) -> None:
    """Write a histogram log: one interval, one tagged line a histogram, in the order of the tags.

    The interval starts at 0; its length is `length_ns`, the run's virtual time, and its maximum is in milliseconds,
    as the format has it. Raises: ValueError: a tag holds a comma, a quote or white space.
    """
    file.write("#[Histogram log format version 1.3]\n")
    file.write("#[StartTime: 0.000 (seconds since epoch), Thu Jan 01 00:00:00 UTC 1970]\n")
    file.write('"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n')
    for tag, histogram in sorted(histograms.items()):
        if not tag or any(c in ',"' or c.isspace() for c in tag):
            raise ValueError(f"expected a tag without commas, quotes and white space, got {tag!r}")
        length, longest = _thousandths(length_ns, 10**9), _thousandths(histogram.max, 10**6)
        file.write(f"Tag={tag},0.000,{length},{longest},{histogram.encode_v2()}\n")


def lowest_equivalent(index: int) -> int:
    """The least value that is counted at `index`."""
    shift = max(0, (index >> 10) - 1)
    return index - (shift << 10) << shift


def highest_equivalent(index: int) -> int:
    """The greatest value that is counted at `index`."""
    shift = max(0, (index >> 10) - 1)
    return (index - (shift << 10) + 1 << shift) - 1


def _middle(index: int) -> int:
    return lowest_equivalent(index) + (1 << max(0, (index >> 10) - 1) >> 1)


def _thousandths(value: int, unit: int) -> str:
    rounded = (value * 2000 + unit) // (2 * unit)
    return f"{rounded // 1000}.{rounded % 1000:03d}"


def _counts_v2(counts: Mapping[int, int]) -> Iterator[bytes]:
    """Counts in index order; a run of k empty buckets is -k, but a single one is 0."""
    position = 0
    for index, count in sorted(counts.items()):
        gap = index - position
        if gap:
            yield _zigzag_leb128(0 if gap == 1 else -gap)
        yield _zigzag_leb128(count)
        position = index + 1


def _zigzag_leb128(number: int) -> bytes:
    """The variable-length form of a signed 64-bit number: seven bits a byte, but eight in a ninth."""
    rest = (number << 1 ^ number >> 63) & (1 << 64) - 1
    out = bytearray()
    while rest > 0x7F and len(out) < 8:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def _zlib_stored(data: bytes) -> bytes:
    """A zlib stream of stored blocks (RFC 1950 and 1951)."""
    parts = [b"\x78\x01"]
    for start in range(0, len(data), _STORED_MAX):
        block = data[start : start + _STORED_MAX]
        is_last = start + _STORED_MAX >= len(data)
        parts += [struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF), block]
    return b"".join([*parts, struct.pack(">I", adler32(data))])
