"""What a TLB finds and forgets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, Gfn, Pfn
from vcpu.tlb import Tlb, Translation

LEVELS = [PG_LEVEL_4K, PG_LEVEL_2M, PG_LEVEL_1G]


def mapping(gfn, level, pfn=1 << 30, *, writable=True, executable=True):
    return Translation(Gfn(gfn), Pfn(pfn), level, writable, executable)


@pytest.mark.parametrize("level", LEVELS)
@given(st.data())
def test_a_mapping_is_found_for_each_of_its_frames_and_no_other(level, data):
    """4K, 2M and 1G entries translate by offset; the frames on both sides miss."""
    first = data.draw(st.integers(1, 1 << 12)) * level.pages
    offset = data.draw(st.integers(0, level.pages - 1))
    tlb = Tlb()
    tlb.fill("ept", mapping(first, level))

    assert tlb.lookup("ept", first + offset).frame(first + offset) == (1 << 30) + offset
    assert tlb.lookup("ept", first - 1) is None
    assert tlb.lookup("ept", first + level.pages) is None


def test_the_same_frame_of_another_size_is_another_entry():
    """A 2M entry at gfn 512 does not hide the 4K entry at gfn 1, whose keys would be equal without the level."""
    tlb = Tlb()
    tlb.fill("ept", mapping(512, PG_LEVEL_2M, 0x8000))
    tlb.fill("ept", mapping(1, PG_LEVEL_4K, 0x7))

    assert tlb.lookup("ept", 1).pfn == 0x7
    assert tlb.lookup("ept", 513).frame(513) == 0x8001
    assert tlb.lookup("ept", 2) is None


@pytest.mark.parametrize("level", LEVELS)
def test_a_flush_forgets_one_space_and_leaves_the_others(level):
    """Spaces are tags: the same frame may be cached in two of them."""
    tlb = Tlb()
    for space in ("ept", "sept"):
        tlb.fill(space, mapping(0, level))
    tlb.flush("sept")

    assert tlb.lookup("sept", 0) is None
    assert tlb.lookup("ept", 0) is not None
    assert [space for space, _ in tlb.entries()] == ["ept"]
    tlb.flush_all()
    assert list(tlb.entries()) == []
    assert tlb.flushes == 2


@pytest.mark.parametrize(
    ("writable", "executable", "allowed"),
    [(False, False, ["read"]), (True, False, ["read", "write"]), (False, True, ["read", "execute"])],
)
def test_a_cached_mapping_allows_what_its_entry_allowed(writable, executable, allowed):
    """A read is always allowed; a write or a fetch only with its right."""
    cached = mapping(0, PG_LEVEL_4K, writable=writable, executable=executable)

    assert [kind for kind in ("read", "write", "execute") if cached.allows(kind)] == allowed


def test_filling_again_replaces():
    """One frame, one size: the last walk counts."""
    tlb = Tlb()
    tlb.fill("ept", mapping(3, PG_LEVEL_4K, 0x10))
    tlb.fill("ept", mapping(3, PG_LEVEL_4K, 0x11))

    assert [t.pfn for _, t in tlb.entries()] == [0x11]
