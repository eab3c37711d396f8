"""Conditions: alternatives, negations and comparisons, and what makes a row not expressible."""

import pytest

from tdx.module import OpState, SeptState
from tests.conformance import rows  # noqa: F401 - it registers the keys
from tests.conformance.calls import CALLS, IMPORT, TRACK_OP
from tests.conformance.situation import MIG_EPOCH, NotExpressible, Situation
from tests.conformance.table import TERM, Term
from tests.conformance.vocabulary import KEYS, combinations, op_states
from vcpu.addresses import PG_LEVEL_1G

REMOVE = CALLS["TDH.MEM.PAGE.REMOVE"]


def term(text):
    match = TERM.fullmatch(text)
    return Term(match["key"], match["op"], tuple(match["values"].split("|")))


def values(text):
    """The values that a term allows, in order, each once."""
    return list(dict.fromkeys(choice.value for choice in KEYS[term(text).key].choices(term(text))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("new_page=ok", ["ok"]),
        ("new_page=busy|not_nda", ["busy", "not_nda"]),
        ("new_page!=ok", ["bad_hpa", "not_in_tdmr", "busy", "not_nda", "wrong_type", "null"]),
        ("new_page!=busy", ["ok", "nda"]),
        ("op!=migrate", ["remigrate", "cancel"]),
        ("op=nop", ["nop"]),
        ("version>=1", ["1"]),
        ("version!=0", ["1"]),
        ("irq!=1", ["0"]),
        ("entries_left>0", ["1", "2"]),
        ("entries_left=0", ["0"]),
        ("entries_left!=1", ["0", "2"]),
        ("removed_epoch>=mig_epoch", ["0", "1"]),
        ("removed_epoch<mig_epoch", ["-1"]),
        ("hp_busy_elapsed>timeout", ["1", "2"]),
    ],
)
def test_a_term_allows_these_values(text, expected):
    """A negation of what is well is everything that is not; a negation of anything else is well."""
    assert values(text) == expected


def test_a_negation_leaves_out_what_another_name_would_let_in_again():
    """An entry that is no guest-accessible leaf is not MAPPED, by whatever class it could be called."""
    ways = {
        choice.how or choice.value.upper()
        for choice in KEYS["stop_entry"].choices(term("stop_entry!=guest_accessible_leaf"))
    }

    assert {"FREE", "BLOCKED", "PENDING"} <= ways
    assert not ways & {"MAPPED", "EXPORTED_DIRTY", "BLOCKEDW"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("new_pge=ok", "did you mean new_page"),
        ("new_page=bussy", "did you mean busy"),
        ("new_page>ok", "no number"),
        ("removed_epoch>=timeout", "compared with mig_epoch"),
        ("entries_left<0", "cannot be"),
    ],
)
def test_what_nobody_understands_is_said(text, reason):
    """With the nearest word that is known."""
    with pytest.raises(NotExpressible, match=reason):
        list(combinations([term(text)]))


def test_terms_combine_in_every_way():
    """Two alternatives and three ways to be busy are six."""
    ways = list(combinations([term("version=0|1"), term("new_page=busy")]))

    assert len(ways) == 6
    assert {str(way[1]) for way in ways} == {
        "new_page=busy (page)",
        "new_page=busy (2M)",
        "new_page=busy (1G)",
    }


def test_op_states_are_those_that_the_terms_name_together():
    """track_op and import speak of the op_state too."""
    both = op_states(REMOVE, [term("track_op=1"), term("import=1")], SeptState.BLOCKED)

    assert both == [OpState.LIVE_IMPORT]
    assert (
        set(op_states(REMOVE, [term("op_state=not_allowed")], SeptState.BLOCKED))
        == set(OpState) - REMOVE.op_states
    )
    assert op_states(
        REMOVE, [term("op_state!=RUNNABLE|LIVE_EXPORT"), term("track_op=1")], SeptState.MAPPED
    ) == [OpState.LIVE_IMPORT]


def test_op_states_that_nobody_names_leave_the_other_checks_benign():
    """A page that is not blocked is removed where nothing need be tracked; nothing is imported unless it is said."""
    for one in op_states(REMOVE, [], SeptState.MAPPED):
        assert one in REMOVE.op_states - TRACK_OP - IMPORT
    assert any(one in TRACK_OP for one in op_states(REMOVE, [], SeptState.BLOCKED))


def test_op_states_that_exclude_each_other_are_not_expressible():
    """PAGE.ADD is for TDs that were not finalized; nothing is tracked then."""
    with pytest.raises(NotExpressible, match="allowed in no op_state"):
        op_states(CALLS["TDH.MEM.PAGE.ADD"], [term("track_op=1")], SeptState.FREE)


def refusal(call, name, value, how):
    """Why a value cannot be had for a call, at a table where the walk has stopped; empty if it can."""
    want = Situation(call, PG_LEVEL_1G, SeptState.NL_BLOCKED, above=SeptState.FREE)
    try:
        KEYS[name].prepare(want, value, how)
    except NotExpressible as reason:
        return str(reason)
    return ""


@pytest.mark.parametrize("name", sorted(KEYS))
def test_every_value_of_every_key_can_be_had_for_some_call(name):
    """And for the others it is refused with a reason, never in a way of its own."""
    for value, ways in KEYS[name].values.items():
        for how in ways:
            refusals = [refusal(call, name, value, how) for call in CALLS.values()]

            assert "" in refusals, f"{name}={value} ({how}): {refusals[0]}"


def test_epochs_of_a_removed_page_stay_positive():
    """However far back a comparison reaches."""
    want = Situation(CALLS["TDH.IMPORT.MEM"])
    KEYS["removed_epoch"].prepare(want, "-1", "")

    assert want.removed_epoch == MIG_EPOCH - 1 >= 0
