"""H13: what it takes to kick all running vCPUs out grows linearly with their number."""

from __future__ import annotations

import pytest

from tests.published.claims import Claims, line_fit, simulate

WORLD = """\
machine: {{pcpus: {pcpus}}}
td: {{vcpus: {vcpus}, kind: {kind}}}
memory:
  - {{slot: 0, base: 0x1000000, size: 2M, backing: 4K, initially: shared}}
threads:
  vcpu*:
    - touch: {{at: 0x1000000, size: 4K, alias: {alias}}}
    - compute: {{for: 20ms}}
  host0:
    - wait: {{for: 10ms}}
    - notifier_invalidate: {{at: 0x1000000, size: 4K}}
"""
VCPUS = (1, 2, 4, 8, 16, 32, 64, 128)
BASE_US = {"tdx": 2.65, "plain": 1.9}


def shootdown_us(kind: str, vcpus: int) -> float:
    alias = "shared" if kind == "tdx" else "private"
    result = simulate(WORLD.format(pcpus=vcpus + 1, vcpus=vcpus, kind=kind, alias=alias))
    assert result.latency["shootdown"]["count"] == 1
    return result.latency["shootdown"]["mean"] / 1000


@pytest.mark.parametrize("kind", ["tdx", "plain"])
def test_a_kick_of_all_vcpus_grows_linearly(kind):
    """R2 above 0.99, 0.1 to 0.4 us for each further vCPU. The absolute times are printed; the claim is the growth."""
    points = [(n, shootdown_us(kind, n)) for n in VCPUS]
    slope, intercept, r2 = line_fit(points)

    claims = Claims(f"H13: shootdown, {kind}")
    claims.within("R2 of the line", 1, r2, 0.99, 1, "CAL")
    claims.within("slope, us a vCPU", 0.2, slope, 0.1, 0.4, "CAL")
    for n, us in points:
        print(f"  for information: {n:3} vCPUs {us:6.2f} us, formula {BASE_US[kind] + 0.2 * (n - 1):6.2f} us")
    print(
        f"  for information: first target {intercept + slope:.2f} us, formula {BASE_US[kind]} us (estimate)"
    )
    claims.settle()
