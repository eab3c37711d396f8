"""M1, fault against zap: n vCPUs fault the same two private pages, a zapper removes them.

A vCPU faults under the shared lock: cmpxchg to FROZEN, TDH.MEM.PAGE.AUG, publish. The zapper removes page 0 under the shared
lock (freezing it by cmpxchg) and page 1 under the exclusive lock. Bug 1: the fault freezes by a plain store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.bench.protocols.words import BLOCKED, FROZEN, MAPPED, NONE, PRESENT, thawed

if TYPE_CHECKING:
    from sim import Cell, Kernel, Steps
    from tests.bench.protocols import World

PAGES = 2


class FaultAgainstZap:
    """The words of M1, and who does what to them."""

    def __init__(self, k: Kernel, n: int, bug: int) -> None:
        self.k = k
        self.n = n
        self.bug = bug
        self.mirror = [k.cell(f"mirror{p}", NONE) for p in range(PAGES)]
        self.sept = [k.cell(f"sept{p}", NONE) for p in range(PAGES)]
        self.lock = k.rwlock("mmu_lock")

    def seamcall(self, leaf: str, entry: Cell[int], expect: int, new: int) -> Steps[None]:
        seen = yield entry.xchg(new)
        if seen != expect:
            self.k.find("kvm-bug", f"{leaf} on {entry} in state {seen}")

    def fault(self, p: int) -> Steps[bool]:
        """Whether page p is mapped now; if not, try again."""
        yield self.lock.read_lock()
        old = yield self.mirror[p].read_once()
        if old == FROZEN:
            yield self.lock.read_unlock()
            yield self.mirror[p].wait_until(thawed)
            return False
        if old == NONE:
            if self.bug == 1:
                yield self.mirror[p].write_once(FROZEN)
            elif (yield self.mirror[p].cmpxchg(NONE, FROZEN)) != NONE:
                yield self.lock.read_unlock()
                return False
            yield from self.seamcall("TDH.MEM.PAGE.AUG", self.sept[p], NONE, MAPPED)
            yield self.mirror[p].write_once(PRESENT)
        yield self.lock.read_unlock()
        return True

    def vcpu(self, i: int) -> Steps[None]:
        for turn in range(PAGES):
            while True:
                if (yield from self.fault((i + turn) % PAGES)):
                    break

    def remove(self, p: int) -> Steps[None]:
        """Take a frozen page away."""
        yield from self.seamcall("TDH.MEM.RANGE.BLOCK", self.sept[p], MAPPED, BLOCKED)
        yield from self.seamcall("TDH.MEM.PAGE.REMOVE", self.sept[p], BLOCKED, NONE)
        yield self.mirror[p].write_once(NONE)

    def zap_shared(self, p: int) -> Steps[bool]:
        yield self.lock.read_lock()
        old = yield self.mirror[p].read_once()
        if old == FROZEN:
            yield self.lock.read_unlock()
            yield self.mirror[p].wait_until(thawed)
            return False
        if old == PRESENT:
            if (yield self.mirror[p].cmpxchg(PRESENT, FROZEN)) != PRESENT:
                yield self.lock.read_unlock()
                return False
            yield from self.remove(p)
        yield self.lock.read_unlock()
        return True

    def zap_exclusive(self, p: int) -> Steps[None]:
        yield self.lock.write_lock()
        old = yield self.mirror[p].read_once()
        if old != NONE:
            if old != PRESENT:
                self.k.find("overwrite", f"{self.mirror[p]} is {old} under the exclusive lock")
            yield self.mirror[p].write_once(FROZEN)
            yield from self.remove(p)
        yield self.lock.write_unlock()

    def zapper(self) -> Steps[None]:
        for p in range(PAGES):
            if p % 2:
                yield from self.zap_exclusive(p)
            else:
                while True:
                    if (yield from self.zap_shared(p)):
                        break

    def agree(self, entry: Cell[Any], twin: Cell[Any]) -> bool:
        return (entry.peek(), twin.peek()) in {(PRESENT, MAPPED), (NONE, NONE)}

    def start(self) -> None:
        """The threads, and what must be true at the end."""
        for i in range(self.n):
            self.k.thread(f"v{i}", self.vcpu(i))
        self.k.thread("zap", self.zapper())
        self.k.at_end(
            "mirror and S-EPT agree",
            lambda: all(self.agree(entry, twin) for entry, twin in zip(self.mirror, self.sept, strict=True)),
            "diverged",
        )
        self.k.at_end("the lock is free", lambda: not self.lock.holders(), "lock-rule")


def world(n: int, *, accesses: int = 2, bug: int = 0, chk: int = 1) -> World:
    """`accesses` and `chk` belong to the other two models."""

    def fill(k: Kernel) -> None:
        FaultAgainstZap(k, n, bug).start()

    return fill
