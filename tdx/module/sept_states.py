"""Which leaf may act on which S-EPT state, and what the state becomes; and in which op_states a leaf may be called.

One table for all leaves, so that a leaf's file holds steps and no policy. A state missing from a leaf's row refuses the
call with EPT_ENTRY_STATE_INCORRECT (ACCEPT, BLOCK and MR.EXTEND have answers of their own, see there).
Source: TDX module 1.5.01, sept_state_lookup.c and op_state_lookup.c; reference 6.2 and section 8.
"""

from __future__ import annotations

from enum import IntEnum

from tdx.module.septe import SeptState as S

NEXT_STATE: dict[str, dict[S, S]] = {
    "TDH.MEM.SEPT.ADD": {S.FREE: S.NL_MAPPED, S.NL_MAPPED: S.NL_MAPPED},
    "TDH.MEM.SEPT.RD": {state: state for state in S},
    "TDH.MEM.PAGE.ADD": {S.FREE: S.MAPPED},
    "TDH.MEM.PAGE.AUG": {S.FREE: S.PENDING, S.REMOVED: S.PENDING},
    "TDH.MEM.PAGE.REMOVE": {
        S.MAPPED: S.FREE,
        S.BLOCKED: S.FREE,
        S.BLOCKEDW: S.FREE,
        S.PENDING: S.FREE,
        S.PENDING_BLOCKED: S.FREE,
        S.PENDING_BLOCKEDW: S.FREE,
    },
    "TDH.MEM.RANGE.BLOCK": {
        S.NL_MAPPED: S.NL_BLOCKED,
        S.MAPPED: S.BLOCKED,
        S.BLOCKEDW: S.BLOCKED,
        S.PENDING: S.PENDING_BLOCKED,
        S.PENDING_BLOCKEDW: S.PENDING_BLOCKED,
    },
    "TDH.MEM.RANGE.UNBLOCK": {
        S.NL_BLOCKED: S.NL_MAPPED,
        S.BLOCKED: S.MAPPED,
        S.PENDING_BLOCKED: S.PENDING,
    },
    "TDH.MR.EXTEND": {S.MAPPED: S.MAPPED},
    "TDG.MEM.PAGE.ACCEPT": {S.PENDING: S.MAPPED, S.PENDING_EXPORTED_DIRTY: S.EXPORTED_DIRTY},
}
"""Leaf to state before to state after."""


class OpState(IntEnum):
    """How far the life of a TD has come (TDCS.OP_STATE)."""

    UNINITIALIZED = 0
    INITIALIZED = 1
    RUNNABLE = 2
    LIVE_EXPORT = 3
    PAUSED_EXPORT = 4
    POST_EXPORT = 5
    MEMORY_IMPORT = 6
    STATE_IMPORT = 7
    POST_IMPORT = 8
    LIVE_IMPORT = 9
    FAILED_IMPORT = 10


def _states(*numbers: int) -> frozenset[OpState]:
    return frozenset(OpState(number) for number in numbers)


ALLOWED_OP_STATES: dict[str, frozenset[OpState]] = {
    "TDH.MNG.ADDCX": _states(0),
    "TDH.MNG.INIT": _states(0),
    "TDH.MEM.PAGE.ADD": _states(1),
    "TDH.MR.EXTEND": _states(1),
    "TDH.MR.FINALIZE": _states(1),
    "TDH.VP.INIT": _states(1),
    "TDH.VP.CREATE": _states(1, 7),
    "TDH.VP.ADDCX": _states(1, 7),
    "TDH.VP.ENTER": _states(2, 3, 9),
    "TDH.MEM.SEPT.ADD": _states(1, 2, 3, 6, 7, 8, 9),
    "TDH.MEM.SEPT.RD": _states(*range(1, 11)),
    "TDH.MEM.PAGE.AUG": _states(1, 2, 3, 9),
    "TDH.MEM.PAGE.REMOVE": _states(1, 2, 3, 4, 5, 8, 9, 10),
    "TDH.MEM.RANGE.BLOCK": _states(1, 2, 3, 4, 5, 8, 9),
    "TDH.MEM.RANGE.UNBLOCK": _states(1, 2, 3, 4, 5, 8, 9),
    "TDH.MEM.TRACK": _states(*range(1, 10)),
}
"""Leaf to the op_states in which it may be called; a leaf without a row does not ask."""

TRACKED_OP_STATES = frozenset((OpState.RUNNABLE, OpState.LIVE_EXPORT, OpState.LIVE_IMPORT))
"""Only here must a range be blocked and tracked before its mapping is taken away (`track_op` of the reference)."""
IMPORT_OP_STATES = frozenset(
    (OpState.MEMORY_IMPORT, OpState.STATE_IMPORT, OpState.POST_IMPORT, OpState.LIVE_IMPORT)
)
"""Here PAGE.REMOVE leaves REMOVED behind, not FREE."""


def next_state(leaf: str, state: S) -> S | None:
    """What `leaf` turns an entry of that state into, or None if it may not act on it."""
    return NEXT_STATE[leaf].get(state)
