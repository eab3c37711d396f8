"""The tree of a `dpor` hunt in parts: the same files for any number of workers, and what one search sees."""

from __future__ import annotations

import pytest

from scenarios import hunt
from tests.scenarios.hunted import PLANT, ROOT
from tests.scenarios.test_hunt import files

SCENARIO = ROOT / "scenarios" / "library" / "prefault-vs-convert.yaml"


def hunted(folder, **options):
    """The result, and its files."""
    result = hunt(SCENARIO, strategy="dpor:values", out_dir=folder, **options)
    return result, files(folder)


@pytest.mark.parametrize("options", [{}, {"executions": 70}, {"patches": [PLANT]}])
def test_any_number_of_jobs_gives_the_same_files(tmp_path, options):
    """Also where the executions do not reach for all parts, and with findings; only a whole search proves."""
    alone, expected = hunted(tmp_path / "1", **options)

    for jobs in (2, 3):
        assert hunted(tmp_path / str(jobs), jobs=jobs, **options)[1] == expected
    assert alone.report.executions == 70 or "executions" not in options
    assert (alone.verdict == "proved") == (not options)
    assert bool(alone.findings) == ("patches" in options)


def test_the_parts_are_the_whole():
    """As many classes as one search has: the strategy itself is asked, through `explore`."""
    from scenarios.campaign.case import case_of
    from scenarios.loading import load
    from sim import explore

    scenario = load(SCENARIO)
    with case_of(scenario, [], strategy="dpor:values", window_ns=None).opened() as opened:
        whole = explore(opened.world, strategy="dpor:values", seed=scenario.seed)

    result = hunt(SCENARIO, strategy="dpor:values")
    assert result.report.complete == whole.complete
    assert (result.verdict, whole.verdict) == ("proved", "proved")
