"""Leaf by state: what the module does to an entry must be what the reference's table says."""

import csv
from pathlib import Path

import pytest

from tdx.module import (
    Operand,
    SeptState,
    Status,
    TdExit,
    tdg_mem_page_accept,
    tdh_mem_page_add,
    tdh_mem_page_aug,
    tdh_mem_page_remove,
    tdh_mem_range_block,
    tdh_mem_range_unblock,
    tdh_mem_sept_add,
    tdh_mem_sept_rd,
    tdh_mr_extend,
)
from tdx.module.pamt import PageType
from tdx.module.sept_states import NEXT_STATE, OpState
from tdx.module.septe import BY_BITS, BY_PUBLIC, FREE, NON_MIGRATION, STATE_BITS, Septe, make
from tests.tdx.module.worlds import DATA, GFN, World, run
from vcpu.addresses import LEVELS, Pfn, gpa_of

DATA_DIR = Path(__file__).parent / "data"
CALLS = {
    "TDH.MEM.SEPT.ADD": tdh_mem_sept_add,
    "TDH.MEM.SEPT.RD": tdh_mem_sept_rd,
    "TDH.MEM.PAGE.ADD": tdh_mem_page_add,
    "TDH.MEM.PAGE.AUG": tdh_mem_page_aug,
    "TDH.MEM.PAGE.REMOVE": tdh_mem_page_remove,
    "TDH.MEM.RANGE.BLOCK": tdh_mem_range_block,
    "TDH.MEM.RANGE.UNBLOCK": tdh_mem_range_unblock,
    "TDH.MR.EXTEND": tdh_mr_extend,
    "TDG.MEM.PAGE.ACCEPT": tdg_mem_page_accept,
}
NEW_PAGE = Pfn(DATA + 1024)


def rows():
    with (DATA_DIR / "sept_transitions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            state = row["entry_state_before"]
            if (
                row["migration"] == "yes"
                or row["seamcall"] not in CALLS
                or state not in SeptState.__members__
            ):
                continue
            conditions = row["extra_condition"]
            for level in levels(row["level"], row["seamcall"]):
                yield row["seamcall"], level, SeptState[state], conditions, row


def levels(text, call):
    if text == "leaf":
        return [1]
    if text == "*":
        return [1, 2]
    for low, name in ((1, "4K"), (2, "2M")):
        if text == name:
            return [low]
    if text.startswith("4K"):
        return [1, 2]
    return [2] if text.startswith("2M") else []


def reachable(level, state):
    return not (level == 1 and state in (SeptState.NL_MAPPED, SeptState.NL_BLOCKED))


def prepared(level, state, *, op_state):
    """A world with an entry of that state, made by hand, and the page it names."""
    world = World(finalize=False)
    module = world.module
    tdcs = module.tdcs(world.td)
    tdcs.op_state = op_state
    page = tdcs.root
    for above in (4, 3, 2):
        if above == level:
            break
        page = module.sept_pages[Septe(page.septe(GFN).peek()).pfn_at(0)]
    cell = page.septe(GFN)
    if state in (SeptState.NL_MAPPED, SeptState.NL_BLOCKED):
        cell.v = int(make(state, Septe(cell.v).pfn_at(0)))
    elif state is SeptState.FREE:
        cell.v = int(FREE)
    else:
        module.pamt.entry(DATA, level).assign(PageType.PT_REG, world.td.tdr_pfn)
        module.tdr(world.td).chldcnt.v += LEVELS[level].pages
        cell.v = int(make(state, DATA))
    return world, cell


def call(world, name, level):
    operands = {"td": world.td, "gpa": gpa_of(GFN)}
    if name != "TDH.MR.EXTEND":
        operands["level"] = LEVELS[level]
    if name in ("TDH.MEM.PAGE.ADD", "TDH.MEM.PAGE.AUG", "TDH.MEM.SEPT.ADD"):
        operands["pfn"] = NEW_PAGE
    if name == "TDG.MEM.PAGE.ACCEPT":
        operands |= {"vcpu": world.vcpu(), "interrupt_pending": lambda: False}
        result = run(world.kernel, tdg_mem_page_accept(world.module, **operands))
        if result.exit is not None:
            assert isinstance(result.exit, TdExit)
            return "TDEXIT_EPT_VIOLATION", None
        return result.ret.status.name, result.ret.operand
    ret = run(world.kernel, CALLS[name](world.module, **operands))
    return ret.status.name, ret.operand


def meant(row, name, state):
    """Whether the row's condition holds in the prepared world."""
    condition = row["extra_condition"]
    terms = set(condition.split(";")) - {"import=0", "irq=0", "new_page=ok", "r8=nonnull"} - {"-"}
    tracked = {"track_op=0", "tracked=1"}
    return not terms - tracked


CASES = [
    pytest.param(name, level, state, row, id=f"{name}-{level}-{state.name}-{row['check_order']}")
    for name, level, state, _, row in rows()
    if reachable(level, state) and meant(row, name, state)
]


@pytest.mark.parametrize(("name", "level", "state", "row"), CASES)
def test_a_leaf_does_to_a_state_what_the_table_says(name, level, state, row):
    """Status, operand and the state afterwards are those of sept_transitions.csv."""
    if name == "TDH.MEM.PAGE.ADD" and level != 1:
        pytest.skip("4K only")
    world, cell = prepared(level, state, op_state=OpState.INITIALIZED)

    status, operand = call(world, name, level)

    assert row["status"] == status
    if row["operand"] in Operand.__members__:
        assert Operand[row["operand"]] == operand
    if row["operand"] == "level_reached":
        assert level - 1 == operand
    assert SeptState[row["entry_state_after"]] is Septe(cell.peek()).state
    assert not Septe(cell.peek()).is_locked


def test_there_are_cases_for_every_leaf():
    """The interpreter understands at least one success and one refusal of each leaf."""
    for name in CALLS:
        statuses = {case.values[3]["status"] for case in CASES if case.values[0] == name}

        assert "TDX_SUCCESS" in statuses, name
        assert name == "TDH.MEM.SEPT.RD" or len(statuses) > 1, name


def test_the_state_table_agrees_with_every_row_of_the_reference():
    """A success row is allowed, with its state afterwards; STATE_INCORRECT is not allowed; migration states too.

    The reference's file has not a row for every pair, so the converse is not asked.
    """
    with (DATA_DIR / "sept_transitions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name, before = row["seamcall"], row["entry_state_before"]
            if name not in CALLS or before not in SeptState.__members__:
                continue
            after = NEXT_STATE[name].get(SeptState[before])
            what = (name, before, row["extra_condition"])
            if row["status"] == "TDX_SUCCESS" and "import=1" not in row["extra_condition"]:
                assert SeptState[row["entry_state_after"]] is after, what
            elif row["status"] == "TDX_EPT_ENTRY_STATE_INCORRECT" and row["extra_condition"] == "-":
                assert after is None, what


def test_status_codes_are_the_reference_s():
    """Names and values of every code whose value is known."""
    with (DATA_DIR / "status_codes.csv").open(newline="") as file:
        expected = {
            row["name"]: int(row["value"], 16)
            for row in csv.DictReader(file)
            if row["value"].startswith("0x") and row["name"] != "UNINITIALIZE_ERROR"
        }

    assert expected == {name: int(status) for name, status in Status.__members__.items()}


def test_state_encodings_are_distinct_and_survive_the_word():
    """A state written into a word is read back, with frame and lock bits beside it."""
    assert len(BY_BITS) == len(BY_PUBLIC) == len(SeptState) == 16
    for state in SeptState:
        entry = make(state, 0x12345)

        assert entry.state is state
        assert entry.pfn_at(1) == 0x12345
        assert entry & STATE_BITS == state.bits
        assert state.is_migration == (state not in NON_MIGRATION)
