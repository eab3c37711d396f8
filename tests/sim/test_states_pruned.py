"""`pruned` on the module's own code, which is too much for tables: the same ends and the same bug as `dpor`, in few executions."""

from __future__ import annotations

import pytest

from sim import explore
from tdx.module import guest_lock as guest_lock_file
from tdx.module import tdg_mem_page_accept, tdh_mem_range_block
from tests.tdx.module.worlds import GFN, World
from vcpu.addresses import PG_LEVEL_4K, gpa_of


def accept_against_block(ends):
    """The guest accepts a page while the host blocks it."""

    def fill(kernel):
        world = World(kernel)
        world.aug()
        operands = {"td": world.td, "gpa": gpa_of(GFN), "level": PG_LEVEL_4K}

        def blocker():
            yield from tdh_mem_range_block(world.module, **operands)

        def is_unlocked():
            entry = world.module.peek_septe(world.td, GFN)
            ends.add((str(entry.state), entry.is_locked))
            return not entry.is_locked

        guest = tdg_mem_page_accept(
            world.module, vcpu=world.vcpu(), interrupt_pending=lambda: False, **operands
        )
        kernel.thread("guest", guest)
        kernel.thread("block", blocker())
        kernel.at_end("the entry is unlocked", is_unlocked)

    return fill


@pytest.mark.parametrize("planted", [False, True])
def test_pruned_reaches_what_dpor_reaches(planted, monkeypatch):
    if planted:
        monkeypatch.setattr(guest_lock_file, "unlocks", lambda word: word)
    seen = {}
    for strategy in ("dpor", "pruned"):
        ends = set()
        report = explore(accept_against_block(ends), strategy=strategy, races=False)
        seen[strategy] = ends, {finding.title for finding in report.findings}

    assert bool(seen["dpor"][1]) is planted
    assert seen["pruned"] == seen["dpor"]


def test_pruned_ends_where_every_interleaving_would_not():
    """A few hundred states stand for tens of thousands of interleavings."""
    report = explore(accept_against_block(set()), strategy="pruned", races=False)

    assert report.proved
    assert report.executions < 1000
