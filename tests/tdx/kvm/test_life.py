"""A TD's life from building to the last page, and #VE on pending pages."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tdx.kvm.worlds import BASE, run, scenario


@given(vcpus=st.integers(1, 3), pages=st.integers(1, 40), initial=st.integers(0, 3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_teardown_gives_back_every_page(tmp_path, vcpus, pages, initial):
    """Built, run and destroyed: the module owns nothing, the host's memory is what it was without the TD."""
    loaded = scenario(
        tmp_path,
        f"vcpu*: [{{touch: {{at: {BASE:#x}, size: {4 * pages}K}}}}]",
        "host0: [{wait: {for: 500ms}}, {td_teardown: {}}]",
        td=f"vcpus: {vcpus}, initial_memory: {4 * initial}K" if initial else f"vcpus: {vcpus}",
    )
    before = []
    done = run(loaded, None, lambda world: before.append(len(list(world.tdx.module.pamt.assigned()))))
    world = done.world

    assert not done.kernel.findings
    assert done.kernel.counters["vm.destroyed"] == 1
    assert before[0] >= 1 + 6 * vcpus
    assert done.kernel.counters["seamcall.TDH.MEM.PAGE.REMOVE"] == max(pages, initial)
    assert list(world.tdx.module.pamt.assigned()) == []
    assert world.tdx.hkid == -1
    assert world.kvm.host_memory.in_use == 0


def test_teardown_beside_running_vcpus_is_clean(tmp_path):
    """The VMM stops vCPUs that are in the middle of their work."""
    loaded = scenario(
        tmp_path,
        f"vcpu*: [{{touch: {{at: {BASE:#x}, size: 160K}}}}]",
        "host0: [{wait: {for: 100us}}, {td_teardown: {}}]",
        td="vcpus: 3",
    )
    done = run(loaded)

    assert not done.kernel.findings
    assert list(done.world.tdx.module.pamt.assigned()) == []


@pytest.mark.parametrize(("disabled", "dead"), [("false", False), ("true", True)])
def test_a_guest_that_touches_first_gets_a_ve_or_dies(tmp_path, disabled, dead):
    """Without SEPT_VE_DISABLE a pending page is a #VE whose handler accepts it; with it, the TD is dead (F04)."""
    loaded = scenario(
        tmp_path,
        f"vcpu0: [{{accept: {{at: {BASE:#x}, size: 16K, order: 4K, policy: touch_first}}}}]",
        td=f"vcpus: 1, pending_ve_disable: {disabled}",
    )
    done = run(loaded)
    counters = done.kernel.counters

    assert [finding.kind for finding in done.kernel.findings] == (["td-dead"] if dead else [])
    assert counters.get("td.dead", 0) == dead
    assert counters.get("guest_ve", 0) == (0 if dead else 4)
    assert counters["seamcall.TDH.MEM.PAGE.AUG"] == (1 if dead else 4)
    states = [state.name for _, _, state, _ in done.world.tdx.module.leaves(done.world.tdx.td)]
    assert states == (["PENDING"] if dead else ["MAPPED"] * 4)
