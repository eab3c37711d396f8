"""Schedules as text: the list of picks by thread name, written as deviations from `fifo`.

A schedule is a sequence of words. `v0` is one pick of thread v0, `v0*4` four of them, `+12` twelve picks as `fifo` would
make them. After the last word `fifo` goes on, so the empty schedule is the timing run.
"""

from __future__ import annotations

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
    """Write picks (thread names) in the fewest words, leaving to fifo what it would have picked at the same points."""
    if len(picks) != len(by_fifo):
        raise ModelBug("a schedule needs fifo's pick for every pick")
    end = len(picks)
    while end and picks[end - 1] == by_fifo[end - 1]:
        end -= 1
    words = []
    at = 0
    while at < end:  # the longest word that fits here is always one of a shortest text
        name = picks[at]
        as_fifo = next((i for i in range(at, end) if picks[i] != by_fifo[i]), end) - at
        as_thread = next((i for i in range(at, end) if picks[i] != name), end) - at
        at += max(as_fifo, as_thread)
        if as_fifo >= as_thread:
            words.append(f"+{as_fifo}")
        else:
            words.append(name if as_thread == 1 else f"{name}*{as_thread}")
    return " ".join(words)
