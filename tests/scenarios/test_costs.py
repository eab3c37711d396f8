"""The cost table: every row loads, the defaults are the published ones, and the sums add up."""

from fractions import Fraction

import pytest

from scenarios.costs import (
    HOST_INTERFERENCE,
    KINDS,
    TAGS,
    Kind,
    cost_row,
    cost_rows,
    default_costs,
)
from sim.costs import CostModel, UnknownCost
from sim.streams import Streams


def test_the_whole_table_loads_and_each_value_lies_in_its_range() -> None:
    rows = cost_rows()
    assert len(rows) == 248
    for row in rows.values():
        assert row.tag in TAGS
        assert row.confidence in {"high", "medium", "low", "estimate"}
        assert row.low <= row.value <= row.high, row.name


def test_a_row_says_where_it_comes_from() -> None:
    row = cost_row("tdh_mem_page_demote")
    assert (row.value_ns, row.low, row.high) == (10_000, 8000, 12_000)
    assert (row.tag, row.confidence) == ("MEASURED", "high")
    assert "Yan Zhao" in row.source


def test_cycles_and_seconds_become_nanoseconds() -> None:
    assert round(cost_row("vmx_roundtrip_cycles").value_ns) == 556
    assert cost_row("kata_64g_lazy").value_ns == 15 * 10**9
    with pytest.raises(ValueError, match="shared_bit_pos is no time but a number of bit"):
        _ = cost_row("shared_bit_pos").value_ns


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"vmx_ept_violation_mean_app"}))
def test_a_default_has_the_value_of_its_row(name: str) -> None:
    assert default_costs()[name].expected() == cost_row(name).value_ns


def test_the_whole_fault_is_the_published_mixture() -> None:
    assert float(default_costs()["vmx_ept_violation_mean_app"].expected()) == pytest.approx(3510, rel=0.01)


@pytest.mark.parametrize(
    ("name", "at_2_0", "at_3_0"),
    [
        ("vmx_roundtrip", 750, 500),
        ("kvm_fault_sw_vmx", 886, 590),
        ("td_exit", 1418, 945),
        ("tdh_vp_enter", 1613, 1076),
        ("tdx_exit_in_module", 872, 581),
        ("tdvmcall_roundtrip", 3375, 2250),
        ("mapgpa_fixed", 16_200, 10_800),
        ("clear_2m_contiguous", 177_400, 177_400),
        ("wbinvd_full", 2_000_000, 2_000_000),
        ("host_ipi_base", 1300, 1300),
    ],
)
def test_core_bound_costs_follow_the_clock_and_others_do_not(name: str, at_2_0: int, at_3_0: int) -> None:
    for clock, expected in (("2.0", at_2_0), ("3.0", at_3_0)):
        assert float(default_costs(clock)[name].expected()) == pytest.approx(expected, abs=0.7)


def test_a_private_fault_with_accept_adds_up_to_the_published_total() -> None:
    parts = (
        "tdg_accept_faulting_attempt td_exit kvm_tdx_fault_sw gmem_alloc_clear_4k tdh_mem_page_aug_4k "
        "tdh_vp_enter tdg_mem_page_accept_4k accept_loop_guest"
    )
    total = sum(default_costs()[name].expected() for name in parts.split())
    assert float(total) == pytest.approx(float(cost_row("tdx_4k_accept_fault_total").value_ns), rel=0.01)


def test_a_removal_adds_up_to_the_published_totals() -> None:
    costs = default_costs()
    parts = (
        "tdh_mem_range_block tdh_mem_track kick_to_exit_tdx tdh_mem_page_remove_4k tdh_phymem_page_wbinvd_4k "
        "movdir64b_clear_4k removal_request_base"
    )
    base = sum(costs[name].expected() for name in parts.split())
    for vcpus in (4, 32):
        total = base + vcpus * costs["removal_per_vcpu"].expected()
        published = cost_row(f"dynamic_removal_4k_v{vcpus}").value_ns
        assert float(total) == pytest.approx(float(published), rel=0.01)


def test_no_draw_lies_below_its_floor() -> None:
    floors = {Kind.TRANSITION: "0.85", Kind.LEAF: "0.80", Kind.SOFTWARE: "0.60", Kind.IPI: "0.75"}
    model = CostModel(Streams(3), default_costs())
    for name, kind in KINDS.items():
        if kind in floors:
            least = int(cost_row(name).value_ns * Fraction(floors[kind]))
            assert min(model.draw(name) for _ in range(200)) >= least, name


def test_interference_is_there_only_on_a_noisy_host() -> None:
    assert default_costs()[HOST_INTERFERENCE].expected() == 0
    noisy = default_costs(quiet_host=False)[HOST_INTERFERENCE]
    assert float(noisy.expected()) == pytest.approx(567, rel=0.01)
    assert noisy.chance_at_least(100_000) == Fraction(2, 1000)


def test_an_unknown_cost_names_its_neighbours() -> None:
    with pytest.raises(UnknownCost, match="tdh_mem_page_aug_4k"):
        cost_row("tdh_mem_page_aug")
    with pytest.raises(UnknownCost, match="tdh_mem_track"):
        default_costs()["tdh_mem_trac"]


@pytest.mark.parametrize("clock", [0, -1, "fast"])
def test_an_impossible_clock_is_refused(clock: object) -> None:
    with pytest.raises(ValueError, match="expected a"):
        default_costs(clock)
