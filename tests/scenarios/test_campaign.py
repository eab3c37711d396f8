"""Shares: how a hunt is cut, what a share tells, and what all of them together may claim."""

from __future__ import annotations

import json
from math import isclose, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.campaign.case import Case, case_of
from scenarios.campaign.coverage import coverage
from scenarios.campaign.result import merge, merged_report
from scenarios.campaign.shares import EXECUTIONS, Cut, Limit, ShareResult, run_here, run_share
from scenarios.campaign.step_ids import step_ids
from scenarios.errors import ScenarioError
from scenarios.loading import load
from sim.estimates import PctBound, pct_floor, rule_of_three, unseen_mass
from tests.scenarios.hunted import PLANT, ROOT, tiny


@given(st.integers(1, 10**9), st.integers(0, 2**64 - 1))
@settings(derandomize=True, max_examples=50)
def test_shares_are_the_whole_hunt_and_nothing_twice(executions, seed):
    """Sizes add up, the first has the hunt's seed, and seeds differ."""
    cut = Cut("random", seed, executions)
    looked_at = [cut.share(i) for i in {0, 1 % cut.count, cut.count // 2, cut.count - 1}]

    assert (
        sum(cut.share(i).executions for i in (0, cut.count - 1)) + EXECUTIONS * max(0, cut.count - 2)
        == executions + (cut.count == 1) * executions
    )
    assert cut.share(0).seed == seed
    assert len({share.seed for share in looked_at}) == len(looked_at)


@pytest.mark.parametrize("strategy", ["dfs", "dfs:2", "dpor", "fifo", "replay:vcpu0"])
def test_a_tree_is_one_share(strategy):
    """What walks one tree is not cut."""
    assert Cut(strategy, 3, 10_000).count == 1


@pytest.fixture
def opened(tmp_path):
    """The tiny world with its plant."""
    scenario = load(tiny(tmp_path))
    with case_of(scenario, [PLANT], strategy="surw", window_ns=None).opened() as opened:
        yield opened


def test_a_share_crosses_a_pipe_unchanged(opened):
    """What JSON gives back is what went in, findings, orders and bounds included."""
    result = run_share(opened, Cut("surw", 0, 40).share(0), limit=Limit(), stop_at_first=False)
    result.report.bounds = (PctBound(2, 3, 50, -0.25),)

    assert result.report.findings
    assert ShareResult.from_json(json.loads(json.dumps(result.as_json()))) == result


def test_the_claims_of_all_shares_together_are_of_all_executions(tmp_path):
    """PCT's bounds multiply, orders are counted once, and the merged classes give the Good-Turing mass."""
    with case_of(load(tiny(tmp_path)), [], strategy="pct:2", window_ns=None).opened() as opened:
        cut = Cut("pct:2", 0, 2 * EXECUTIONS)
        shares = run_here(opened, cut, limit=Limit(), stop_at_first=False, tick=None)
        merged = merged_report(opened, shares)
    (bound,) = merged.bounds
    one, two = (share.report for share in shares)

    assert merged.executions == 2 * EXECUTIONS
    assert isclose(bound.log_missed, one.bounds[0].log_missed + two.bounds[0].log_missed)
    assert merged.classes == len(one.orders.keys() | two.orders.keys())
    counts = [one.orders.get(o, 0) + two.orders.get(o, 0) for o in one.orders.keys() | two.orders.keys()]
    assert merged.unseen == unseen_mass(counts)


def test_a_clean_hunt_claims_the_rule_of_three_over_all_shares(tmp_path):
    """And each strategy's own bound."""
    scenario = load(tiny(tmp_path))
    with case_of(scenario, [], strategy="pct:2", window_ns=None).opened() as opened:
        cut = Cut("pct:2", 0, EXECUTIONS + 6)
        shares = run_here(opened, cut, limit=Limit(), stop_at_first=False, tick=None)
        result = merge(opened, shares, stop_at_first=False, interrupted=False)

    assert result.verdict == "none found"
    assert f"nothing found in {EXECUTIONS + 6} executions" in result.claim
    assert f"{rule_of_three(EXECUTIONS + 6):.2g}" in result.claim
    assert str(result.report.bounds[0]) in result.claim


def test_bounds_of_two_searches_are_those_of_one_of_both():
    """Ten and twenty executions of the same n and k are thirty."""
    miss = log(1 - pct_floor(3, 50, 2))
    both = PctBound(2, 3, 50, 10 * miss).together(PctBound(2, 2, 40, 20 * miss))

    assert (both.threads, both.steps) == (3, 50)
    assert isclose(both.missed_below, (1 - pct_floor(3, 50, 2)) ** 30)


def test_a_limit_ends_a_share_between_two_executions(opened):
    """The result says how far it came."""
    limit = Limit()

    def expire(progress):
        if progress.executions == 5:
            limit.expire()

    result = run_share(opened, Cut("random", 0, 60).share(0), limit=limit, stop_at_first=False, tick=expire)

    assert result.report.executions == 5


def test_a_case_of_another_version_is_refused(opened):
    """And one with a patch that leads out of its folder."""
    told = opened.case.as_json()
    with pytest.raises(ScenarioError, match="another version"):
        Case.from_json(told | {"format": 99}, "f.json")
    with pytest.raises(ScenarioError, match="leads elsewhere"):
        Case.from_json(told | {"patches": [{"folder": "..", "name": "../x", "source": ""}]}, "f.json")


def test_a_case_is_what_its_json_says(opened):
    """Round trip."""
    assert Case.from_json(json.loads(json.dumps(opened.case.as_json())), "f.json") == opened.case


def test_a_step_is_known_by_the_comment_of_its_statement():
    """V6 is the line of `vcpu/run.py` that says so, also where a statement has several lines."""
    lines = step_ids(str(ROOT / "vcpu" / "run.py"))
    source = (ROOT / "vcpu" / "run.py").read_text().splitlines()
    marked = [line for line, ids in lines.items() if "V6" in ids]

    assert marked
    assert any("# V6" in source[line - 1] for line in marked)


def test_coverage_names_what_never_happened():
    """Places, statuses, steps, and conflicting pairs seen in one order only."""
    told = coverage(
        {"seamcall.TDH.MEM.TRACK": 3, "seamcall.TDH.MEM.TRACK.TDX_SUCCESS": 3},
        ["fault_found_stale"],
        ["never_this"],
        {"F31"},
        {"a:1 f -> b:2 g on spte": 1, "b:2 g -> a:1 f on spte": 2, "a:1 f -> c:3 h on spte": 1},
        1,
    )

    assert "never_this" in told["places"]["never"]
    assert "fault_found_stale" not in told["places"]["never"]
    assert "TDX_PREVIOUS_TLB_EPOCH_BUSY" in told["seamcalls"]["TDH.MEM.TRACK"]["never"]
    assert told["steps"]["seen"] == ["F31"]
    assert "F21" in told["steps"]["never"]
    assert told["pairs"]["one_way"] == ["a:1 f -> c:3 h on spte"]
