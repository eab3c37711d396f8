"""The cost model: means, floors, tails, and the same draws in every process."""

import os
import pickle
import subprocess
import sys
from fractions import Fraction
from math import exp, log
from statistics import NormalDist, fmean, stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim._normal_table import MIDPOINTS, SCALE_BITS
from sim.costs import (
    TABLE_SIZE,
    CostModel,
    Tabled,
    UnknownCost,
    bounded_pareto,
    constant,
    lognormal,
    mixture,
    normal,
)
from sim.streams import Streams

INTERFERENCE = bounded_pareto(100_000, 33_000_000, alpha="1.5")
PROGRAM = """
from sim.costs import *
from sim.streams import Streams
model = CostModel(Streams(9), {"aug": lognormal(1500, floor=1200, shape="0.5"),
                               "host": bounded_pareto(100_000, 33_000_000, alpha="1.5")})
print([model.draw(name) for name in ("aug", "host", "aug", "host")])
"""


def test_the_stored_normal_table_is_the_normal_distribution() -> None:
    for i, z in enumerate(MIDPOINTS):
        assert abs(z / (1 << SCALE_BITS) - NormalDist().inv_cdf((i + 0.5) / TABLE_SIZE)) < 2e-6


@pytest.mark.parametrize(
    "distribution",
    [
        lognormal(1050, floor="892.5", shape="0.5"),
        lognormal(10_000, floor=8500, shape="0.5"),
        lognormal(2_500_000, shape="0.6"),
        lognormal(10, floor=6, shape="0.7"),
        lognormal(13.7, floor=8.22, shape="0.7"),
        normal(239_400, cv="0.01"),
        INTERFERENCE,
    ],
)
def test_a_table_has_the_mean_that_was_asked_for(distribution: Tabled) -> None:
    table = distribution.table()
    assert len(table) == TABLE_SIZE
    assert list(table) == sorted(table)
    assert abs(Fraction(sum(table), TABLE_SIZE) - distribution.expected()) <= Fraction(1, 2 * TABLE_SIZE)


@pytest.mark.parametrize(
    "distribution",
    [lognormal(8000, floor=6400, shape="0.5"), normal(177_400, cv="0.01"), constant(13)],
)
def test_the_mean_of_many_draws_is_within_one_percent(distribution: Tabled) -> None:
    model = CostModel(Streams(1), {"x": distribution})
    assert fmean(model.draw("x") for _ in range(20_000)) == pytest.approx(
        float(distribution.expected()), rel=0.01
    )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    mean=st.fractions(0, 10**7, max_denominator=100),
    part=st.fractions(0, 1, max_denominator=50),
    shape=st.sampled_from(["0", "0.5", "0.6", "0.7", "0.8"]),
)
def test_any_lognormal_keeps_its_floor_and_mean(mean: Fraction, part: Fraction, shape: str) -> None:
    distribution = lognormal(mean, floor=mean * part, shape=shape)
    table = distribution.table()
    assert table[0] >= int(mean * part)
    assert abs(Fraction(sum(table), TABLE_SIZE) - mean) <= Fraction(1, 2 * TABLE_SIZE)


def test_a_lognormal_has_the_quantiles_of_the_formula() -> None:
    mean, floor, shape = 10_000, 8500, 0.5
    mu = log(mean - floor) - shape**2 / 2
    table = lognormal(mean, floor=floor, shape=shape).table()
    for i in (0, 100, 511, 900, 1000):
        expected = floor + exp(mu + shape * NormalDist().inv_cdf((i + 0.5) / TABLE_SIZE))
        assert table[i] == pytest.approx(expected, rel=0.002)


def test_a_normal_has_its_deviation_and_can_be_cut() -> None:
    assert stdev(normal(100_000, cv="0.01").table()) == pytest.approx(1000, rel=0.01)
    cut = normal(100_000, cv="0.01", clip=2).table()
    assert (cut[0], cut[-1]) == (98_000, 102_000)


def test_the_tail_stays_in_its_bounds_and_has_the_published_mean() -> None:
    table = INTERFERENCE.table()
    assert table[0] >= 100_000
    assert table[-1] <= 33_000_000
    assert float(INTERFERENCE.expected()) == pytest.approx(283_500, rel=0.001)


def test_a_mixture_draws_its_tail_as_often_as_asked() -> None:
    model = CostModel(Streams(2), {"x": mixture(constant(5), constant(1000), probability="0.25")})
    draws = [model.draw("x") for _ in range(20_000)]
    assert set(draws) == {5, 1000}
    assert draws.count(1000) == pytest.approx(5000, rel=0.05)
    assert model.mean_ns("x") == round(0.75 * 5 + 0.25 * 1000)


def test_without_jitter_every_draw_is_the_mean_and_no_stream_moves() -> None:
    streams = Streams(1)
    model = CostModel(streams, {"x": lognormal(1500, floor=1200, shape="0.5")}, jitter=False)
    assert {model.draw("x") for _ in range(10)} == {1500}
    assert streams.stream("cost.x").bits64() == Streams(1).stream("cost.x").bits64()


@pytest.mark.parametrize("hash_seed", ["0", "77"])
def test_another_process_draws_the_same(hash_seed: str) -> None:
    here: dict[str, object] = {}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    exec(PROGRAM.replace("print(", "result = ("), here)
    assert done.stdout.strip() == str(here["result"])
    assert here["result"] == [1424, 168638, 1454, 209533]


def test_each_name_and_each_thread_draws_from_its_own_stream() -> None:
    costs = {"a": lognormal(1500, shape="0.5"), "b": lognormal(1500, shape="0.5")}
    one, other = CostModel(Streams(1), costs), CostModel(Streams(1), costs)
    for _ in range(5):
        one.draw("b")
        one.sampler("a", "v1")()
    assert [one.draw("a") for _ in range(4)] == [other.draw("a") for _ in range(4)]
    assert [one.sampler("a", "v0")() for _ in range(4)] == [other.sampler("a", "v0")() for _ in range(4)]
    assert [one.draw("a") for _ in range(4)] != [one.draw("b") for _ in range(4)]


def test_a_redefined_cost_takes_effect_for_all_threads() -> None:
    model = CostModel(Streams(1), {"a": constant(1), "b": constant(2)})
    assert (model.draw("a"), model.sampler("a", "v0")()) == (1, 1)
    model.define("a", constant(9))
    assert (model.draw("a"), model.sampler("a", "v0")(), model.draw("b")) == (9, 9, 2)


def test_an_unknown_cost_names_its_neighbours() -> None:
    model = CostModel(Streams(1), {"tdh_mem_track": constant(1), "td_exit": constant(1)})
    with pytest.raises(UnknownCost, match="'tdh_mem_trak'; the nearest are tdh_mem_track"):
        model.draw("tdh_mem_trak")
    with pytest.raises(KeyError, match=r"no cost is called 'q'$"):
        model.draw("q")


def test_an_unknown_cost_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnknownCost("a", ("ab",))))
    assert error.name == "a"


def test_scaling_keeps_the_shape() -> None:
    half = lognormal(1000, floor=850, shape="0.5").scaled("0.5")
    assert half == lognormal(500, floor=425, shape="0.5")
    assert constant(10).scaled(3) == constant(30)
    assert normal(100, cv="0.01").scaled(2) == normal(200, cv="0.01")
    assert INTERFERENCE.scaled(2).expected() == 2 * INTERFERENCE.expected()
    both = mixture(constant(1), constant(3), probability="0.5")
    assert both.scaled(2) == mixture(constant(2), constant(6), probability="0.5")


def test_chances_are_exact() -> None:
    distribution = lognormal(1000, floor=850, shape="0.5")
    assert distribution.chance_at_least(850) == 1
    assert distribution.chance_at_least(distribution.table()[-1]) == Fraction(1, TABLE_SIZE)
    assert distribution.chance_at_least(10**9) == 0
    rare = mixture(constant(1), constant(3), probability="0.002")
    assert rare.chance_at_least(2) == Fraction(2, 1000)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(-1), "a latency of at least 0"),
        (lambda: constant(float("nan")), "finite number"),
        (lambda: constant("ten"), "finite number"),
        (lambda: lognormal(10, floor=11, shape=1), "a floor between 0 and the mean"),
        (lambda: lognormal(10, shape=9), "a shape between 0 and 3"),
        (lambda: normal(10, cv="0.5"), "cv \\* clip between 0 and 1"),
        (lambda: normal(-1, cv="0.1"), "a mean of at least 0"),
        (lambda: bounded_pareto(5, 5, alpha=2), "a low end between"),
        (lambda: bounded_pareto(5, 9, alpha=1), "a positive alpha other than 1"),
        (lambda: mixture(constant(1), constant(1), probability=2), "a probability"),
    ],
)
def test_impossible_parameters_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
