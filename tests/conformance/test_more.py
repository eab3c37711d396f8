"""Rows of our own: they agree, each can fail, and what they say beside status and operand is looked at."""

from collections import Counter
from dataclasses import replace

import pytest

from tdx.module import Status
from tests.conformance.__main__ import main
from tests.conformance.calls import CALLS
from tests.conformance.rows import judge_row
from tests.conformance.run import run_transitions
from tests.conformance.standing import wrongly_changed
from tests.conformance.table import MORE_TRANSITIONS, read_transitions

ROWS = read_transitions(MORE_TRANSITIONS)
CALLED = sorted({row.seamcall for row in ROWS})
WITHOUT_ENTRY = sorted(name for name in CALLED if not CALLS[name].levels)


def rows_of(name):
    return [row for row in ROWS if row.seamcall == name]


def test_our_rows_agree():
    """Every row can be expressed, and every one agrees; no output is left unlooked at."""
    report = run_transitions(ROWS, profile="1.5.01", title="Rows of our own")

    assert [result for result in report.results if result.verdict != "agrees"] == []
    assert not any(result.not_looked_at for result in report.results)


def test_no_row_stands_twice():
    """What is asked for is asked for once."""
    asked = Counter(str(row) for row in ROWS)

    assert [row for row, times in asked.items() if times > 1] == []


def test_every_row_cites_its_source():
    """A file of Intel's, and a function in most."""
    lines = MORE_TRANSITIONS.read_text(encoding="utf-8").splitlines()[1:]

    assert len(lines) == len(ROWS)
    assert all(".c" in line for line in lines)


@pytest.mark.parametrize("name", CALLED)
def test_a_wrong_status_or_operand_is_found(name):
    """The first and last rows of each call, told otherwise."""
    rows = rows_of(name)
    for row in rows[:2] + rows[-2:]:
        status = "TDX_SYS_BUSY" if row.status != "TDX_SYS_BUSY" else "TDX_SUCCESS"
        assert judge_row(replace(row, status=status)).differences, str(row)
        if row.status in Status.__members__:
            assert judge_row(replace(row, operand="R13")).differences, str(row)


@pytest.mark.parametrize("name", WITHOUT_ENTRY)
def test_a_refusal_that_changes_something_is_found(name):
    """A row that must name a change and does not; one that names a change that does not come about."""
    for row in rows_of(name):
        refused = row.status.startswith("TDX_") and Status[row.status].is_error
        if refused and row.note and "the log" not in row.note:
            assert judge_row(replace(row, note="")).differences, str(row)
    first = rows_of(name)[0]

    assert judge_row(replace(first, note="op_state becomes SHUTDOWN")).differences


def test_a_wrong_output_is_found():
    """Numbers, page types and addresses: each output of a row told otherwise."""
    for row in ROWS:
        if row.outputs.startswith("RCX=PT_REG"):
            assert judge_row(replace(row, outputs="RCX=PT_EPT")).differences
        if row.outputs.startswith("R8=") and row.outputs[3:].isdigit():
            assert judge_row(replace(row, outputs=f"R8={int(row.outputs[3:]) + 1}")).differences


def test_the_fatal_bit_is_told_apart():
    """A row without the phrase must not have it, one with it must."""
    ended = [row for row in ROWS if "with the fatal bit; " in row.note]

    assert ended
    for row in ended[::7]:
        assert judge_row(replace(row, note=row.note.replace("with the fatal bit; ", ""))).differences


def test_a_shutdown_must_come():
    """MODULE_SHUTDOWN is no success, and a call that returns is no shutdown."""
    for row in ROWS:
        if row.status == "MODULE_SHUTDOWN":
            assert judge_row(replace(row, status="TDX_SUCCESS")).differences
    returns = rows_of("TDH.MEM.TRACK")[-1]

    assert judge_row(replace(returns, status="MODULE_SHUTDOWN")).differences


def test_a_defect_of_the_model_is_found(monkeypatch):
    """A write that forgot the range of HP_LOCK_TIMEOUT disagrees with our rows."""
    monkeypatch.setattr("tdx.module.metadata.HP_LOCK_TIMEOUT_US_MIN", 0)
    (row,) = (row for row in rows_of("TDH.MNG.WR") if "data=small" in str(row))

    assert any("TDX_METADATA_FIELD_VALUE_NOT_VALID" in found for found in judge_row(row).differences)


def test_changes_are_told_by_name():
    """A change that is named and is not so, one that is so and not named."""
    before = dict.fromkeys(("op_state", "num_vcpus"), 0)
    now = {"op_state": 0, "num_vcpus": 1}

    assert list(wrongly_changed("num_vcpus +1", before, now, refused=True)) == []
    assert list(wrongly_changed("num_vcpus +2", before, now, refused=False))
    assert list(wrongly_changed("op_state becomes 0", before, now, refused=False))
    assert list(wrongly_changed("", before, now, refused=True))
    assert list(wrongly_changed("", before, now, refused=False)) == []


def test_our_rows_run_after_the_published_ones(capsys):
    """Only where no table is named."""
    assert main(["--locks", "tests/conformance/tables/seamcall_locks.csv"]) == 0
    assert "Rows of our own" not in capsys.readouterr().out
