"""What an access does to the order of things, in one word. The same words are in recorded logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.access import Access, Cell
from sim.kernel import Join
from sim.locks import READ, WRITE, Acquire, Release
from sim.rcu import Enter, Leave, Synchronize
from sim.signals import Await, Expire, Raise

NOTHING = "none"
"""It orders nothing and touches no word, or what it orders is said by a plain call (`sim.syncs`)."""

OPS = (
    NOTHING, "plain-read", "read", "load-acquire", "plain-write", "write", "store-release", "rmw", "take-read", "take-write",
    "drop-read", "drop-write", "rcu-enter", "rcu-leave", "rcu-synchronize", "join", "await", "await-take", "time-out",
    "acquire", "release",
)  # fmt: skip

Word = str | Callable[[Any], str]
"""One of `OPS`, or how to tell it from the access itself."""


def op_of(access: Access) -> str:
    """The word for an access that has happened, or that has blocked its thread."""
    word = word_of(access)
    return word if isinstance(word, str) else word(access)


def word_of(access: Access) -> Word:
    """The word for all accesses of this one's class, or how to tell it for each of them."""
    kind = access.__class__
    known = _known.get(kind)
    if known is None:
        known = _known[kind] = _classify(access)
    return known


_TAKE = {READ: "take-read", WRITE: "take-write"}
_DROP = {READ: "drop-read", WRITE: "drop-write"}


def _take(access: Any) -> str:
    return _TAKE[access.mode]


def _drop(access: Any) -> str:
    return _DROP[access.mode]


def _conditional(access: Access) -> str:
    """A failed cmpxchg is a load that acquires: the kernel's model promises less, x86's locked instruction more."""
    return "rmw" if access.wrote else "load-acquire"


def _await(access: Any) -> str:
    return "await-take" if access.take else "await"


_BY_CLASS: tuple[tuple[type[Access], Word], ...] = (
    (Acquire, _take),
    (Release, _drop),
    (Enter, "rcu-enter"),
    (Leave, "rcu-leave"),
    (Synchronize, "rcu-synchronize"),
    (Join, "join"),
    (Await, _await),
    (Expire, "time-out"),
    (Raise, NOTHING),
)
_known: dict[type[Access], Word] = {}


def _classify(access: Access) -> Word:
    for kind, word in _BY_CLASS:
        if isinstance(access, kind):
            return word
    if not isinstance(access.target, Cell):
        return "acquire" if access.acquires else "release" if access.releases else NOTHING
    if access.reads and access.writes:
        return "rmw" if access.__class__.wrote is Access.wrote else _conditional
    if access.writes:
        return "store-release" if access.releases else "write" if access.marked else "plain-write"
    if access.reads:
        return "load-acquire" if access.acquires else "read" if access.marked else "plain-read"
    return NOTHING
