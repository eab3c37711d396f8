"""Which leaf may act on which S-EPT state, and what the state becomes; and in which op_states a leaf may be called.

One table for all leaves, so that a leaf's file holds steps and no policy. A state missing from a leaf's row refuses the
call with EPT_ENTRY_STATE_INCORRECT (ACCEPT, BLOCK and MR.EXTEND have answers of their own, see there).
Source: TDX module 1.5.01, sept_state_lookup.c and op_state_lookup.c; reference 6.2 and section 8.
"""

from __future__ import annotations

from enum import IntEnum

from tdx.module.septe import SeptState as S
from tdx.module.status import Status

RELOCATED = {S.BLOCKED: S.MAPPED, S.PENDING_BLOCKED: S.PENDING}
"""A relocated page comes back unblocked; any other state stays."""

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
    "TDH.MEM.SEPT.REMOVE": {S.NL_MAPPED: S.FREE, S.NL_BLOCKED: S.FREE},
    "TDH.MEM.PAGE.RELOCATE": {state: RELOCATED.get(state, state) for state in S if state.is_leaf},
    "TDH.MEM.PAGE.PROMOTE": {S.NL_MAPPED: S.MAPPED, S.NL_BLOCKED: S.MAPPED},
    "TDH.MEM.PAGE.DEMOTE": {
        S.MAPPED: S.NL_MAPPED,
        S.BLOCKED: S.NL_MAPPED,
        S.PENDING: S.NL_MAPPED,
        S.PENDING_BLOCKED: S.NL_MAPPED,
    },
    "TDH.MEM.RD": {state: state for state in S if state.is_guest_accessible_leaf},
    "TDH.MEM.WR": {state: state for state in S if state.is_guest_fully_accessible_leaf},
    "TDH.MR.EXTEND": {S.MAPPED: S.MAPPED},
    "TDH.EXPORT.BLOCKW": {
        S.MAPPED: S.BLOCKEDW,
        S.EXPORTED_DIRTY: S.EXPORTED_DIRTY_BLOCKEDW,
        S.PENDING: S.PENDING_BLOCKEDW,
        S.PENDING_EXPORTED_DIRTY: S.PENDING_EXPORTED_DIRTY_BLOCKEDW,
    },
    "TDH.EXPORT.UNBLOCKW": {
        S.BLOCKEDW: S.MAPPED,
        S.EXPORTED_BLOCKEDW: S.EXPORTED_DIRTY,
        S.EXPORTED_DIRTY_BLOCKEDW: S.EXPORTED_DIRTY,
        S.PENDING_BLOCKEDW: S.PENDING,
        S.PENDING_EXPORTED_BLOCKEDW: S.PENDING_EXPORTED_DIRTY,
        S.PENDING_EXPORTED_DIRTY_BLOCKEDW: S.PENDING_EXPORTED_DIRTY,
    },
    "TDH.EXPORT.RESTORE": {
        S.EXPORTED_BLOCKEDW: S.MAPPED,
        S.EXPORTED_DIRTY: S.MAPPED,
        S.EXPORTED_DIRTY_BLOCKEDW: S.MAPPED,
        S.PENDING_EXPORTED_BLOCKEDW: S.PENDING,
        S.PENDING_EXPORTED_DIRTY: S.PENDING,
        S.PENDING_EXPORTED_DIRTY_BLOCKEDW: S.PENDING,
    },
    "TDH.EXPORT.MEM": {
        state: S.PENDING_EXPORTED_BLOCKEDW if state.is_pending else S.EXPORTED_BLOCKEDW
        for state in S
        if state.is_leaf and not state.is_blocked
    },
    "TDH.IMPORT.MEM": {
        S.FREE: S.MAPPED,
        S.REMOVED: S.MAPPED,
        S.MAPPED: S.MAPPED,
        S.PENDING: S.MAPPED,
    },
    "TDG.MEM.PAGE.ACCEPT": {S.PENDING: S.MAPPED, S.PENDING_EXPORTED_DIRTY: S.EXPORTED_DIRTY},
    "TDG.MEM.PAGE.ATTR.RD": {state: state for state in S if state.is_leaf and not state.is_blocked},
    "TDG.MEM.PAGE.ATTR.WR": {
        state: state for state in (S.MAPPED, S.EXPORTED_DIRTY, S.PENDING, S.PENDING_EXPORTED_DIRTY)
    },
}
"""Leaf to state before to state after, where the state alone decides it.

PROMOTE: the state of the children, MAPPED or PENDING. MEM.RD and the attribute calls change no state. EXPORT.MEM and IMPORT.MEM: for
an operation that migrates; a cancelled export goes where `EXPORT.RESTORE` goes, a cancelled import to REMOVED, and an imported
pending page becomes PENDING.
"""


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


_INITIALIZED_ON = range(1, 11)
_RESIZE = (1, 2, 3, 4, 5, 8, 9)

ALLOWED_OP_STATES: dict[str, frozenset[OpState]] = {
    "TDH.VP.ENTER": _states(2, 3, 9),
    "TDH.MNG.ADDCX": _states(0),
    "TDH.MNG.INIT": _states(0),
    "TDH.MNG.RD": _states(*_INITIALIZED_ON),
    "TDH.MNG.WR": _states(1, 2, 3, 6, 7, 8, 9, 10),
    "TDH.MR.EXTEND": _states(1),
    "TDH.MR.FINALIZE": _states(1),
    "TDH.VP.CREATE": _states(1, 7),
    "TDH.VP.ADDCX": _states(1, 7),
    "TDH.VP.INIT": _states(1),
    "TDH.VP.RD": _states(*_INITIALIZED_ON),
    "TDH.VP.WR": _states(1, 2, 3, 6, 7, 8, 9, 10),
    "TDH.MEM.PAGE.ADD": _states(1),
    "TDH.MEM.PAGE.AUG": _states(1, 2, 3, 9),
    "TDH.MEM.PAGE.RELOCATE": _states(*_RESIZE),
    "TDH.MEM.PAGE.DEMOTE": _states(*_RESIZE),
    "TDH.MEM.PAGE.PROMOTE": _states(*_RESIZE),
    "TDH.MEM.PAGE.REMOVE": _states(*_RESIZE, 10),
    "TDH.MEM.SEPT.ADD": _states(1, 2, 3, 6, 7, 8, 9),
    "TDH.MEM.SEPT.REMOVE": _states(*_INITIALIZED_ON),
    "TDH.MEM.SEPT.RD": _states(*_INITIALIZED_ON),
    "TDH.MEM.RANGE.BLOCK": _states(*_RESIZE),
    "TDH.MEM.RANGE.UNBLOCK": _states(*_RESIZE),
    "TDH.MEM.TRACK": _states(*range(1, 10)),
    "TDH.MEM.RD": _states(*_INITIALIZED_ON),
    "TDH.MEM.WR": _states(1, 2, 3, 6, 7, 8, 9, 10),
    "TDH.EXPORT.ABORT": _states(3, 4, 5),
    "TDH.EXPORT.BLOCKW": _states(3),
    "TDH.EXPORT.RESTORE": _states(2),
    "TDH.EXPORT.MEM": _states(3, 4, 5),
    "TDH.EXPORT.PAUSE": _states(3),
    "TDH.EXPORT.TRACK": _states(3, 4),
    "TDH.EXPORT.STATE.IMMUTABLE": _states(2, 9),
    "TDH.EXPORT.STATE.TD": _states(4),
    "TDH.EXPORT.STATE.VP": _states(4),
    "TDH.EXPORT.UNBLOCKW": _states(2, 3, 4, 5),
    "TDH.IMPORT.ABORT": _states(6, 7, 8, 10),
    "TDH.IMPORT.END": _states(8, 9),
    "TDH.IMPORT.COMMIT": _states(8),
    "TDH.IMPORT.MEM": _states(6, 7, 8, 9),
    "TDH.IMPORT.TRACK": _states(6, 7),
    "TDH.IMPORT.STATE.IMMUTABLE": _states(0),
    "TDH.IMPORT.STATE.TD": _states(6),
    "TDH.IMPORT.STATE.VP": _states(7),
    "TDH.MIG.STREAM.CREATE": _states(0, 1, 2),
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


def wrong_state_1_0(leaf: str, state: S) -> Status:
    """What module 1.0 calls a state that `leaf` may not act on: free or not, leaf or not.

    UNSURE: a state that is wrong otherwise, as PENDING is for UNBLOCK, is EPT_ENTRY_STATE_INCORRECT as in 1.5. Reference 15.
    """
    wanted = NEXT_STATE[leaf]
    if S.FREE in wanted:
        return Status.TDX_EPT_ENTRY_NOT_FREE
    if state in (S.FREE, S.REMOVED):
        return Status.TDX_EPT_ENTRY_FREE
    if state.is_leaf and not any(other.is_leaf for other in wanted):
        return Status.TDX_EPT_ENTRY_LEAF
    if not state.is_leaf and all(other.is_leaf for other in wanted):
        return Status.TDX_EPT_ENTRY_NOT_LEAF
    return Status.TDX_EPT_ENTRY_STATE_INCORRECT
