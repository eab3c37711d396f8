"""Which words the threads share, and how long executions are: what `pct` and `surw` learn from those that have been made.

A word (a cell, a lock, a signal, an RCU domain) goes by its name, for it is a new object in every execution. It is *shared*
if two threads have touched it and one of them may have changed it: only there does the order of two steps matter.

The first executions teach most; after `LEARNING` of them only every `LEARNING_EVERY`-th is looked at.

Both strategies make threads wait for others, and a thread that polls would keep them waiting for ever. So one execution of
`WALK_EVERY`, the first among them, is a random walk: its length tells how long an execution is if nobody is starved. One that
has `OUTGROWN` times the steps of any walk goes on as a walk itself.
"""

from __future__ import annotations

from collections import Counter
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.access import Access
    from sim.kernel import Kernel
    from sim.thread import Thread

LEARNING = 64
LEARNING_EVERY = 8
WALK_EVERY = 32
OUTGROWN = 2

_target_of = attrgetter("target")


class Words:
    """What is known of the words of a world."""

    def __init__(self) -> None:
        self.shared: set[str] = set()
        self.counts: dict[str, dict[str, int]] = {}
        """{word: {thread: accesses}}, summed over the executions learnt from."""
        self.executions = 0
        """Those learnt from."""
        self.steps_limit = 0
        """The steps after which an execution has outgrown the walks."""
        self._changed: set[str] = set()

    def learn(self, kernel: Kernel, execution: int) -> None:
        """Learn from an execution that has ended, if it is one to learn from."""
        if is_walk(execution):
            self.steps_limit = max(self.steps_limit, OUTGROWN * kernel.steps)
        if execution >= LEARNING and execution % LEARNING_EVERY:
            return
        self.executions += 1
        targets = map(_target_of, kernel.accesses)
        made: Counter[tuple[Any, type[Access], Thread]] = Counter(
            zip(targets, map(type, kernel.accesses), kernel.picks, strict=True)
        )
        names: dict[Any, str] = {}
        for (target, kind, thread), times in made.items():
            if not touches(kind):
                continue
            name = names.get(target)
            if name is None:
                name = names[target] = str(target)
            by_thread = self.counts.setdefault(name, {})
            by_thread[thread.name] = by_thread.get(thread.name, 0) + times
            if kind.writes or not kind.reads:
                self._changed.add(name)
        self.shared = {name for name in self._changed if len(self.counts[name]) > 1}


def is_walk(execution: int) -> bool:
    """Whether this execution is to be a random walk."""
    return execution % WALK_EVERY == 0


class Chosen(dict[Any, bool]):
    """Whether a target is one of these words; worked out once a target."""

    def __init__(self, words: set[str]) -> None:
        super().__init__()
        self._words = words

    def __missing__(self, target: Any) -> bool:
        chosen = self[target] = str(target) in self._words
        return chosen


def touches(access: Access | type[Access]) -> bool:
    """Whether it looks at its target or changes it; starts, ends and resumptions do not."""
    return access.reads or access.writes or access.acquires


__all__ = ["OUTGROWN", "Chosen", "Words", "is_walk", "touches"]
