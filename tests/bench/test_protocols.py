"""The protocol worlds are the peers' worlds: same rows, same verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import explore
from tests.bench.protocols import ROWS, build
from tests.bench.protocols.words import Atomic, Until

CONFIGS = Path(__file__).parent / "peers" / "configs.txt"


def test_rows_are_those_of_the_peers():
    lines = [line.split() for line in CONFIGS.read_text().splitlines() if not line.startswith("#")]
    rows = [(model, int(n), extra, int(bug), chk) for model, n, extra, bug, chk in lines]

    ours = [
        (r.model, r.n, "-", r.bug, "-")
        if r.model == "m1"
        else (r.model, r.n, f"A={r.accesses}", r.bug, str(r.chk))
        for r in ROWS
    ]
    assert rows == ours


@pytest.mark.parametrize("row", [row for row in ROWS if row.bug], ids=str)
def test_planted_bug_is_found(row):
    report = explore(
        build(row), strategy="portfolio", executions=2000, stop_at_first=True, max_steps=300, races=False
    )

    assert report.verdict == "failing"


@pytest.mark.parametrize("row", [row for row in ROWS if not row.bug], ids=str)
def test_correct_variant_is_not_accused(row):
    report = explore(build(row), strategy="portfolio", executions=300, max_steps=300, races=False)

    assert report.verdict == "none found"


def test_an_atomic_step_wakes_who_waits_for_its_words():
    """An `Until` looks at all its words, and goes on once."""

    def world(k):
        x, y, seen = k.cell("x", 0), k.cell("y", 0), k.cell("seen", 0)

        def step():
            x.v = y.v = 1

        def waiter():
            yield Until(lambda: x.v + y.v == 2, [x, y])
            yield seen.fetch_add(1)

        def writer():
            yield y.write_once(3)
            yield Atomic("both", step, writes=[x, y])

        k.thread("waiter", waiter())
        k.thread("writer", writer())
        k.at_end("the waiter goes on once", lambda: seen.peek() == 1)

    assert explore(world, strategy="dfs").proved
