"""The nearest passing schedule differs by the race that matters; the culprit step is where the bug became inevitable."""

from __future__ import annotations

from pathlib import Path

import pytest

from scenarios.build import build
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from sim import Finding, explore, record
from sim.nearest import inevitable, nearest
from sim.patches import applied, read
from sim.shrink import shrink
from tests.sim.worlds import lost_update

PLANT = Path(__file__).resolve().parents[1] / "plants" / "drop_is_page_fault_stale.py"


def finding_of(world, schedule):
    """What this schedule finds, as a finding that replays."""
    (finding,) = explore(world, strategy=f"replay:{schedule}").findings
    return finding


def test_the_race_of_the_lost_update_is_turned_round():
    """The late read moves behind the other's write: then it reads 1, and nothing is lost."""
    finding = finding_of(lost_update, "a*2 b*3 a")

    answer = nearest(lost_update, finding)

    assert answer.race.cell == "x"
    assert (answer.race.first.thread, answer.race.second.thread) == ("a", "b")
    assert answer.race.first.text == "read x"
    assert answer.race.second.text == "write x"
    assert (answer.race.first.value, answer.race.first.value_passing) == ("0", "1")
    assert answer.race.second.value == "0 -> 1"
    assert "worlds.py" in answer.race.first.place
    assert record(lost_update, answer.schedule).kernel.findings == []


def test_a_deadlock_passes_when_one_thread_takes_both_locks_first():
    """The race of two lock operations."""

    def abba(k):
        a, b = k.mutex("A"), k.mutex("B")

        def take(first, second):
            yield first.lock()
            yield second.lock()
            yield second.unlock()
            yield first.unlock()

        k.thread("t0", take(a, b))
        k.thread("t1", take(b, a))

    answer = nearest(abba, finding_of(abba, "t0*2 t1*3"))

    assert {answer.race.first.text, answer.race.second.text} == {f"write-lock {answer.race.cell}"}
    assert answer.race.cell in {"A", "B"}
    assert record(abba, answer.schedule).kernel.findings == []


def use_before_init(k):
    """The reader fails at once if it comes first: the other side of its race never happened."""
    ready = k.cell("ready", False)

    def reader():
        if not (yield ready.load_acquire()):
            k.find("unmet", "used before it was ready")

    def writer():
        yield ready.store_release(True)

    k.thread("reader", reader())
    k.thread("writer", writer())


def test_a_race_with_what_had_not_happened_yet_is_found():
    """The world is followed beyond its finding."""
    answer = nearest(use_before_init, finding_of(use_before_init, "reader*2"))

    assert answer.race.first.text == "load-acquire ready"
    assert answer.race.first.value_passing == "True"
    assert answer.race.second.text == "store-release ready"
    assert record(use_before_init, answer.schedule).kernel.findings == []


def test_a_bug_of_every_schedule_has_no_nearest_passing_one():
    """And the answer says so."""

    def broken(k):
        x = k.cell("x", 0)

        def write(value):
            yield x.write_once(value)

        k.thread("a", write(1))
        k.thread("b", write(2))
        k.at_end("never", lambda: False)

    answer = nearest(broken, finding_of(broken, ""))

    assert answer.race is None
    assert answer.schedule is None
    assert answer.tried == 1
    assert "no single race decides" in str(answer)


def test_a_schedule_that_does_not_fail_is_refused():
    """An error with the schedule in it."""
    with pytest.raises(ValueError, match=r"'a\*9' does not show the finding"):
        nearest(lost_update, Finding("unmet", "something else", schedule="a*9"))


def test_the_lost_update_is_inevitable_from_the_second_read():
    """Both have read 0: whoever writes last, one increment is lost."""
    finding = finding_of(lost_update, "a*2 b*3 a")

    answer = inevitable(lost_update, finding)

    assert (answer.thread, answer.text) == ("b", "read x")
    assert answer.rate == 1.0
    assert answer.rate_before < 0.95


def test_the_step_that_breaks_the_state_is_the_culprit_not_the_one_that_shows_it():
    """The overwrite dooms the run; the reader far behind only finds out."""

    def world(k):
        flag, noise = k.cell("flag", 1), k.cell("noise", 0)

        def breaker():
            for _ in range(5):
                yield noise.read_once()
            if not (yield noise.read_once()):
                yield flag.write_once(0)

        def calm():
            for _ in range(3):
                yield noise.fetch_add(1)

        def reader():
            for _ in range(10):
                yield noise.read_once()
            yield flag.read_once()

        k.thread("breaker", breaker())
        k.thread("calm", calm())
        k.thread("reader", reader())
        k.at_end("the flag is up", lambda: flag.peek() == 1)

    answer = inevitable(world, finding_of(world, "reader*4 breaker*8 reader*9 calm*9"))

    assert answer.thread == "breaker"
    assert answer.text == "read noise"
    assert answer.step == 4 + 6


def test_the_planted_bug_of_the_full_model_is_explained_by_one_race():
    """The fault against the conversion's invalidation, at its words or at mmu_lock; turned round, all is well."""
    scenario = load(LIBRARY / "fault-vs-convert.yaml")

    def world(k):
        build(k, scenario)

    with applied(read(PLANT)):
        (found,) = explore(world, strategy="pos", executions=400, stop_at_first=True).findings
        finding = shrink(world, found).finding
        answer = nearest(world, finding)
        passing = record(world, answer.schedule).kernel
        culprit = inevitable(world, finding)

    assert passing.findings == []
    assert {answer.race.first.thread, answer.race.second.thread} == {"vcpu0", "host0"}
    assert answer.race.cell in {"mmu_invalidate_seq", "mmu_invalidate_in_progress", "mmu_lock"}
    assert all(side.place.startswith("mmu/") for side in (answer.race.first, answer.race.second))
    assert culprit.thread == "host0"
    assert culprit.rate_before < 0.95 <= culprit.rate
