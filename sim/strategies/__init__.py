"""Strategies: who goes next. One file each, behind three methods.

A strategy lives through a search: `begin` opens an execution (or says that there is nothing left to try), `pick` chooses
among the candidates of each step, `end` sees the finished execution. It may look at what every candidate would do next
(`thread.pending`): nothing has happened yet.

A strategy may say more about itself, each by one attribute that `explore` asks for (the defaults are what it takes when
there is none):

- `exhaustive = False`: whether `begin` returning False means that every interleaving has been covered. Without a limit
  from the caller such a search goes on until then.
- `redundant = False`: whether the execution that just ended was covered by others. Such a strategy raises `StopExecution`
  in `pick`; the execution is counted, but not as complete.
- `label`: who picked in this execution, for strategies that are several.
- `witnessing = False`: whether all that is left are the few executions that show what has been found: no limit of time ends
  these.
- `claim() -> str`: what its executions so far guarantee, in numbers; `bounds()`: the same as numbers that add up.

Executions of a strategy that draws at random draw from streams of their own, one an execution: any of them can be made
alone. Those that learn from earlier executions (`pct`, `surw`) say so; they repeat if all executions are made in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from sim.access import Access
    from sim.kernel import Kernel
    from sim.strategies.dpor import Root
    from sim.thread import Thread

NAMES = (
    "fifo",
    "random",
    "replay:SCHEDULE",
    "pct:DEPTH",
    "pos",
    "surw[:CELL]",
    "dfs[:PREEMPTIONS]",
    "dpor[:values]",
    "states[:LIMIT]",
    "exhaustive",
    "pruned",
    "portfolio",
)
"""What there is to choose from, as the error message lists it."""


class Strategy(Protocol):
    """What `explore` asks of a strategy."""

    complete_after: ClassVar[int | None]
    """How many executions are all there is to see (1 for deterministic ones), or None."""

    def begin(self, kernel: Kernel, execution: int) -> bool:
        """Prepare for the next execution, numbered from 0; False when there is nothing left to try."""

    def pick(self, kernel: Kernel, candidates: Sequence[Thread]) -> int:
        """Index of the candidate that takes the next step. Candidates are never empty and in a reproducible order."""

    def end(self, kernel: Kernel) -> None:
        """The execution has ended; `kernel` holds its findings."""


def first_by_time(candidates: Sequence[Thread]) -> int:
    """What `fifo` picks: the earliest due, ties as the seed has drawn them."""
    return min(range(len(candidates)), key=lambda i: (candidates[i].due_ns, candidates[i].tie))


def may_write(access: Access) -> bool:
    """Whether it changes its target: as it did if it has happened, else as it might."""
    return access.wrote if access.processed else access.writes


def strategy(text: str, seed: int, root: Root | None = None) -> Strategy:
    """Make a strategy from its name; with `root`, one that searches only that part of the tree.

    Raises: ValueError: no strategy of that name (the message lists those there are), or it has no parts.
    """
    if root is not None:
        from sim.strategies.dpor_split import part  # noqa: PLC0415

        return part(text, root)
    name, colon, argument = text.partition(":")
    make = _MAKERS.get(name)
    made = make(seed, argument) if make is not None and (argument or not colon or name == "replay") else None
    if made is None:
        raise ValueError(f"no strategy {text!r}: there are {', '.join(NAMES)}")
    return made


# Makers, by name: each takes the seed and what stands behind the colon, and gives None where it has no such argument. They
# import the strategy when it is asked for, not above: the strategies import this module, and a search needs one of them.


def _fifo(_seed: int, argument: str) -> Strategy | None:
    from sim.strategies.fifo import Fifo  # noqa: PLC0415

    return Fifo() if not argument else None


def _random(seed: int, argument: str) -> Strategy | None:
    from sim.strategies.random import Random  # noqa: PLC0415

    return Random(seed) if not argument else None


def _replay(_seed: int, argument: str) -> Strategy:
    from sim.strategies.replay import Replay  # noqa: PLC0415

    return Replay(argument)


def _pct(seed: int, argument: str) -> Strategy | None:
    from sim.strategies.pct import Pct  # noqa: PLC0415

    return Pct(seed, int(argument)) if argument.isdecimal() and int(argument) >= 1 else None


def _pos(seed: int, argument: str) -> Strategy | None:
    from sim.strategies.pos import Pos  # noqa: PLC0415

    return Pos(seed) if not argument else None


def _surw(seed: int, argument: str) -> Strategy:
    from sim.strategies.surw import Surw  # noqa: PLC0415

    return Surw(seed, argument)


def _dfs(_seed: int, argument: str) -> Strategy | None:
    from sim.strategies.dfs import Dfs  # noqa: PLC0415

    if not argument:
        return Dfs()
    return Dfs(int(argument)) if argument.isdecimal() else None


def _dpor(_seed: int, argument: str) -> Strategy | None:
    from sim.strategies.dpor import dpor  # noqa: PLC0415

    return dpor(argument)


def _states(_seed: int, argument: str) -> Strategy | None:
    from sim.strategies.states import States  # noqa: PLC0415

    if not argument:
        return States()
    return States(int(argument)) if argument.isdecimal() and int(argument) >= 1 else None


def _exhaustive(seed: int, argument: str) -> Strategy | None:
    from sim.strategies.exhaustive import Exhaustive  # noqa: PLC0415

    return Exhaustive(seed) if not argument else None


def _pruned(_seed: int, argument: str) -> Strategy | None:
    from sim.strategies.pruned import Pruned  # noqa: PLC0415

    return Pruned() if not argument else None


def _portfolio(seed: int, argument: str) -> Strategy | None:
    from sim.strategies.portfolio import Portfolio  # noqa: PLC0415

    return Portfolio(seed) if not argument else None


_MAKERS: dict[str, Callable[[int, str], Strategy | None]] = {
    "fifo": _fifo,
    "random": _random,
    "replay": _replay,
    "pct": _pct,
    "pos": _pos,
    "surw": _surw,
    "dfs": _dfs,
    "dpor": _dpor,
    "states": _states,
    "exhaustive": _exhaustive,
    "pruned": _pruned,
    "portfolio": _portfolio,
}
