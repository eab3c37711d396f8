"""The concurrency laboratory: threads, shared words, locks, time and search. It knows nothing of KVM, TDX or x86.

What is modelled. A *thread* (`sim.thread`) is a SimPy process whose every `yield` is exactly one atomic *access*
(`sim.access`) to shared state; the access is the only place where another thread may run, and the place comes before the
access. A *cell* is one machine word. Locks, RCU and wake-ups (`sim.locks`, `sim.rcu`, `sim.signals`) are accesses too. The
*kernel* (`sim.kernel`) has one clock in integer nanoseconds and one dial, `window_ns`: how far from time order a step may
be picked. A *strategy* (`sim.strategies`, one file each) picks. `explore` runs a world many times and reports findings,
each with a schedule (`sim.schedule`) that replays it.

What is not. Store buffers (the memory model is sequential consistency; x86-TSO will sit behind `Write`), weak-memory
reordering, preemption inside an access, real parallelism: one process, one step at a time.

Who may import whom: sim imports none of the other packages; everybody imports sim. The event log is loaded when it is asked
for: a bug is often found sooner than that takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.access import BLOCKED, TIMED_OUT, Access, Cell, Steps, free_cell
from sim.explore import Report, explore, record
from sim.findings import Broken, Finding
from sim.kernel import INFINITY, Kernel, ModelBug
from sim.locks import Lock, Mutex, RwLock, SpinLock
from sim.patches import BadPatch, replaces
from sim.rcu import Rcu, Srcu
from sim.schedule import BadSchedule
from sim.signals import Signal
from sim.thread import Thread

if TYPE_CHECKING:
    from sim.events import Event, EventLog

__all__ = [
    "BLOCKED",
    "INFINITY",
    "TIMED_OUT",
    "Access",
    "BadPatch",
    "BadSchedule",
    "Broken",
    "Cell",
    "Event",
    "EventLog",
    "Finding",
    "Kernel",
    "Lock",
    "ModelBug",
    "Mutex",
    "Rcu",
    "Report",
    "RwLock",
    "Signal",
    "SpinLock",
    "Srcu",
    "Steps",
    "Thread",
    "explore",
    "free_cell",
    "record",
    "replaces",
]


def __getattr__(name: str) -> Any:
    """`Event` and `EventLog`."""
    if name in {"Event", "EventLog"}:
        from sim import events  # noqa: PLC0415 - that is the point

        return getattr(events, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
