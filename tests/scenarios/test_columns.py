"""The report of a finding: which steps are told, and how."""

from __future__ import annotations

import re

import pytest

from scenarios.campaign.case import case_of
from scenarios.columns import COLUMN_MIN, MAIL_WIDTH, MEANING, block, columns
from scenarios.film import Film, Place, Step, film
from scenarios.library_index import LIBRARY
from scenarios.loading import load
from scenarios.relevance import lines_of, subjects_of
from scenarios.words import told
from sim.findings import KINDS
from tests.scenarios.hunted import PLANT


@pytest.fixture(scope="module")
def made():
    """The one switch that needs F31, without F31: the fault has all it needs, then the conversion runs to its end."""
    scenario = load(LIBRARY / "fault-vs-convert.yaml")
    with case_of(scenario, [PLANT], strategy="replay", window_ns=None).opened() as opened:
        schedules = (f"vcpu0*{steps} host0*2000" for steps in range(100, 0, -1))
        schedule = next(s for s in schedules if opened.record(s, seed=0).kernel.findings)
        reel = film(opened, schedule, seed=0)
        (found,) = reel.recording.kernel.findings
        finding = found.as_json() | {"schedule": schedule}
        yield reel, finding, block(opened, finding, width=MAIL_WIDTH, made=reel)


def step(number, thread, verb, target, **more):
    """A step of a made-up execution, on a word unless it is said to be a lock."""
    lock = verb in ("read-lock", "write-lock", "unlock")
    before, after = more.pop("values", (0, 0))
    place = Place("mmu/fault.py", number, f"f_{thread}", ("F21",))
    return Step(
        number, thread, verb, target, (place,), (), not lock, "write" in verb or lock, not lock, lock,
        before=before, after=after, happened=True, **more,
    )  # fmt: skip


FINDING = {"kind": "stale-spte", "title": "t", "details": {}, "where": [], "schedule": "a"}


def told_of(*steps, **finding):
    """The lines as (number, word)."""
    return [(line.step.number, line.step.target) for line in lines_of(steps, FINDING | finding)]


def test_a_word_of_one_thread_is_left_out_and_a_shared_one_is_told():
    """Both sides of it: the read that came before, and the change."""
    assert told_of(
        step(0, "a", "read", "x"),
        step(1, "a", "write", "mine", values=(0, 1)),
        step(2, "b", "write", "x", values=(0, 1)),
    ) == [(0, "x"), (2, "x")]


def test_a_shared_word_that_nobody_changes_is_left_out():
    """Two readers do not matter to each other; nor does a store of the same value."""
    assert told_of(step(0, "a", "read", "x"), step(1, "b", "write", "x", values=(7, 7))) == []


def test_what_the_finding_speaks_of_is_told_of_one_thread_too():
    """By name, by frame number, and by address."""
    changes = [step(0, "a", "write", "spte[mirror 4K gfn 0x1000]", values=(0, 1))]

    for details in ({"gfn": "0x1000"}, {"gpa": "0x1000abc"}, {"spte": "spte[mirror 4K gfn 0x1000]"}):
        assert subjects_of(changes, FINDING | {"details": details})
        assert told_of(*changes, details=details)
    assert told_of(*changes, details={"gfn": "0x100"}) == []


def test_accesses_of_one_word_in_a_row_are_one_line():
    """First value to last value; nothing is moved past a lock or a switch."""
    steps = [
        step(0, "b", "read", "x"),
        step(1, "a", "write", "x", values=(0, 1)),
        step(2, "a", "write", "x", values=(1, 2)),
        step(3, "b", "write", "x", values=(2, 3)),
        step(4, "a", "write", "x", values=(3, 4)),
    ]
    lines = lines_of(steps, FINDING)

    assert [(line.first.before, line.last.after, line.times) for line in lines] == [
        (0, 0, 1), (0, 2, 2), (2, 3, 1), (3, 4, 1),
    ]  # fmt: skip


def test_a_section_in_which_nothing_is_told_is_left_out():
    """And one with something in it stays, with both its ends."""
    steps = [
        step(0, "a", "read-lock", "lock"),
        step(1, "a", "unlock", "lock"),
        step(2, "b", "write-lock", "lock"),
        step(3, "b", "write", "x", values=(0, 1)),
        step(4, "b", "unlock", "lock"),
        step(5, "a", "read", "x"),
    ]

    assert told_of(*steps) == [(2, "lock"), (3, "x"), (4, "lock"), (5, "x")]


def test_a_thread_that_waits_is_told():
    """Also on a word that nobody else touched."""
    waits = step(0, "a", "wait until", "x")
    waits.happened, waits.blocked = False, True

    assert told_of(waits) == [(0, "x")]


def test_the_report_has_the_races_both_sides(made):
    """The snapshot of F21 before the conversion's C10, the attribute's change, and the install after it."""
    _, _, text = made
    steps = text[text.index("step  vcpu0") :]
    order = [steps.index(part) for part in ("F21 plain read", "C9 write", "C10", "F30 read-lock", "<== here")]

    assert order == sorted(order)
    assert "kvm_mmu_faultin_pfn()" in text
    assert "[holds kvm.srcu]" in text


def test_the_report_says_where_the_promise_was_made(made):
    """The attribute's change is among the last changes of what the finding speaks of."""
    _, _, text = made

    assert re.search(r"mem_attr\[gfn 0x1000\]: private -> shared\n +by host0 in step \d+", text)


def test_no_line_is_longer_than_the_width(made):
    """Whatever the width."""
    reel, finding, text = made

    assert max(map(len, text.splitlines())) <= MAIL_WIDTH
    for width in (80, 100, 120):
        assert max(map(len, columns(reel, finding, width))) <= width


def test_the_title_is_first_and_the_patch_is_named(made):
    """A subject line, then where."""
    lines = made[2].splitlines()

    assert lines[0].startswith("stale-spte: ")
    assert "drop_is_page_fault_stale.py" in " ".join(lines[1:3])


def test_a_long_list_of_steps_is_cut_in_the_middle_with_a_count(made):
    """The first and the last are kept."""
    reel = Film(
        made[0].recording,
        [step(i, "vcpu0" if i % 2 else "host0", "write", "x", values=(i, i + 1)) for i in range(200)],
    )
    rows = columns(reel, FINDING, 100)

    assert any(re.search(r"\.\.\. 144 more of 200 steps \.\.\.", row) for row in rows)
    assert "0xc7 -> 0xc8" in rows[-1]


def test_more_threads_than_fit_are_told_in_one_column_by_name(made):
    """Two columns never go below their least width."""
    reel = Film(
        made[0].recording,
        [step(i, ("vcpu0", "host0")[i % 2], "write", "x", values=(i, i + 1)) for i in range(4)],
    )
    two = columns(reel, FINDING, 2 * COLUMN_MIN + 6)
    names = {thread.name for thread in made[0].recording.kernel.threads}

    assert two[0].split() == ["step", "vcpu0", "host0"]
    assert {"vcpu0", "host0"} <= names


def test_every_kind_of_finding_has_its_sentence():
    """The table is DESIGN.md's."""
    assert set(MEANING) == KINDS


@pytest.mark.parametrize(
    ("word", "value", "text"),
    [
        ("spte[mirror 4K gfn 0x1000]", 0x8000000000000000, "none"),
        ("spte[mirror 4K gfn 0x1000]", 0x80000000000005A0, "frozen"),
        ("sept[0x1000,4K]", 0x80E0000000000000, "FREE pfn 0x0"),
        ("mem_attr[gfn 0x1000]", 8, "private"),
        ("vcpu0.mode", 1, "IN_GUEST_MODE"),
        ("vcpu0.requests", 16, "0x10"),
        ("mmu_lock", None, "None"),
    ],
)
def test_values_are_told_in_the_fields_words(word, value, text):
    """SPTEs, S-EPT entries, attributes and modes by name, the rest as it is."""
    assert told(word, value) == text
