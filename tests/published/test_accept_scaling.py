"""H15: a guest that accepts 8 GiB by 4K pages boots in 25, 12 and 9 s with 1, 4 and 8 vCPUs."""

from __future__ import annotations

from tests.published.claims import Claims
from tests.published.test_private_table import PAGES, first_touch

BASE_S = 7.1
"""What does not scale: fitted to the same points (costs.md 1.5), so the base is CAL; the slope is OUT."""
SCALE = (8 << 30) // 4096 / PAGES


def test_accepting_by_4k_pages_scales_with_vcpus():
    """Scaled down to 8 MiB; the time to accept is scaled up again and the base added."""
    claims = Claims("H15: 4K accept scaling, boot of 8 GiB in s")
    for vcpus, published_s in ((1, 25), (4, 12), (8, 9)):
        accept_s = first_touch(vcpus).now_ns * SCALE / 1e9
        claims.near(f"{vcpus} vCPUs", published_s, BASE_S + accept_s, 0.10, "CAL/OUT")
    claims.settle()
