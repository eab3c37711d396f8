"""Sizes, addresses and times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scenarios.units import format_size, format_time, parse_size, parse_time_ns


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4K", 4096),
        ("2M", 2 << 20),
        ("1G", 1 << 30),
        ("1.5G", 3 << 29),
        ("0x1000", 4096),
        (4096, 4096),
        ("4096", 4096),
        ("64KiB", 65536),
        (0, 0),
    ],
)
def test_sizes_take_units_hex_and_plain_numbers(text, size):
    """Each way to write a size gives its bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "K", "4KK", "-4K", -1, True, None, 1.5, "0x", "4 pages", "1e3", 1 << 52, "0.3K", []]
)
def test_what_is_no_size_is_refused(text):
    """Anything else is a ValueError, which says what is expected."""
    with pytest.raises(ValueError, match="expected"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "time_ns"), [("900ns", 900), ("2.1us", 2100), ("5 ms", 5_000_000), ("1s", 10**9), (0, 0)]
)
def test_times_take_a_unit(text, time_ns):
    """Each unit gives integer nanoseconds."""
    assert parse_time_ns(text) == time_ns


@pytest.mark.parametrize("text", [10, "10", "0.5ns", "1m", "1e3ns", "-1us", True, None, 2.5, "99999999999s"])
def test_what_is_no_time_is_refused(text):
    """A time without a unit, below a nanosecond or out of reason is a ValueError."""
    with pytest.raises(ValueError, match="expected"):
        parse_time_ns(text)


@given(st.integers(0, (1 << 52) - 1))
def test_a_formatted_size_parses_back(size):
    """Formatting loses nothing."""
    assert parse_size(format_size(size)) == size


@given(st.text(max_size=30) | st.integers() | st.floats() | st.none() | st.booleans())
def test_parsers_raise_nothing_but_value_error(value):
    """Whatever YAML holds, the parsers return an integer or raise ValueError."""
    for parse in (parse_size, parse_time_ns):
        try:
            assert type(parse(value)) is int
        except ValueError as exc:
            assert "expected" in str(exc)  # noqa: PT017 - both outcomes are right


def test_times_print_in_a_unit_that_fits():
    """People read microseconds, not seven digits."""
    assert [format_time(t) for t in (12, 1234, 5_000_000, 2 * 10**9)] == ["12 ns", "1.234 us", "5 ms", "2 s"]
