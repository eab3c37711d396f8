"""What is expected of pairs, read off the reference by hand."""

import pytest

from tests.pairwise.calls import CALLS
from tests.pairwise.matrix import LISTED_BUSY, locks_of, matrix, may_lose

LINE = {call.key: call for call in CALLS}
RCX, TREE, EPOCH = "OPERAND_BUSY|RCX", "OPERAND_BUSY|SEPT_TREE", "OPERAND_BUSY|TD_EPOCH"


@pytest.mark.parametrize(
    ("loser", "winner", "returned"),
    [
        ("PAGE.AUG at entry", "PAGE.REMOVE at entry", {RCX}),
        ("PAGE.AUG at entry", "PAGE.AUG at neighbour", set()),
        ("PAGE.AUG at neighbour", "PAGE.PROMOTE at parent", {RCX}),
        ("PAGE.AUG at entry", "RANGE.BLOCK at parent", {TREE}),
        ("RANGE.BLOCK at entry", "RANGE.UNBLOCK at entry", {TREE}),
        ("VP.ENTER (zero-step) at vCPU", "PAGE.AUG at entry", {TREE}),
        ("TRACK at TD", "PAGE.AUG at entry", set()),
        ("TRACK at TD", "TRACK at TD", {EPOCH}),
        ("VP.ENTER at vCPU", "TRACK at TD", {EPOCH}),
        ("SEPT.ADD at parent", "PAGE.ADD at entry", {"OPERAND_BUSY|RDX"}),
        ("TRACK at TD", "PAGE.ADD at entry", {RCX}),
        ("PAGE.ACCEPT at entry", "RANGE.BLOCK at entry", {RCX}),
        ("PAGE.ACCEPT at entry", "VP.ENTER (zero-step) at vCPU", set()),
        ("EXPORT.BLOCKW at entry", "SEPT.RD at entry", {LISTED_BUSY}),
    ],
)
def test_the_matrix_of_the_reference(loser, winner, returned):
    """Section 4.4, a line of each kind; what it says, the table of locks allows."""
    assert matrix(LINE[loser], LINE[winner]) == returned
    assert returned <= may_lose(LINE[loser], LINE[winner])


def test_the_table_of_locks_knows_every_call():
    """No call of the pairs is without a lock in the table."""
    assert [call.key for call in CALLS if not locks_of(call)] == []
