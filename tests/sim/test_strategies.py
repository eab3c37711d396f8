"""Strategies: what each picks, and that each repeats itself anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim import INFINITY, BadSchedule, Kernel, explore, record
from sim.recorder import Recorder
from sim.strategies import first_by_time, strategy
from tests.sim.worlds import bustle, lost_update

ROOT = Path(__file__).resolve().parents[2]
STRATEGIES = [
    "fifo",
    "random",
    "replay:listener*3 worker2*2 +5 worker0",
    "pct:1",
    "pct:3",
    "pos",
    "surw",
    "surw:lock",
    "dfs",
    "dfs:1",
    "portfolio",
]


def fingerprint(name, seed=5):
    """Everything two searches could differ in: picks, times, values of every step."""
    report = explore(bustle, strategy=name, executions=5, seed=seed)
    plan = strategy(name, seed)
    digests = []
    for execution in range(5):
        k = Kernel(seed, window_ns=INFINITY)
        if not plan.begin(k, execution):
            break
        bustle(k)
        recorder = Recorder()
        k.check(recorder)
        k.execute(plan.pick)
        plan.end(k)
        digests.append(recorder.digest())
    return " ".join([report.digest, *digests])


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_run_twice_gives_the_same_digest(name):
    """In this process."""
    assert fingerprint(name) == fingerprint(name)


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_another_process_with_another_hash_seed_gives_the_same_digests(hash_seed):
    """Neither sets, nor hashes, nor addresses reach a schedule."""
    code = (
        "from tests.sim.test_strategies import STRATEGIES, fingerprint\n"
        "for name in STRATEGIES: print(fingerprint(name))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines() == [fingerprint(name) for name in STRATEGIES]


def test_the_seed_matters():
    """To those that draw, in their picks; to fifo in its ties and in the world's streams."""
    for name in ("random", "fifo", "pct:2", "pos", "surw", "portfolio"):
        assert fingerprint(name, 1) != fingerprint(name, 2)


@pytest.mark.parametrize("name", ["random", "pos"])
def test_any_execution_of_random_and_of_pos_can_be_made_alone(name):
    """Execution 3 does not depend on the first three having been made."""

    def picks_of(plan, execution):
        k = Kernel(0, window_ns=INFINITY)
        plan.begin(k, execution)
        bustle(k)
        picks = []

        def pick(kernel, candidates):
            index = plan.pick(kernel, candidates)
            picks.append(candidates[index].name)
            return index

        k.execute(pick)
        return picks

    in_a_row = strategy(name, 9)
    assert [picks_of(in_a_row, i) for i in range(4)][3] == picks_of(strategy(name, 9), 3)


def test_random_is_uniform_over_threads():
    """The first pick among three threads, over 3000 executions."""
    first = []

    def world(k):
        for name in "abc":
            k.thread(name, _one_read(k))
        k.check(lambda kernel, thread, _access: kernel.steps or first.append(thread.name))

    explore(world, executions=3000)
    assert all(900 < first.count(name) < 1100 for name in "abc")


def _one_read(k):
    yield k.cell("x", 0).read()


def test_replay_tells_what_no_longer_fits_and_follows_on():
    """A thread that is not ready, or does not exist, is a misfit; the schedule goes on with its next word."""
    recording = record(lost_update, "a ghost a b*2 a*9 b")

    assert [name for _, name in recording.misfits] == ["ghost", *["a"] * 8]
    assert recording.misfits[0] == (1, "ghost")
    assert recording.kernel.counters == {}
    assert all(thread.done for thread in recording.kernel.threads)


def test_replaying_the_recorded_schedule_gives_the_same_bytes():
    """record -> text -> record is a fixed point, whatever the first schedule was."""
    first = record(bustle, "worker1*7 listener ghost worker2*3 +4 worker1")
    second = record(bustle, first.schedule)

    assert second.misfits == []
    assert second.recorder.digest() == first.recorder.digest()
    assert second.schedule == first.schedule


def test_the_empty_schedule_is_fifo():
    """The timing run."""
    fifo = Kernel(0)
    bustle(fifo)
    recorder = Recorder()
    fifo.check(recorder)
    fifo.execute()

    assert record(bustle, "").recorder.digest() == recorder.digest()


def test_first_by_time_takes_the_earliest_then_the_tie():
    """Not the order of the candidates."""
    k = Kernel()
    late = k.thread("late", _one_read(k), start_ns=5)
    one = k.thread("one", _one_read(k))
    two = k.thread("two", _one_read(k))

    assert first_by_time([late, two, one]) == 2


@pytest.mark.parametrize(
    "name",
    [
        "nonsense",
        "fifo:3",
        "random:2",
        "",
        "pct",
        "pct:",
        "pct:0",
        "pct:x",
        "pos:1",
        "surw:",
        "dfs:",
        "dfs:-1",
        "dpor:x",
        "dfs:x",
        "portfolio:2",
        "random:",
    ],
)
def test_an_unknown_strategy_is_refused_with_those_there_are(name):
    """Before anything runs."""
    with pytest.raises(ValueError, match="there are fifo, random, replay:SCHEDULE"):
        explore(lost_update, strategy=name)


def test_a_schedule_that_cannot_be_read_is_refused():
    """BadSchedule, with the word."""
    with pytest.raises(BadSchedule, match=r"'a\*' is no pick"):
        explore(lost_update, strategy="replay:a a*")
