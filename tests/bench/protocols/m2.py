"""M2, split: the host demotes a 2M mapping and then converts child 0, against n vCPUs with TLBs of their own.

Host: freeze the 2M entry, TDH.MEM.RANGE.BLOCK, TDH.MEM.TRACK, IPI and wait, TDH.MEM.PAGE.DEMOTE, publish; then freeze child 0,
block, track, TDH.MEM.PAGE.REMOVE. A vCPU's walk and its TLB fill are two steps, and the fill makes the access; its TLB is
flushed when it enters after the epoch moved. Bug 1: no shootdown. Bug 2: shootdown before BLOCK. Bug 3: kick before TRACK.
With `chk` the module refuses what is not tracked yet; without it only an access through a stale translation counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.protocols.guests import Guests
from tests.bench.protocols.words import (
    BLOCKED,
    FROZEN,
    LEAF,
    MAPPED,
    NONE,
    PRESENT,
    TABLE,
    Atomic,
    thawed,
)

if TYPE_CHECKING:
    from sim import Kernel, Steps
    from tests.bench.protocols import World

PAGES = 2
BIG = 1 << PAGES
"""The TLB's bit for the 2M translation; bit c is child c's."""


class Split(Guests):
    """The words of M2, and who does what to them."""

    def __init__(self, k: Kernel, n: int, accesses: int, bug: int, chk: int) -> None:
        super().__init__(k, n)
        self.accesses = accesses
        self.bug = bug
        self.chk = chk
        self.parent = k.cell("parent", LEAF)
        self.child = [k.cell(f"child{c}", NONE) for c in range(PAGES)]
        self.sept = k.cell("sept", LEAF)
        self.sept_child = [k.cell(f"sept_child{c}", NONE) for c in range(PAGES)]
        self.blocked_at = k.cell("blocked_at", 0)
        self.lock = k.rwlock("mmu_lock")
        self.tracking = [*self.in_guest, *self.entered_at, self.blocked_at] if self.chk else []
        """The words by which the module knows whether a range is tracked."""

    # What the hardware and the module do in one step.

    def access(self, v: int, c: int) -> Atomic:
        """An instruction: what it meets, an IPI (which makes the vCPU leave), a hit, or what the walk ends in."""

        def step() -> str:
            if self.ipi[v].v:
                self.in_guest[v].v = self.ipi[v].v = False
                return "ipi"
            if self.tlb[v].v & (BIG | 1 << c):
                if self.sept.v == TABLE and (self.tlb[v].v & BIG or self.sept_child[c].v == NONE):
                    self.k.find(
                        "stale-tlb", f"v{v} reads page {c} through a translation that was promised away"
                    )
                return "hit"
            if self.sept.v == LEAF:
                return "walked to leaf"
            if self.sept.v == TABLE and self.sept_child[c].v == MAPPED:
                return "walked to child"
            return "violation"

        return Atomic(
            f"access v{v}",
            step,
            reads=[self.tlb[v], self.sept, self.sept_child[c]],
            writes=[self.in_guest[v], self.ipi[v]],
        )

    def block(self, entry_is_leaf: bool) -> Atomic:
        def step() -> None:
            if entry_is_leaf:
                self.sept.v = BLOCKED
            else:
                if self.sept_child[0].v != MAPPED:
                    self.k.find("kvm-bug", f"TDH.MEM.RANGE.BLOCK on child 0 in state {self.sept_child[0].v}")
                self.sept_child[0].v = BLOCKED
            self.blocked_at.v = self.epoch.v

        entry = self.sept if entry_is_leaf else self.sept_child[0]
        return Atomic("TDH.MEM.RANGE.BLOCK", step, reads=[self.epoch], writes=[entry, self.blocked_at])

    def require_tracked(self, leaf: str) -> None:
        if self.chk and self.untracked(self.blocked_at.v):
            self.k.find("kvm-bug", f"{leaf}: TDX_TLB_TRACKING_NOT_DONE")

    def demote(self) -> Atomic:
        def step() -> None:
            self.require_tracked("TDH.MEM.PAGE.DEMOTE")
            self.sept.v = TABLE
            for c in range(PAGES):
                self.sept_child[c].v = MAPPED
                self.child[c].v = PRESENT

        return Atomic(
            "TDH.MEM.PAGE.DEMOTE",
            step,
            reads=self.tracking,
            writes=[self.sept, *self.sept_child, *self.child],
        )

    def remove(self) -> Atomic:
        def step() -> None:
            self.require_tracked("TDH.MEM.PAGE.REMOVE")
            self.sept_child[0].v = NONE

        return Atomic("TDH.MEM.PAGE.REMOVE", step, reads=self.tracking, writes=[self.sept_child[0]])

    # The paths.

    def fault(self, v: int, c: int) -> Steps[bool]:
        """An EPT violation on page c; True if the guest learns that the page is shared now."""
        yield self.leave(v)
        yield self.lock.read_lock()
        entry = yield self.parent.read_once()
        watched = self.parent
        if entry == TABLE:
            entry = yield self.child[c].read_once()
            watched = self.child[c]
        yield self.lock.read_unlock()
        if entry == FROZEN:
            yield watched.wait_until(thawed)
        return bool(entry == NONE)

    def touch(self, v: int, c: int) -> Steps[None]:
        while True:
            yield self.enter(v)
            met = yield self.access(v, c)
            if met == "hit":
                return
            if met in {"walked to leaf", "walked to child"}:
                yield self.tlb[v].fetch_or(BIG if met == "walked to leaf" else 1 << c)
                return
            if met == "violation" and (yield from self.fault(v, c)):
                return

    def vcpu(self, v: int) -> Steps[None]:
        for turn in range(self.accesses):
            yield from self.touch(v, (v + turn) % PAGES)
            yield self.leave(v)

    def split(self) -> Steps[None]:
        yield self.lock.read_lock()
        if (yield self.parent.cmpxchg(LEAF, FROZEN)) != LEAF:
            self.k.find("overwrite", "the 2M entry was taken by somebody else")
        if self.bug == 2:
            yield from self.shootdown()
        yield self.block(entry_is_leaf=True)
        if self.bug == 0:
            yield from self.shootdown()
        elif self.bug == 3:
            yield from self.kick()
            yield self.epoch.fetch_add(1)
        yield self.demote()
        yield self.parent.write_once(TABLE)
        yield self.lock.read_unlock()

    def convert(self) -> Steps[None]:
        yield self.lock.read_lock()
        if (yield self.child[0].cmpxchg(PRESENT, FROZEN)) != PRESENT:
            self.k.find("overwrite", "child 0 was taken by somebody else")
        yield self.block(entry_is_leaf=False)
        yield from self.shootdown()
        yield self.remove()
        yield self.child[0].write_once(NONE)
        yield self.lock.read_unlock()

    def host(self) -> Steps[None]:
        yield from self.split()
        yield from self.convert()

    def start(self) -> None:
        """The threads, and what must be true at the end."""
        for v in range(self.n):
            self.k.thread(f"v{v}", self.vcpu(v))
        self.k.thread("host", self.host())
        self.k.at_end(
            "the range is split and child 0 is gone",
            lambda: (self.parent.peek(), self.sept.peek(), self.child[0].peek()) == (TABLE, TABLE, NONE),
            "diverged",
        )
        self.k.at_end("the lock is free", lambda: not self.lock.holders(), "lock-rule")


def world(n: int, *, accesses: int = 2, bug: int = 0, chk: int = 1) -> World:
    """`accesses`: how many each vCPU makes."""

    def fill(k: Kernel) -> None:
        Split(k, n, accesses, bug, chk).start()

    return fill
