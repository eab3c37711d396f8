"""What of a world's concurrency was exercised: orders of conflicting accesses, and pairs of places that conflicted.

Two views of the same thing. `order_of_conflicts` is a number for the *class* of an execution, the unit of the Good-Turing
estimate: executions of one class differ only in the order of accesses that commute. `Pairs` is what a person can read: which
place of the model was followed by which other place of another thread, on which kind of word. A pair that never shows up is
a race that the search never tried.

What commutes is what `sim.dependence` says; nothing is known of words that plain calls look at (`sim.dependence.note`), and
an access that does not say what it touches counts as a write of its target. Both only make the view coarser or finer; no
verdict depends on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import CodeType
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.access import Access, CellAccess
from sim.dependence import ALL, READ, UPDATE, WRITE, Touch
from sim.thread import short_path

if TYPE_CHECKING:
    from sim.kernel import Kernel
    from sim.thread import Thread

_ASKED = 3
_NOTHING = 4

_modes: dict[type[Access], int] = {}
"""How the accesses of a class touch their target: `READ` or `WRITE` if all alike, `_ASKED` if each must be asked, `_NOTHING`."""


def _mode(kind: type[Access]) -> int:
    if kind.touched is not Access.touched or kind.touches not in {Access.touches, CellAccess.touches}:
        mode = _ASKED
    elif kind.touches is CellAccess.touches:
        mode = WRITE if kind.writes else READ
    else:
        mode = WRITE if kind.reads or kind.writes else _NOTHING
    _modes[kind] = mode
    return mode


def touched(access: Access) -> tuple[tuple[Any, int], ...]:
    """What an access that was performed came to touch, with its target in place of "everything"."""
    touches: tuple[Touch, ...] = access.touched()
    return tuple((access.target if key == ALL else key, mode) for key, mode in touches)


def order_of_conflicts(picks: Sequence[Thread], accesses: Sequence[Access]) -> int:
    """The same number for two executions that differ only in the order of accesses that commute.

    It is a hash of what each thread met: for every access, how often its word had been changed before. That tells which
    change each read sees and how the changes of one word are ordered, and nothing else.

    Args:
        picks: who made each step; `accesses`: what it was, after it happened.
    """
    versions: dict[Any, int] = {}
    met: list[list[int]] = [[] for _ in range(1 + max([thread.index for thread in picks], default=-1))]
    modes = _modes
    for thread, access in zip(picks, accesses, strict=True):
        kind = type(access)
        mode = modes[kind] if kind in modes else _mode(kind)
        if mode == READ:
            met[thread.index].append(versions.get(access.target, 0))
        elif mode == WRITE:
            target = access.target
            version = versions.get(target, 0)
            met[thread.index].append(version)
            versions[target] = version + 1
        elif mode == _ASKED:
            for key, how in touched(access):
                word = access.target if key == str(access.target) else key
                version = versions.get(word, 0)
                if how != UPDATE:
                    met[thread.index].append(version)
                # Updates commute: what matters to others is how many each thread has made.
                if how != READ:
                    versions[word] = version + (1 if how == WRITE else 1 << 20 * (thread.index + 1))
    return hash(tuple([tuple(versions_met) for versions_met in met]))  # of ints: the same in every process


class Pair(NamedTuple):
    """Two places, `file:line function`, of two threads, whose accesses to a word of this family conflicted in this order."""

    first: str
    second: str
    family: str

    def __str__(self) -> str:
        return f"{self.first} -> {self.second} on {self.family}"


_Place = tuple[CodeType, int]


class _Word:
    """The latest accesses to one word: those that commute with each other, and the group before them."""

    __slots__ = ("before", "family", "latest", "mode")

    def __init__(self, family: str) -> None:
        self.family = family
        self.mode = READ
        self.latest: dict[tuple[int, _Place], None] = {}
        self.before: dict[tuple[int, _Place], None] = {}


class Pairs:
    """Which places were followed by which, in conflict: a check that is put on the kernels of the executions to be looked at.

    It looks at every step's stack, which costs about as much as the step: put it on a sample of the executions.
    """

    def __init__(self) -> None:
        from sim.races import family  # noqa: PLC0415 - a large module, and few searches come here

        self._family = family
        self._counts: dict[tuple[_Place, _Place, str], int] = {}
        self._words: dict[Any, _Word] = {}

    def attach(self, kernel: Kernel) -> None:
        """Watch one more execution; its world is being filled."""
        self._words = {}
        kernel.check(self)

    @property
    def counts(self) -> dict[Pair, int]:
        """How often each pair was seen, in the order of the pairs."""
        counts: dict[Pair, int] = {}
        for (first, second, family), times in self._counts.items():
            pair = Pair(_text(first), _text(second), family)
            counts[pair] = counts.get(pair, 0) + times
        return dict(sorted(counts.items()))

    def __call__(self, kernel: Kernel, thread: Thread, access: Access) -> None:
        touches = touched(access)
        if not touches:
            return
        place = _place(thread)
        if place is None:
            return
        for key, mode in touches:
            word = self._words.get(key)
            if word is None:
                word = self._words[key] = _Word(self._family(str(key)))
            commutes = mode == word.mode and mode != WRITE
            if not commutes:
                word.before, word.latest, word.mode = word.latest, {}, mode
            for other, other_place in word.before:
                if other != thread.index:
                    pair = (other_place, place, word.family)
                    self._counts[pair] = self._counts.get(pair, 0) + 1
            word.latest[(thread.index, place)] = None


def _place(thread: Thread) -> _Place | None:
    """Where the thread yielded what it has just done."""
    steps: Any = thread._generator
    frame = None
    while steps is not None:
        inner = getattr(steps, "gi_frame", None)
        if inner is None:
            break
        frame = inner
        steps = steps.gi_yieldfrom
    return None if frame is None else (frame.f_code, frame.f_lineno)


def _text(place: _Place) -> str:
    code, line = place
    return f"{short_path(code.co_filename)}:{line} {code.co_name}"


__all__ = ["Pair", "Pairs", "order_of_conflicts", "touched"]
