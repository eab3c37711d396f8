"""The three protocol worlds of `tests/bench/peers/`, written on `sim`: fault against zap, split, merge.

Same threads, words and steps as the SPIN models (`*.pml`) and the Harmony models (`*.hny`): one step is one shared access, one
lock operation or one SEAMCALL; a read and the branch on it are one step. Three things differ, all of them on purpose:

- The lock is the kernel's queued rwlock, where a waiting writer holds back new readers; the peers' locks have no line.
- A retry that met FROZEN waits for that word to change (`wait_until`) before it starts again; the peers spin.
- Every thread begins with a step of its own, which touches nothing.

A broken promise is a finding. `ROWS` are the rows of `configs.txt`, `build` makes the world of one.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

from sim.kernel import Kernel

World = Callable[[Kernel], None]


class Row(NamedTuple):
    """One measurement: which model, how many vCPUs, accesses of each, planted bug (0: none), the module's own checks."""

    model: str
    n: int
    accesses: int
    bug: int
    chk: int

    def __str__(self) -> str:
        """`m2 N=3 A=2 bug 0 chk 1`."""
        accesses = "" if self.model == "m1" else f" A={self.accesses}"
        chk = "" if self.model == "m1" else f" chk {self.chk}"
        return f"{self.model} N={self.n}{accesses} bug {self.bug}{chk}"


ROWS = (
    *(Row("m1", n, 2, bug, 1) for bug in (0, 1) for n in (2, 3, 4)),
    *(Row("m2", n, accesses, 0, 1) for n, accesses in ((2, 2), (3, 2), (4, 1))),
    *(Row("m2", n, 2, bug, 0) for bug in (1, 2, 3) for n in (2, 3, 4)),
    *(Row("m3", n, 2, 0, 1) for n in (1, 2, 3)),
    *(Row("m3", n, 2, bug, 0) for bug in (1, 2) for n in (1, 2, 3)),
)
"""The 27 rows of `tests/bench/peers/configs.txt`, in its order; a test holds the two together."""


def build(row: Row) -> World:
    """The world of a row."""
    module = import_module(f"tests.bench.protocols.{row.model}")
    world: World = module.world(row.n, accesses=row.accesses, bug=row.bug, chk=row.chk)
    return world
