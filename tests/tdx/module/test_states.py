"""States, and the numbers behind names. What each leaf does to each state: tests/conformance, row by row."""

import csv

from tdx.module import SeptState, Status
from tdx.module.septe import BY_BITS, BY_PUBLIC, NON_MIGRATION, STATE_BITS, make
from tests.conformance.table import STATUS_CODES


def test_status_codes_are_the_reference_s():
    """Names and values of every code whose value the table has, and no others but those of Dynamic PAMT and 1.5.20."""
    with STATUS_CODES.open(newline="") as file:
        expected = {
            row["name"]: int(row["value"], 16)
            for row in csv.DictReader(file)
            if row["value"].startswith("0x") and row["name"] != "UNINITIALIZE_ERROR"
        }

    later = {
        "TDX_HPA_RANGE_NOT_FREE": 0xC000030400000000,
        "TDX_NO_PAMT_PAGE_PAIR": 0xC000030500000000,
        "TDX_PAMT_PAGE_NOT_EMPTY": 0xC000030600000000,
        "TDX_INTERRUPTED_PAMT": 0x8000030700000000,
        "TDX_MISSING_PAMT_PAGE_PAIR": 0x8000030800000000,
        "TDX_INTERRUPTED_BUSY": 0x8000020600000000,
    }
    assert expected | later == {name: int(status) for name, status in Status.__members__.items()}


def test_state_encodings_are_distinct_and_survive_the_word():
    """A state written into a word is read back, with frame and lock bits beside it."""
    assert len(BY_BITS) == len(BY_PUBLIC) == len(SeptState) == 16
    for state in SeptState:
        entry = make(state, 0x12345)

        assert entry.state is state
        assert entry.pfn_at(1) == 0x12345
        assert entry & STATE_BITS == state.bits
        assert state.is_migration == (state not in NON_MIGRATION)
