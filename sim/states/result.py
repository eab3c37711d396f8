"""What a search is allowed, and what it saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Path = list[tuple[int, bool]]
"""Who steps, and whether that step is a grant, which the kernel makes part of another."""


@dataclass(slots=True)
class Result:
    """What a search saw."""

    states: int = 0
    steps: int = 0
    ends: int = 0
    """States in which no thread can move."""
    limited: bool = False
    met: set[str] = field(default_factory=set)
    paths: list[Path] = field(default_factory=list)
    """One to each thing found; the last thread's step, or the state reached, shows it."""
    sample: Path = field(default_factory=list)
    """One to an end at which nothing was found."""
    rounds: int = 1
    """How often the search was made, because the threads turned out to do more than was known."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When to end before everything has been seen: at so many states, at the first thing found, when `stop` says so."""

    states: int | None = None
    stop_at_first: bool = False
    stop: Callable[[], bool] = lambda: False
