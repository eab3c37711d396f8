"""The quirks of reference 14: each is seen in 1.5.01, and in no order of a release that mends it."""

import pytest

from tdx.module.profile import TDX_1_5_01, profile_named
from tests.pairwise.quirks import QUIRKS

NAMED = {f"{quirk.row}-{quirk.text}": quirk for quirk in QUIRKS}


@pytest.mark.parametrize("name", NAMED)
def test_a_quirk_is_seen_where_it_is_and_never_where_it_is_mended(name):
    """All interleavings of its world: one shows it in 1.5.01, none in the releases that the row names."""
    quirk = NAMED[name]
    seen, executions = quirk.seen_in(TDX_1_5_01)

    assert seen, executions
    for release in quirk.mended:
        seen, executions = quirk.seen_in(profile_named(release))
        assert not seen, (release, executions)


def test_every_row_of_the_reference_has_a_scene():
    """Rows 1 to 18; 4 and 12 as hazards."""
    assert {quirk.row for quirk in QUIRKS} == set(range(1, 19))
    assert {quirk.row for quirk in QUIRKS if quirk.is_hazard} == {4, 12}
