"""Sizes, addresses and times as people write them, turned into integer bytes and integer nanoseconds.

Sizes and addresses share one notation, because `base: 16M` and `base: 0x1000000` are the same place. A time never comes
without its unit: the number alone would leave the reader guessing. Everything is exact; a value that is no whole number of
bytes or nanoseconds is refused, never rounded.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

PAGE_BYTES: Final = {"4K": 4 * KIB, "2M": 2 * MIB, "1G": GIB}
"""Bytes of a mapping or folio size, by its written name."""

ADDRESS_LIMIT: Final = 1 << 52
"""No x86 physical address has more than 52 bits."""

TIME_LIMIT_NS: Final = 10**15
"""Eleven days of virtual time: a longer one is a slip of the unit."""

_SIZE_UNITS: Final = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_TIME_UNITS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_HEX: Final = re.compile(r"0[xX][0-9a-fA-F_]{1,20}", re.ASCII)
_SIZE: Final = re.compile(r"([0-9][0-9_]{0,18}(?:\.[0-9]{1,9})?) ?([KMGTkmgt]?)(?:i?[Bb])?", re.ASCII)
_TIME: Final = re.compile(r"([0-9][0-9_]{0,18}(?:\.[0-9]{1,9})?) ?(ns|us|µs|ms|s)", re.ASCII)

SIZE_HINT: Final = "a size such as 4K, 2M, 1G, 0x1000 or a number of bytes"
TIME_HINT: Final = "a time with its unit, such as 900ns, 2.1us, 5ms or 1s"


def parse_size(value: object) -> int:
    """Bytes of a size or address: `4K`, `2M`, `1.5G`, `0x1000`, `4096`.

    Raises: ValueError, with a text that says what is expected, for anything else, and beyond 52 bits.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"expected {SIZE_HINT}")  # noqa: TRY004 - pydantic reports a ValueError only
    if isinstance(value, int):
        size = value
    elif _HEX.fullmatch(value.strip()):
        size = int(value.strip().replace("_", ""), 16)
    else:
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(f"expected {SIZE_HINT}")
        exact = _fraction(match[1]) * _SIZE_UNITS[match[2].upper()]
        if exact.denominator != 1:
            raise ValueError("expected a whole number of bytes")
        size = int(exact)
    if not 0 <= size < ADDRESS_LIMIT:
        raise ValueError("expected a size or address from 0 up to, and not including, 2^52 bytes")
    return size


def parse_time_ns(value: object) -> int:
    """Nanoseconds of a time: `900ns`, `2.1us`, `5ms`, `1s`; a bare number only if it is 0.

    Raises: ValueError, with a text that says what is expected.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"expected {TIME_HINT}")  # noqa: TRY004 - pydantic reports a ValueError only
    if isinstance(value, int):
        if value == 0:
            return 0
        raise ValueError(f"expected {TIME_HINT}: the unit is missing")
    match = _TIME.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"expected {TIME_HINT}")
    exact = _fraction(match[1]) * _TIME_UNITS[match[2].replace("µ", "u")]
    if exact.denominator != 1:
        raise ValueError("expected a whole number of nanoseconds")
    if exact > TIME_LIMIT_NS:
        raise ValueError("expected a time of at most 1000000s")
    return int(exact)


def format_size(size: int) -> str:
    """`size` in the largest unit that keeps it whole: 2097152 is `2M`."""
    for unit in ("T", "G", "M", "K"):
        if size and size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return str(size)


def format_address(address: int) -> str:
    """An address as the kernel prints one: `0x1000000`."""
    return f"{address:#x}"


def format_time(time_ns: int) -> str:
    """A time for people: three significant places in the largest unit that is not below one."""
    for unit, factor in (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)):
        if abs(time_ns) >= factor:
            return f"{time_ns / factor:.4g} {unit}"
    return f"{time_ns} ns"


def _fraction(digits: str) -> Fraction:
    return Fraction(Decimal(digits.replace("_", "")))
