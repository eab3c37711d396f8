"""Sequences of accesses that are performed one at a time, by hand: what a debugger's `step` is to a program.

The kernel of the world never runs; a `Running` is a thread that only we move. Between two of its accesses others may be moved:
that is all it takes to see two calls in each other's way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from sim import BLOCKED, ModelBug, Steps, Thread
from sim.access import Access, Cell
from tdx.module.septe import TDEL
from tdx.module.sharex import Sharex, SharexHp

if TYPE_CHECKING:
    from sim import Kernel

STEPS_MAX = 1_000_000
"""Accesses of one call: more than any leaf makes, so a model that loops is told and not waited for."""


class Performed(NamedTuple):
    """One access that happened: what it was, on which word, and the word before and after (both None if it has no word)."""

    access: Access
    before: Any
    after: Any

    @property
    def verb(self) -> str:
        """What was done, in the model's words."""
        return str(getattr(self.access, "name", "") or self.access.verb)

    @property
    def cell(self) -> Cell[Any] | None:
        """The word."""
        return self.access.target if isinstance(self.access.target, Cell) else None


class Attempt(NamedTuple):
    """A try for a lock: the word, the mode, and whether it was won."""

    cell: Cell[Any]
    mode: str
    won: bool


def attempt_of(done: Performed) -> Attempt | None:
    """The try for a lock that the access was, if it was one."""
    cell = done.cell
    if isinstance(cell, Sharex | SharexHp):
        if done.verb == "try shared":
            return Attempt(cell, "shared", cell.is_shareable(done.before))
        if done.verb == "try exclusive":
            return Attempt(cell, "exclusive", cell.is_free(done.before))
        if done.verb == "promote" and isinstance(cell, SharexHp):
            return Attempt(cell, "exclusive", cell.is_single_reader(done.before))
    elif cell is not None and is_entry(cell) and done.after & TDEL:
        if not done.before & TDEL:
            return Attempt(cell, "exclusive", won=True)
        if "lock" in done.verb.replace("unlock", ""):
            return Attempt(cell, "exclusive", won=False)
    return None


def is_entry(cell: Cell[Any]) -> bool:
    """Whether the word is an S-EPT entry."""
    return cell.name.startswith("sept[")


def held(performed: Iterable[Performed]) -> dict[str, str]:
    """What whoever made these accesses still holds: lock to mode, in the order it was taken."""
    modes: dict[str, list[str]] = {}
    for done in performed:
        cell = done.cell
        if cell is None:
            continue
        attempt = attempt_of(done)
        if attempt is not None and attempt.won:
            mine = modes.setdefault(cell.name, [])
            if done.verb == "promote":
                mine.pop()
            mine.append(attempt.mode)
        elif cell.name in modes and (
            done.verb.startswith("unlock") or (is_entry(cell) and not done.after & TDEL)
        ):
            modes[cell.name].pop()
            if not modes[cell.name]:
                del modes[cell.name]
    return {name: mine[-1] for name, mine in modes.items()}


class Running:
    """A call in the middle. `pending` is the access that comes next; None once it has returned its `result`."""

    def __init__(self, kernel: Kernel, name: str, steps: Steps[Any]) -> None:
        self.kernel = kernel
        self.thread = Thread(kernel, name, steps, -1, daemon=True)
        self.pending: Access | None = None
        self.result: Any = None
        self.performed: list[Performed] = []
        self._send(None)

    @property
    def returned(self) -> bool:
        """Whether it is over."""
        return self.pending is None

    def step(self) -> Performed:
        """Perform the pending access, and go on to the next one."""
        access = self.pending
        assert access is not None, "it has returned"
        if len(self.performed) > STEPS_MAX:
            raise ModelBug(f"{self.thread} does not come to an end")
        self.kernel.current = self.thread
        cell = access.target if isinstance(access.target, Cell) else None
        before = cell.peek() if cell is not None else None
        value = access.perform(self.thread)
        if value is BLOCKED:
            raise ModelBug(f"{self.thread} waits for {access!r}")
        access._value = value
        done = Performed(access, before, cell.peek() if cell is not None else value)
        self.performed.append(done)
        self._send(value)
        return done

    def _send(self, value: Any) -> None:
        self.kernel.current = self.thread
        try:
            following = self.thread.send(value)
            assert isinstance(following, Access), f"{self.thread} yielded {following!r}"
            self.pending = following
        except StopIteration as stop:
            self.pending = None
            self.result = stop.value
        finally:
            self.kernel.current = None
