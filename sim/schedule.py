"""Schedules as text: the list of picks by thread name, written as deviations from `fifo`.

A schedule is a sequence of words. `v0` is one pick of thread v0, `v0*4` four of them, `+12` twelve picks as `fifo` would
make them. After the last word `fifo` goes on, so the empty schedule is the timing run.
"""

from __future__ import annotations

from itertools import groupby

from sim.kernel import ModelBug

FIFO = ""
"""The name that stands for "as fifo would pick" in a parsed schedule."""


class BadSchedule(ValueError):
    """A schedule's text cannot be read. Args: one sentence with the word and what was expected."""


def parse(text: str) -> list[tuple[str, int]]:
    """Read a schedule: (thread name or FIFO, how often).

    Raises: BadSchedule: a word that is neither `name`, `name*count` nor `+count`.
    """
    picks = []
    for word in text.split():
        name, _, times = word.rpartition("*") if "*" in word else (word, "", "1")
        if word.startswith("+"):
            name, times = FIFO, word[1:]
        if not times.isdigit() or int(times) < 1 or (not name and not word.startswith("+")):
            raise BadSchedule(
                f"{word!r} is no pick: write a thread's name, `name*4`, or `+12` for twelve picks by fifo"
            )
        picks.append((name, int(times)))
    return picks


def text(picks: list[str], by_fifo: list[str]) -> str:
    """Write picks (thread names) as deviations from what fifo would have picked at the same points."""
    if len(picks) != len(by_fifo):
        raise ModelBug("a schedule needs fifo's pick for every pick")
    words = [FIFO if pick == fifo else pick for pick, fifo in zip(picks, by_fifo, strict=True)]
    runs = [(name, len(list(run))) for name, run in groupby(words)]
    if runs and runs[-1][0] == FIFO:
        runs.pop()
    return " ".join(f"+{n}" if name == FIFO else name if n == 1 else f"{name}*{n}" for name, n in runs)
