"""Dependence: which accesses commute, said by each operation itself, for searches that reorder them.

An access *touches* keys (names of words, locks, domains), each in a mode. Two accesses of different threads are dependent
if they touch one key in modes that conflict: two `READ`s commute, two `UPDATE`s commute (each changes the key, and the
order of the changes shows nowhere), everything else conflicts. `Access.touches()` is known before the access happens and
is an upper bound; `Access.touched()` is what it came to (a failed cmpxchg only reads). An access that says nothing but
reads or writes touches `EVERYTHING`: slow, never wrong.

A *gate* is what a thread may have to wait for without the moment of its arrival counting. A queued lock admits in the
order of arrival, so arrivals conflict (two readers do not), and a release commutes with every arrival: whoever arrived
second goes on after it, whether it stood in line or found the lock free. So a gate is a section that is opened and closed,
and a wait for the sections opened before; what follows the wait happens after they were closed. Locks, RCU and join are
gates. A wait on a word or a signal is none: there the moment of arrival does count.

A plain call that looks at shared state inside another access's step, or changes it, says so by `note`; `Cell.peek` does so
itself. That holds for observers, too: a checker's verdict depends on what it looks at. Whoever changes a word without an
access of its own also calls `Cell.notify`. tests/litmus/test_independent_steps_commute.py holds the model to all this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

READ = 0
UPDATE = 1
WRITE = 2

Touch = tuple[str, int]

ALL = "*"
EVERYTHING: tuple[Touch, ...] = ((ALL, WRITE),)
"""What an access touches that does not say what it touches."""


class Gate(NamedTuple):
    """The part an access plays at a gate.

    `waits` for the sections of `target` opened before (a reader only for those opened for write), then `opens` or
    `closes` one of its own. `exclusive` is the mode of the wait and of the section.
    """

    target: Any
    waits: bool = False
    opens: bool = False
    closes: bool = False
    exclusive: bool = False


class Notes:
    """Where plain calls say what they touched; `taken` is None while nobody wants to know."""

    taken: list[Touch] | None = None


def note(key: str, mode: int) -> None:
    """The running step touches `key` beside what its access declares."""
    if Notes.taken is not None:
        Notes.taken.append((key, mode))


def unnoted(look: Callable[[], T]) -> T:
    """What `look` returns; that it looked is nobody's business (a predicate over the whole world)."""
    taken, Notes.taken = Notes.taken, None
    try:
        return look()
    finally:
        Notes.taken = taken


def conflict(one: tuple[Touch, ...], two: tuple[Touch, ...]) -> bool:
    """Whether two accesses with these touches are dependent."""
    if len(one) > MANY and len(two) > MANY:
        return _conflict_of_many(one, two)
    for key, mode in one:
        for other_key, other_mode in two:
            if (key == other_key or ALL in {key, other_key}) and (mode != other_mode or mode == WRITE):
                return True
    return False


MANY = 16
"""Two accesses that each touch more than so many keys are compared by a table."""


def _conflict_of_many(one: tuple[Touch, ...], two: tuple[Touch, ...]) -> bool:
    """The same in linear time: an access to a whole table of words touches hundreds."""
    modes: dict[str, set[int]] = {}
    for key, mode in one:
        modes.setdefault(key, set()).add(mode)
    every = set().union(*modes.values())
    for key, mode in two:
        others = every if key == ALL else modes.get(key, set()) | modes.get(ALL, set())
        if others and (mode == WRITE or others != {mode}):
            return True
    return False
