"""The published tables agree, wrong rows are found, and a table that cannot be read is refused with one clear message."""

import csv
import json
from dataclasses import replace

import pytest

from tdx.module import SeptState
from tdx.module.sept_states import NEXT_STATE
from tests.conformance.__main__ import main
from tests.conformance.calls import CALLS
from tests.conformance.errata import corrected, read_errata
from tests.conformance.locks import judge_lock
from tests.conformance.rows import judge_row
from tests.conformance.run import run_locks, run_transitions
from tests.conformance.table import LOCKS, TRANSITIONS, BadTable, read_locks, read_transitions

HEADER = "seamcall,level,entry_state_before,extra_condition,status,entry_state_after,source,migration,check_order,operand,outputs,note"
AUG = "TDH.MEM.PAGE.AUG,4K,FREE,new_page=ok,TDX_SUCCESS,PENDING,x,no,120,-,-,"
PROFILE = "1.5.01"


def table(tmp_path, *lines):
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


def run(capsys, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def rows_of(name, **fields):
    found = [row for row in read_transitions() if row.seamcall == name]
    return [row for row in found if all(getattr(row, key) == value for key, value in fields.items())]


# The tables themselves.


def test_the_published_transitions_agree():
    """Every row can be expressed, and every one agrees, counted with the errata."""
    report = run_transitions(read_transitions(), profile=PROFILE)

    assert [result for result in report.results if result.verdict in ("disagrees", "not expressible")] == []
    assert report.expressible_percent == 100
    assert not any(result.not_looked_at for result in report.results)


def test_the_published_locks_agree():
    """Every row can be expressed, and every one agrees."""
    report = run_locks(read_locks(), profile=PROFILE)

    assert [result for result in report.results if result.verdict != "agrees"] == []


def test_every_call_of_the_tables_is_known_with_its_leaf_number():
    """calls.py knows them all, and no two have one number on one side."""
    names = {row.seamcall for row in read_transitions()} | {row.seamcall for row in read_locks()}
    sides = [(call.is_guest, call.leaf) for call in CALLS.values()]

    assert names - set(CALLS) == {"GUEST_EPT_VIOLATION"}
    assert len(set(sides)) == len(sides)


# Wrong rows.


@pytest.mark.parametrize(
    ("row", "difference"),
    [
        (
            AUG.replace("TDX_SUCCESS", "TDX_OPERAND_BUSY"),
            "status TDX_OPERAND_BUSY, but the call gave TDX_SUCCESS",
        ),
        (
            "TDH.MEM.PAGE.AUG,4K,FREE,new_page=busy,TDX_OPERAND_BUSY,FREE,x,no,112,RCX,-,",
            "status TDX_OPERAND_BUSY|RCX, but the call gave TDX_OPERAND_BUSY|R8",
        ),
        (AUG.replace("PENDING", "MAPPED"), "state after MAPPED, but it is PENDING"),
        (
            'TDH.MEM.PAGE.AUG,4K,MAPPED,-,TDX_EPT_ENTRY_STATE_INCORRECT,MAPPED,x,no,100,RCX,"RCX=arch_entry,RDX=0",',
            "RDX=0 (0x0), but it is 0x400",
        ),
        (
            "TDH.MEM.PAGE.AUG,4K,MAPPED,-,TDX_EPT_ENTRY_STATE_INCORRECT,MAPPED,x,no,100,RCX,-,",
            "RCX and RDX 0, but they are",
        ),
        (AUG.replace(",-,-,", ",-,-,child count +2"), "'child count +2', but it is not so"),
        (
            "TDG.MEM.PAGE.ACCEPT,4K,FREE,-,TDX_SUCCESS,FREE,x,no,1,-,-,",
            "status TDX_SUCCESS, but the call gave exit EPT_VIOLATION",
        ),
        (
            "TDH.EXPORT.BLOCKW,4K,BLOCKED,-,ENTRY:SUCCESS,BLOCKED,x,yes,100,-,-,",
            "with entry status 4",
        ),
    ],
)
def test_a_wrong_row_is_reported_with_its_line_and_what_was_expected(tmp_path, capsys, row, difference):
    """Status, operand, state, outputs, effects, exits and list entries; exit status 1."""
    path = table(tmp_path, AUG, row)

    status, out, _ = run(capsys, "--table", path)

    assert status == 1
    assert f"DISAGREES  {path}:3" in out
    assert difference in out
    assert f"{path}:2" not in out


@pytest.mark.parametrize("column", ["status", "operand", "after"])
@pytest.mark.parametrize("name", sorted({row.seamcall for row in read_transitions()}))
def test_no_wrong_cell_of_any_call_goes_unseen(name, column):
    """The first rows of each call, a cell wrong in each."""
    errata = read_errata()
    wrong = {
        "status": lambda row: "TDX_TD_FATAL" if row.status != "TDX_TD_FATAL" else "TDX_SUCCESS",
        "operand": lambda _row: "R10",
        "after": lambda row: (
            SeptState.EXPORTED_DIRTY if row.after is not SeptState.EXPORTED_DIRTY else SeptState.FREE
        ),
    }[column]
    tried = [corrected(row, errata)[0] for row in rows_of(name)]
    if column == "operand":
        tried = [row for row in tried if row.status.startswith("TDX_") and row.operand != "R10"]
    if column == "after":
        tried = [row for row in tried if row.level != "-"]
    for row in tried[:3] + tried[-3:]:
        assert judge_row(replace(row, **{column: wrong(row)})).differences, str(row)


@pytest.mark.parametrize("plant", ["mode", "error", "nobody", "order"])
@pytest.mark.parametrize(
    "name", ["TDH.MEM.PAGE.PROMOTE", "TDH.MEM.RANGE.BLOCK", "TDH.VP.ENTER", "TDH.IMPORT.MEM"]
)
def test_a_wrong_row_of_locks_is_found(name, plant):
    """Shared for exclusive and the reverse, another error, a lock that is taken although the row says it is not, another order."""
    rows = [row for row in read_locks() if row.seamcall == name]
    for row in (row for row in rows if row.mode in ("shared", "exclusive")):
        others = [other for other in rows if other is not row]
        after = [
            other for other in others if other.mode in ("shared", "exclusive") and other.order > row.order
        ]
        wrong = {
            "mode": replace(row, mode="exclusive" if row.mode == "shared" else "shared"),
            "error": replace(row, error="TDX_OPERAND_BUSY|R13"),
            "nobody": replace(row, mode="none", error="-"),
            "order": replace(row, order=100),
        }[plant]
        if plant == "order":
            if not after:
                continue
            wrong, others = replace(after[0], order=0), [wrong]
        assert judge_lock(wrong, [wrong, *others]).differences, f"{plant}: {row}"


def test_a_defect_of_the_model_is_found(monkeypatch):
    """AUG that took a blocked entry would disagree with the rows that forbid it."""
    monkeypatch.setitem(NEXT_STATE["TDH.MEM.PAGE.AUG"], SeptState.BLOCKED, SeptState.PENDING)

    (row,) = rows_of("TDH.MEM.PAGE.AUG", state=SeptState.BLOCKED, level="4K")

    assert (
        "status TDX_EPT_ENTRY_STATE_INCORRECT|RCX, but the call gave TDX_SUCCESS"
        in judge_row(row).differences[0]
    )


# Errata.


def test_every_erratum_is_about_a_row_and_is_needed():
    """The published row has the wrong cell, disagrees as it stands, and agrees when it is put right."""
    rows = read_transitions()
    for erratum in read_errata():
        about = [row for row in rows if erratum.is_about(row)]

        assert about, str(erratum)
        for row in about:
            assert judge_row(row).differences
            assert judge_row(erratum.correct(row)).agrees
            assert "()" in erratum.evidence


# Tables that cannot be run.


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (AUG.replace("TDH.MEM", "MEM"), "seamcall 'MEM.PAGE.AUG' is no name of a leaf"),
        (AUG.replace("4K", "8K"), "level '8K' is none; write 4K"),
        (AUG.replace("FREE", "FREEE"), "entry_state_before 'FREEE' is unknown; did you mean FREE?"),
        (
            AUG.replace("TDX_SUCCESS", "TDX_SUCESS"),
            "status 'TDX_SUCESS' is unknown; did you mean TDX_SUCCESS?",
        ),
        (AUG.replace("PENDING", "PEND"), "entry_state_after 'PEND' is unknown; did you mean PENDING?"),
        (AUG.replace("new_page=ok", "new_page"), "condition 'new_page' cannot be read; write key=value"),
        (AUG.replace("120", "last"), "check_order 'last' is no number"),
        (AUG.replace(",-,-,", ",R99,-,"), "operand 'R99' is unknown"),
        (AUG + ",more", "13 fields where the header has 12; quote a field"),
        (AUG.replace("TDX_SUCCESS", ""), "status is empty"),
    ],
)
def test_a_bad_line_is_refused_with_its_place_and_the_remedy(tmp_path, capsys, line, message):
    """One message on stderr, exit status 2, nothing run."""
    path = table(tmp_path, AUG, line)

    status, out, err = run(capsys, "--table", path)

    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"{path}:3: {message}" in err


def test_a_table_of_the_other_kind_is_refused(capsys):
    """With the option that it belongs to."""
    assert "give it with --locks" in run(capsys, "--table", LOCKS)[2]
    assert "give it with --table" in run(capsys, "--locks", TRANSITIONS)[2]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", HEADER.encode(), b"a,b\n1,2\n", b'"open\n'])
def test_what_is_no_table_is_refused(tmp_path, capsys, content):
    """Empty, not text, no rows, other columns, an open quote."""
    path = tmp_path / "bad.csv"
    path.write_bytes(content)

    status, _, err = run(capsys, "--table", path)

    assert status == 2
    assert err.startswith(f"tests.conformance: {path}:")


def test_a_file_that_is_not_there_is_refused(tmp_path, capsys):
    """By its name."""
    status, _, err = run(capsys, "--table", tmp_path / "none.csv")

    assert status == 2
    assert "none.csv: cannot be read: No such file or directory" in err


def test_a_key_that_nobody_knows_makes_a_row_not_expressible(tmp_path, capsys):
    """The other rows are judged; the reason names the nearest key."""
    path = table(tmp_path, AUG, AUG.replace("new_page", "newpage"))

    status, out, _ = run(capsys, "--table", path)

    assert status == 0
    assert f"NOT EXPRESSIBLE  {path}:3" in out
    assert "no key newpage; did you mean new_page?" in out
    assert "not expressible      1   (50.0% are expressible)" in out


def test_a_call_that_is_not_modelled_makes_a_row_not_expressible(tmp_path, capsys):
    """By its name."""
    out = run(capsys, "--table", table(tmp_path, AUG.replace("PAGE.AUG", "PAGE.TELEPORT")))[1]

    assert "TDH.MEM.PAGE.TELEPORT is not modelled" in out


# The command.


def test_levels_may_be_ranges_lists_the_root_or_all(tmp_path, capsys):
    """A row is tried at each of them."""
    lines = [
        f'TDH.MEM.SEPT.RD,"{level}",FREE,-,TDX_SUCCESS,FREE,x,no,1,-,-,'
        for level in ("*", "4K..root", "2M..1G", "4K,1G", "512G", "root")
    ]
    out = run(capsys, "--table", table(tmp_path, *lines), "--json")[1]
    op_states = 4

    tries = [result["tries"] // op_states for result in json.loads(out)["tables"][0]["results"]]

    assert tries == [5, 5, 2, 2, 1, 2]


def test_several_jobs_give_the_same_report(tmp_path, capsys):
    """Row by row, in the table's order."""
    with TRANSITIONS.open(newline="") as file:
        lines = list(csv.reader(file))[1:80:3]
    path = tmp_path / "some.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER.split(","), *lines])

    assert run(capsys, "--table", path, "--jobs", 2) == run(capsys, "--table", path)


def test_another_release_is_only_compared(capsys, tmp_path):
    """2.0 names RCX where 1.5.01 names the tree: listed, and no failure."""
    row = (
        "TDH.MEM.RANGE.UNBLOCK,4K..root,PENDING_BLOCKED,track_op=1;tracked=0,"
        "TDX_TLB_TRACKING_NOT_DONE,PENDING_BLOCKED,x,no,110,SEPT_TREE,-,"
    )
    path = table(tmp_path, row)

    assert run(capsys, "--table", path)[0] == 0
    status, out, _ = run(capsys, "--table", path, "--profile", "2.0")

    assert status == 0
    assert "but the call gave TDX_TLB_TRACKING_NOT_DONE|RCX" in out


def test_wrong_usage_is_refused(capsys):
    """argparse says what there is."""
    with pytest.raises(SystemExit) as left:
        main(["--jobs", "0"])

    assert left.value.code == 2
    assert "1 or more" in capsys.readouterr().err


def test_bad_tables_of_locks_are_refused(tmp_path):
    """Modes, orders and errors are checked as well."""
    header = "seamcall,object,mode,order,error_on_busy,source,kind,held_until,note"
    path = tmp_path / "locks.csv"
    for line, message in [
        ("TDH.MEM.TRACK,TDR.PAMT,sharde,1,TDX_OPERAND_BUSY|RCX,x,sharex,return,", "did you mean shared"),
        (
            "TDH.MEM.TRACK,TDR.PAMT,shared,first,TDX_OPERAND_BUSY|RCX,x,sharex,return,",
            "order 'first' is no number",
        ),
        ("TDH.MEM.TRACK,TDR.PAMT,shared,1,BUSY,x,sharex,return,", "error_on_busy 'BUSY' is unknown"),
    ]:
        path.write_text(f"{header}\n{line}\n")
        with pytest.raises(BadTable, match=message):
            read_locks(path)
