"""The same scenario, seed and model give the same bytes, in files that other tools can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hdrh.log import HistogramLogReader

ROOT = Path(__file__).resolve().parents[2]


def tdsim_run(out, *options, hash_seed="0"):
    """`tdsim run vcpus-vs-one-page` in a process of its own; the files it wrote, by name."""
    subprocess.run(
        [sys.executable, "-m", "scenarios", "run", "vcpus-vs-one-page", "--out", str(out), *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
    )
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder and files of a run with seed 0."""
    out = tmp_path_factory.mktemp("one") / "A"
    return out, tdsim_run(out)


def test_two_runs_are_byte_identical_under_another_hash_seed(one, tmp_path):
    """Every file, and no file more."""
    assert tdsim_run(tmp_path / "B", hash_seed="4242") == one[1]


def test_another_seed_gives_other_events(one, tmp_path):
    """The seed reaches the latencies and with them the times of the events."""
    assert tdsim_run(tmp_path / "B", "--seed", "1")["events.jsonl"] != one[1]["events.jsonl"]


def test_event_logging_is_off_by_choice_and_total_by_choice(one, tmp_path):
    """`off` writes no events.jsonl; `accesses` writes every step as well; the run itself is the same."""
    dark = tdsim_run(tmp_path / "off", "--events", "off")
    full = tdsim_run(tmp_path / "all", "--events", "accesses")

    assert "events.jsonl" not in dark
    steps = [json.loads(line) for line in full["events.jsonl"].splitlines()]
    assert sum(line["event"] == "step" for line in steps) > 1000
    lit = [line for line in full["events.jsonl"].splitlines() if json.loads(line)["event"] != "step"]
    assert lit == one[1]["events.jsonl"].splitlines()
    assert dark["summary.json"] == full["summary.json"] == one[1]["summary.json"]


def test_the_percentile_files_have_hdrhistograms_layout(one):
    """Value, percentile, total count and 1/(1-percentile): rising, ending at the summary's count."""
    latency = json.loads(one[1]["summary.json"])["latency"]
    for name, summary in latency.items():
        rows = [line.split() for line in one[1][f"latency.{name}.hgrm"].decode().splitlines()]
        numbers = [[float(cell) for cell in row] for row in rows if row and row[0][0].isdigit()]
        assert ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"] in rows
        assert numbers == sorted(numbers)
        assert int(numbers[-1][2]) == summary["count"]


def test_the_interval_log_is_read_by_hdrhistogram(one):
    """Each tagged histogram decodes with the summary's count."""
    from hdrh.histogram import HdrHistogram

    latency = json.loads(one[1]["summary.json"])["latency"]
    reader = HistogramLogReader(str(one[0] / "latency.hlog"), HdrHistogram(1, 3_600_000_000_000, 3))
    counts = {}
    while (histogram := reader.get_next_interval_histogram()) is not None:
        counts[histogram.get_tag()] = histogram.get_total_count()
    reader.close()

    assert counts == {name: summary["count"] for name, summary in latency.items()}
