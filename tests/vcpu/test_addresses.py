"""Frames, levels and ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcpu.addresses import (
    LEVELS,
    PG_LEVEL_1G,
    PG_LEVEL_2M,
    PG_LEVEL_4K,
    PG_LEVEL_512G,
    Gfn,
    GfnRange,
    PgLevel,
    align_down,
    direct_bits,
    gfn_of,
    gpa_of,
    table_index,
)

GFNS = st.integers(0, (1 << 40) - 1)
SMALL = st.integers(0, 60)


@given(GFNS, st.integers(0, 4095))
def test_every_byte_of_a_frame_has_its_number(gfn, offset):
    """`gfn_of` inverts `gpa_of` wherever in the page the address is."""
    assert gfn_of(gpa_of(gfn) + offset) == gfn


@given(GFNS, st.sampled_from(PgLevel))
def test_a_mapping_covers_the_frame_that_it_is_asked_for(gfn, level):
    """The aligned frame is a multiple of the size, at most one size below."""
    first = align_down(gfn, level)

    assert first % level.pages == 0
    assert first <= gfn < first + level.pages


@given(st.integers(0, (1 << 45) - 1))
def test_five_table_indices_make_the_frame_number(gfn):
    """Nothing of the number is lost or counted twice on a five-level walk."""
    assert sum(table_index(gfn, level) << 9 * (level - 1) for level in range(1, 6)) == gfn


@given(GFNS, st.sampled_from([PG_LEVEL_2M, PG_LEVEL_1G, PG_LEVEL_512G]))
def test_frames_of_one_mapping_share_their_entry(gfn, level):
    """The first and last frame have the index, the frame behind them has the next one."""
    first = align_down(gfn, level)
    index = table_index(first, level)

    assert table_index(first + level.pages - 1, level) == index
    assert table_index(first + level.pages, level) == (index + 1) % 512


@given(SMALL, SMALL, SMALL, SMALL)
def test_ranges_overlap_exactly_if_they_share_a_frame(a, b, c, d):
    """Against sets of frames; half-open, so neighbours do not overlap."""
    one, other = GfnRange(Gfn(a), Gfn(a + b + 1)), (c, c + d + 1)

    assert one.overlaps(*other) == bool(set(one.frames()) & set(range(*other)))
    assert [gfn for gfn in range(130) if gfn in one] == list(one.frames())


@pytest.mark.parametrize(
    ("level", "pages", "tdx", "short"),
    [(PG_LEVEL_4K, 1, 0, "4K"), (PG_LEVEL_2M, 512, 1, "2M"), (PG_LEVEL_1G, 512 * 512, 2, "1G")],
)
def test_levels_are_numbered_as_kvm_and_as_the_module_do(level, pages, tdx, short):
    """KVM counts from 1, the module from 0."""
    assert (level.pages, level.size, level.tdx, level.short) == (pages, pages * 4096, tdx, short)
    assert LEVELS[tdx + 1] is level


@pytest.mark.parametrize(("bit", "frame"), [(None, 0), (47, 1 << 35), (51, 1 << 39)])
def test_the_shared_bit_as_a_frame_number(bit, frame):
    """Reference 1.8."""
    assert direct_bits(bit) == frame
