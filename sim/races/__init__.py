"""Data races: two accesses of one word that nothing orders, at least one a write and at least one plain.

`attach(kernel)` watches an execution while it runs; `replay` takes the same steps from a log. Both go through the same
handlers, one an operation, so both give the same answer. What orders (*happens before*):

- the steps of one thread; the making of a thread and its start; a thread's end and who joins it;
- a lock's release and the next acquisition: a writer is ordered with everybody, readers only with writers;
- a store-release or a read-modify-write, and the load-acquire, `wait_until` or read-modify-write that reads from it. A
  failed cmpxchg only acquires. A plain or marked store in between breaks the chain: there are no release sequences;
- full barriers, as in the kernel's memory model: a marked store after a read-modify-write publishes what came before that,
  and a read-modify-write acquires what the marked loads before it have seen;
- setting a signal and the wait that takes it; an interrupt's sender and its handler, each handler and the sender that
  waits for all of them;
- RCU and SRCU: a read section that was open at, or ended before, the start of a grace period, and the end of that; the
  start and every read section that begins later; queueing a callback and the grace period that is waited for on its behalf.

Two marked accesses never race (KCSAN's rule, Documentation/dev-tools/kcsan.rst). The first race of a word is always found;
which of several accesses of one thread is named with it, is not promised.

Not modelled: dependencies (an rcu_dereference orders nothing: publish by store-release or a read-modify-write, and read by
`load_acquire`); smp_wmb and smp_rmb between marked accesses (a step has no barriers of its own; where the kernel relies on
them with plain accesses, the pair is declared in `benign`); memory that is freed and made anew is a new word; what plain
calls do without an access.
Source: Flanagan, Freund, PLDI 2009; tools/memory-model/Documentation/explanation.txt; the barriers are treated as C11's
fences are in Serebryany's ThreadSanitizer.
"""

from sim.races.detector import Detector, attach
from sim.races.log import Facts, FactTeller, LoggedStep, LoggedSync, replay
from sim.races.ops import OPS
from sim.races.report import Benign, family

__all__ = [
    "OPS",
    "Benign",
    "Detector",
    "FactTeller",
    "Facts",
    "LoggedStep",
    "LoggedSync",
    "attach",
    "family",
    "replay",
]
