"""A world that is quickly hunted: one page accepted while holes are punched into it, and the plant that breaks it."""

from __future__ import annotations

from pathlib import Path

from tests.scenarios.helpers import write

ROOT = Path(__file__).resolve().parents[2]
PLANT = ROOT / "tests" / "plants" / "drop_is_page_fault_stale.py"

TINY = """\
scenario: tiny
question: Is a fault that was overtaken by a hole punched into its page found stale?
machine: {pcpus: 2}
td: {vcpus: 1}
memory:
  - {slot: 0, base: 0x1000000, size: 2M, backing: 4K, initially: private}
threads:
  vcpu0: [{accept: {at: 0x1000000, size: 4K, order: 4K}}]
  host0:
    - repeat: {times: 4, do: [{punch_hole: {at: 0x1000000, size: 4K}}]}
expect: {findings: none}
hunt: {strategy: random, executions: 150}
"""


def tiny(folder: Path) -> Path:
    """The scenario's file."""
    return write(folder, TINY, "tiny")
