"""What can be the case around one S-EPT entry and its parent, as far as any leaf can tell.

Two places are looked at: a 4K entry below a 2M one (`level` 4K), and a 2M entry below a 1G one (`level` 2M). A state says what a leaf
on either of the two can find: the TD's op_state, both entries' states, whether what is blocked is also tracked, the 511 neighbours
(PROMOTE looks at them), the table below a 2M entry if there is one, and a vCPU that is inside. Frame numbers, epoch numbers and
whatever else no leaf asks for is left out.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from tdx.module.sept_states import OpState
from tdx.module.septe import SeptState
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, PgLevel

TABLES = (SeptState.NL_MAPPED, SeptState.NL_BLOCKED)
TEARDOWN = "TEARDOWN"
STAYS = (OpState.INITIALIZED, OpState.RUNNABLE)


class Age(IntEnum):
    """How BEPOCH of a blocked mapping stands to TD_EPOCH."""

    NEW = 0
    """Blocked in this epoch: not tracked."""
    PREVIOUS = 1
    """Blocked in the epoch before: tracked once nobody is inside from there."""
    OLD = 2
    """Blocked before that: tracked. Told apart from PREVIOUS only while a vCPU is inside from the previous epoch."""
    NONE = 3
    """Not blocked."""


class Guest(IntEnum):
    """The vCPU that is inside, if one is."""

    OUTSIDE = 0
    CURRENT = 1
    """It entered in this epoch."""
    PREVIOUS = 2
    """It entered in the epoch before: the next TRACK is refused."""


class State(NamedTuple):
    """One state of the place. `entry`, `below` and `rest` are None where there is no table that they could stand in."""

    level: PgLevel
    phase: str
    """An op_state's name, or TEARDOWN."""
    parent: SeptState
    parent_age: Age = Age.NONE
    entry: SeptState | None = None
    entry_age: Age = Age.NONE
    rest: SeptState | None = None
    """The other 511 entries of the table: FREE, or all like the children of one large page, MAPPED or PENDING."""
    in_stride: bool = True
    """Whether the entry maps the page that belongs to its place among such neighbours."""
    below: SeptState | None = None
    """All 512 entries below a 2M entry that is a table."""
    guest: Guest = Guest.OUTSIDE
    bw_age: Age = Age.NONE
    """How BW_EPOCH stands to TD_EPOCH, where EXPORT.MEM would ask: the TD runs, and the entry is write-blocked and not sent."""

    @property
    def op_state(self) -> OpState:
        """The TD's op_state; a TD that is torn down keeps the one it had."""
        return OpState.RUNNABLE if self.phase == TEARDOWN else OpState[self.phase]

    @property
    def is_migrating(self) -> bool:
        """Whether only a TD that migrates, or has tried to, can be in it."""
        found = (self.parent, self.entry)
        return self.op_state not in STAYS or any(part is not None and part.is_migration for part in found)

    def __str__(self) -> str:
        words = [self.phase, _named(self.parent, self.parent_age)]
        if self.entry is not None:
            words.append(_named(self.entry, self.entry_age))
        if self.rest is not None and self.rest is not SeptState.FREE:
            words.append(f"among 511 {self.rest.name}" + ("" if self.in_stride else ", elsewhere"))
        if self.below is not None:
            words.append(f"over 512 {self.below.name}")
        if self.bw_age is not Age.NONE:
            words.append(f"write-blocking {self.bw_age.name.lower()}")
        if self.guest:
            words.append(
                "guest inside" + (" since the previous epoch" if self.guest is Guest.PREVIOUS else "")
            )
        return f"{self.level.short} " + " / ".join(words)


def _named(state: SeptState, age: Age) -> str:
    return state.name if age is Age.NONE else f"{state.name} ({age.name.lower()})"


def sort_key(state: State) -> tuple[int | str, ...]:
    """A fixed order of states."""
    return (
        int(state.level),
        state.phase == TEARDOWN,
        int(state.op_state),
        *(str(part.public) if isinstance(part, SeptState) else str(part) for part in state[2:]),
    )


LEVELS = (PG_LEVEL_4K, PG_LEVEL_2M)
