"""The wait-for graph: who waits for whom, through locks, grace periods, joins and acknowledgements.

A blocked thread waits for *all* threads that its target names: the holders of a lock, the readers inside an RCU domain
that a grace period began with, the thread that is joined, whoever owes an acknowledgement. A queued lock is fair, so a
waiter also waits for the waiters in front of it (two readers in a row do not wait for each other). Since every edge is
needed, a cycle is a deadlock, whatever the other threads do. A wait on a word or a plain signal ends the graph: anybody
may change a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sim.locks import READ, Lock
from sim.thread import Thread

if TYPE_CHECKING:
    from sim.access import Access


def waits_for(thread: Thread) -> list[Thread]:
    """Whom a blocked thread waits for; nobody, if it is not blocked or anybody may wake it."""
    access = thread.blocked_on
    if access is None or thread.done or thread.ready:
        return []
    target = access.target
    if isinstance(target, Thread):
        return [] if target.done else [target]
    if isinstance(target, Lock):
        return _in_front(target, thread)
    holders = getattr(access, "awaited", None) or getattr(target, "holders", None)
    return [other for other in holders() if not other.done] if holders is not None else []


def _in_front(lock: Lock, thread: Thread) -> list[Thread]:
    found = [holder for holder in lock.holders() if not holder.done]
    waiting = list(lock.queue)
    at = next((n for n, (waiter, _) in enumerate(waiting) if waiter is thread), 0)
    mode = waiting[at][1] if waiting else READ
    if mode is READ and lock.writer is None:
        found = []  # readers inside do not keep a reader out; the writer in front of it does
    found += [waiter for waiter, wanted in waiting[:at] if not (wanted is READ and mode is READ)]
    return found


def cycle(threads: Iterable[Thread]) -> list[Thread]:
    """Threads that wait for each other in a ring, each for the next and the last for the first; [] if there are none."""
    clear: set[Thread] = set()
    for start in threads:
        path: list[Thread] = []
        found = _search(start, path, clear)
        if found:
            return found
    return []


def _search(thread: Thread, path: list[Thread], clear: set[Thread]) -> list[Thread]:
    if thread in path:
        return path[path.index(thread) :]
    if thread in clear:
        return []
    path.append(thread)
    for other in waits_for(thread):
        found = _search(other, path, clear)
        if found:
            return found
    path.pop()
    clear.add(thread)
    return []


def describe(ring: list[Thread]) -> str:
    """`a: write-lock y, held by b; b: synchronize srcu, held by a`."""
    links = zip(ring, [*ring[1:], *ring[:1]], strict=True)
    return "; ".join(f"{thread}: {_wait(thread.blocked_on)}, held by {other}" for thread, other in links)


def _wait(access: Access | None) -> str:
    return repr(access)
