"""What an access does to the order of things, in one word. The same words are in recorded logs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.access import Access, Cell
from sim.kernel import Join
from sim.locks import Acquire, Release
from sim.rcu import Enter, Leave, Synchronize
from sim.signals import Await, Raise

NOTHING = "none"
"""It orders nothing and touches no word, or what it orders is said by a plain call (`sim.syncs`)."""

OPS = (
    NOTHING, "plain-read", "read", "load-acquire", "plain-write", "write", "store-release", "rmw", "take-read", "take-write",
    "drop-read", "drop-write", "rcu-enter", "rcu-leave", "rcu-synchronize", "join", "await", "await-take", "acquire",
    "release",
)  # fmt: skip


def op_of(access: Access) -> str:
    """The word for an access that has happened, or that has blocked its thread."""
    kind = access.__class__
    known = _known.get(kind)
    if known is None:
        known = _known[kind] = _classify(access)
    return known if isinstance(known, str) else known(access)


def depends_on_more_than_class(kind: type[Access]) -> bool:
    """Whether two accesses of this class may have different words. Asked after `op_of` has seen one."""
    return not isinstance(_known[kind], str)


def _rmw(access: Access) -> str:
    """A failed cmpxchg is a load that acquires: the kernel's model promises less, x86's locked instruction more."""
    return "rmw" if access.wrote else "load-acquire"


def _await(access: Any) -> str:
    return "await-take" if access.take else "await"


_BY_CLASS: tuple[tuple[type[Access], str | Callable[[Any], str]], ...] = (
    (Acquire, lambda access: f"take-{access.mode}"),
    (Release, lambda access: f"drop-{access.mode}"),
    (Enter, "rcu-enter"),
    (Leave, "rcu-leave"),
    (Synchronize, "rcu-synchronize"),
    (Join, "join"),
    (Await, _await),
    (Raise, NOTHING),
)
_known: dict[type[Access], str | Callable[[Any], str]] = {}


def _classify(access: Access) -> str | Callable[[Any], str]:
    for kind, word in _BY_CLASS:
        if isinstance(access, kind):
            return word
    if not isinstance(access.target, Cell):
        return "acquire" if access.acquires else "release" if access.releases else NOTHING
    if access.reads and access.writes:
        return _rmw
    if access.writes:
        return "store-release" if access.releases else "write" if access.marked else "plain-write"
    if access.reads:
        return "load-acquire" if access.acquires else "read" if access.marked else "plain-read"
    return NOTHING
