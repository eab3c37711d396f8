"""Wakeup trees: which continuations are still to be explored from a place of the search.

A tree is a list of branches, tried from the left; each path is a sequence of steps that must be run from that place. No
sequence is put in that begins, up to the order of independent steps, like one that is there already.
Source: Abdulla, Aronis, Jonsson, Sagonas, JACM 2017, section 6 (wakeup trees, weak initials).
"""

from __future__ import annotations

from typing import NamedTuple


class Branch:
    """A node of a wakeup tree: a thread to be scheduled, what its step touches, and what is to follow."""

    __slots__ = ("children", "print_", "thread")

    def __init__(self, thread: int, print_: int) -> None:
        self.thread = thread
        self.print_ = print_
        self.children: list[Branch] = []


class Entry(NamedTuple):
    """A step of a sequence: `before` are those that happen before it, `bit` is its own."""

    thread: int
    print_: int
    before: int
    bit: int


def insert(branches: list[Branch], sequence: list[Entry], conflicts: list[int]) -> None:
    """Put a sequence into a tree, unless one is there that it can be reordered to begin with.

    Going down, a branch fits if its thread's first step can come first in what is left of the sequence, or if its step is
    independent of all that is left (it is a weak initial). A leaf that fits covers the sequence: all that follows it will be
    explored.
    """
    bits = 0
    for entry in sequence:
        bits |= entry.bit
    while True:
        for branch in branches:
            thread = branch.thread
            found = next((k for k, entry in enumerate(sequence) if entry.thread == thread), -1)
            if found >= 0:
                if sequence[found].before & bits:
                    continue
                bits &= ~sequence[found].bit
                sequence = sequence[:found] + sequence[found + 1 :]
            elif any(conflicts[branch.print_] >> entry.print_ & 1 for entry in sequence):
                continue
            break
        else:
            break
        if not sequence or not branch.children:
            return
        branches = branch.children
    for entry in sequence:
        branch = Branch(entry.thread, entry.print_)
        branches.append(branch)
        branches = branch.children
