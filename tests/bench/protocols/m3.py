"""M3, merge: one host thread promotes four small mappings, another converts child 0, vCPU 0 faults the missing child 3 in.

Merge: check the children, freeze the parent, freeze and recheck every child, TDH.MEM.RANGE.BLOCK, TRACK, IPI and wait,
TDH.MEM.PAGE.PROMOTE, publish; or undo. Every host thread holds the lock shared. Bug 1: the children are not rechecked after
the freeze. Bug 2: the undo restores one child too many (also a livelock: a present child that is not mapped faults for ever).
With `chk` the module refuses an incomplete range; without it only a removed page that is reached or merged counts.
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
    Until,
)

if TYPE_CHECKING:
    from sim import Cell, Kernel, Steps
    from tests.bench.protocols import World

CHILDREN = 4
LAST = CHILDREN - 1
"""The child that is missing at first."""
BIG = 1 << CHILDREN
"""The TLB's bit for the 2M translation; bit c is child c's."""


class Merge(Guests):
    """The words of M3, and who does what to them."""

    def __init__(self, k: Kernel, n: int, accesses: int, bug: int, chk: int) -> None:
        super().__init__(k, n)
        self.accesses = accesses
        self.bug = bug
        self.chk = chk
        self.parent = k.cell("parent", TABLE)
        self.child = [k.cell(f"child{c}", NONE if c == LAST else PRESENT) for c in range(CHILDREN)]
        self.sept = k.cell("sept", TABLE)
        self.sept_child = [k.cell(f"sept_child{c}", NONE if c == LAST else MAPPED) for c in range(CHILDREN)]
        self.converted = k.cell("converted", False)
        self.merge_blocked_at = k.cell("merge_blocked_at", 0)
        self.convert_blocked_at = k.cell("convert_blocked_at", 0)
        self.lock = k.rwlock("mmu_lock")
        self.tracking = [*self.in_guest, *self.entered_at]
        """The words by which the module knows whether a range is tracked."""

    # What the hardware and the module do in one step.

    def reaches_removed_page(self, c: int) -> bool:
        return c == 0 and self.sept.v == LEAF and self.converted.v

    def access(self, v: int, c: int) -> Atomic:
        """An instruction: what it meets, an IPI (which makes the vCPU leave), a hit, or what the walk ends in."""

        def step() -> str:
            if self.ipi[v].v:
                self.in_guest[v].v = self.ipi[v].v = False
                return "ipi"
            if self.tlb[v].v & (BIG | 1 << c):
                removed = self.sept.v == TABLE and self.tlb[v].v & 1 << c and self.sept_child[c].v == NONE
                if removed or self.reaches_removed_page(c):
                    self.k.find("stale-tlb", f"v{v} reads page {c} after it was removed")
                return "hit"
            if self.sept.v == LEAF:
                return "walked to leaf"
            if self.sept.v == TABLE and self.sept_child[c].v == MAPPED:
                return "walked to child"
            return "violation"

        words = [self.tlb[v], self.sept, self.sept_child[c], self.converted]
        return Atomic(f"access v{v}", step, reads=words, writes=[self.in_guest[v], self.ipi[v]])

    def fill_leaf(self, v: int, c: int) -> Atomic:
        def step() -> None:
            if self.reaches_removed_page(c):
                self.k.find("stale-tlb", f"v{v} reads page {c} after it was removed")
            self.tlb[v].v |= BIG

        return Atomic(f"fill v{v}", step, reads=[self.sept, self.converted], writes=[self.tlb[v]])

    def aug(self, c: int) -> Atomic:
        """Whether the page was added; busy while the range is blocked."""

        def step() -> bool:
            if self.sept.v != TABLE:
                return False
            if self.sept_child[c].v != NONE:
                self.k.find("kvm-bug", f"TDH.MEM.PAGE.AUG on child {c} in state {self.sept_child[c].v}")
            self.sept_child[c].v = MAPPED
            return True

        return Atomic("TDH.MEM.PAGE.AUG", step, reads=[self.sept], writes=[self.sept_child[c]])

    def require_tracked(self, leaf: str, blocked_at: Cell[int]) -> None:
        if self.untracked(blocked_at.v):
            self.k.find("kvm-bug", f"{leaf}: TDX_TLB_TRACKING_NOT_DONE")

    def block_range(self) -> Atomic:
        def step() -> None:
            self.sept.v = BLOCKED
            self.merge_blocked_at.v = self.epoch.v

        return Atomic(
            "TDH.MEM.RANGE.BLOCK", step, reads=[self.epoch], writes=[self.sept, self.merge_blocked_at]
        )

    def promote(self) -> Atomic:
        def step() -> None:
            self.require_tracked("TDH.MEM.PAGE.PROMOTE", self.merge_blocked_at)
            if self.chk and any(entry.v != MAPPED for entry in self.sept_child):
                self.k.find("kvm-bug", "TDH.MEM.PAGE.PROMOTE of an incomplete range")
            self.sept.v = LEAF

        reads = [*self.tracking, self.merge_blocked_at, *(self.sept_child if self.chk else [])]
        return Atomic("TDH.MEM.PAGE.PROMOTE", step, reads=reads, writes=[self.sept])

    def block_child(self) -> Atomic:
        def step() -> None:
            if self.chk and (self.sept.v, self.sept_child[0].v) != (TABLE, MAPPED):
                self.k.find("kvm-bug", f"TDH.MEM.RANGE.BLOCK on child 0 in state {self.sept_child[0].v}")
            self.sept_child[0].v = BLOCKED
            self.convert_blocked_at.v = self.epoch.v

        reads = [self.epoch, *([self.sept] if self.chk else [])]
        return Atomic(
            "TDH.MEM.RANGE.BLOCK", step, reads=reads, writes=[self.sept_child[0], self.convert_blocked_at]
        )

    def remove_child(self) -> Atomic:
        def step() -> None:
            self.require_tracked("TDH.MEM.PAGE.REMOVE", self.convert_blocked_at)
            self.sept_child[0].v = NONE
            self.converted.v = True

        reads = [*self.tracking, self.convert_blocked_at]
        return Atomic("TDH.MEM.PAGE.REMOVE", step, reads=reads, writes=[self.sept_child[0], self.converted])

    # The paths.

    def thaw(self, c: int) -> Until:
        """Nobody owns child c, or it is merged: its own word stays FROZEN below a leaf."""
        return Until(
            lambda: self.parent.v == LEAF or (self.parent.v == TABLE and self.child[c].v != FROZEN),
            [self.parent, self.child[c]],
        )

    def fault(self, v: int, c: int) -> Steps[bool]:
        """An EPT violation on page c; True if the guest learns that the page is shared now."""
        yield self.leave(v)
        yield self.lock.read_lock()
        entry = yield self.parent.read_once()
        if entry == TABLE:
            entry = yield self.child[c].read_once()
            if entry == NONE and c != 0 and (yield self.child[c].cmpxchg(NONE, FROZEN)) == NONE:
                added = yield self.aug(c)
                yield self.child[c].write_once(PRESENT if added else NONE)
        yield self.lock.read_unlock()
        if entry == FROZEN:
            yield self.thaw(c)
        return bool(entry == NONE and c == 0)

    def touch(self, v: int, c: int) -> Steps[None]:
        while True:
            yield self.enter(v)
            met = yield self.access(v, c)
            if met == "hit":
                return
            if met == "walked to leaf":
                yield self.fill_leaf(v, c)
                return
            if met == "walked to child":
                yield self.tlb[v].fetch_or(1 << c)
                return
            if met == "violation" and (yield from self.fault(v, c)):
                return

    def vcpu(self, v: int) -> Steps[None]:
        for turn in range(self.accesses):
            yield from self.touch(v, (LAST + v + turn) % CHILDREN)
            yield self.leave(v)

    def complete(self) -> Steps[bool]:
        for c in range(CHILDREN):
            if (yield self.child[c].read_once()) != PRESENT:
                return False
        return True

    def frozen_children(self) -> Steps[int]:
        """How many children could be frozen, one after the other."""
        for c in range(CHILDREN):
            if (yield self.child[c].cmpxchg(PRESENT, FROZEN)) != PRESENT:
                return c
        return CHILDREN

    def undo(self, frozen: int) -> Steps[None]:
        if self.bug == 2:
            yield self.child[frozen].write_once(PRESENT)
        for c in reversed(range(frozen)):
            yield self.child[c].write_once(PRESENT)
        yield self.parent.write_once(TABLE)

    def merger(self) -> Steps[None]:
        yield self.lock.read_lock()
        if (yield from self.complete()):
            if (yield self.parent.cmpxchg(TABLE, FROZEN)) != TABLE:
                self.k.find("overwrite", "the 2M entry was taken by somebody else")
            frozen = CHILDREN if self.bug == 1 else (yield from self.frozen_children())
            if frozen < CHILDREN:
                yield from self.undo(frozen)
            else:
                yield self.block_range()
                yield from self.shootdown()
                yield self.promote()
                yield self.parent.write_once(LEAF)
        yield self.lock.read_unlock()

    def convert(self) -> Steps[bool]:
        """Whether there is nothing left to do: child 0 is gone, or would need a split first."""
        yield self.lock.read_lock()
        entry = yield self.parent.read_once()
        if entry == TABLE:
            entry = yield self.child[0].read_once()
            if entry == PRESENT and (yield self.child[0].cmpxchg(PRESENT, FROZEN)) != PRESENT:
                entry = FROZEN
            elif entry == PRESENT:
                yield self.block_child()
                yield from self.shootdown()
                yield self.remove_child()
                yield self.child[0].write_once(NONE)
        yield self.lock.read_unlock()
        if entry == FROZEN:
            yield self.thaw(0)
        return bool(entry in {LEAF, PRESENT})

    def converter(self) -> Steps[None]:
        while True:
            if (yield from self.convert()):
                return

    def consistent(self) -> bool:
        if self.parent.peek() != self.sept.peek():
            return False
        if self.parent.peek() == LEAF:
            return not self.converted.peek()
        pairs = zip(self.child, self.sept_child, strict=True)
        return self.parent.peek() == TABLE and all(
            (entry.peek() == PRESENT) == (twin.peek() == MAPPED) for entry, twin in pairs
        )

    def start(self) -> None:
        """The threads, and what must be true at the end."""
        for v in range(self.n):
            self.k.thread(f"v{v}", self.vcpu(v))
        self.k.thread("merge", self.merger())
        self.k.thread("convert", self.converter())
        self.k.at_end("mirror and S-EPT agree, and no removed page is merged", self.consistent, "diverged")
        self.k.at_end("the lock is free", lambda: not self.lock.holders(), "lock-rule")


def world(n: int, *, accesses: int = 2, bug: int = 0, chk: int = 1) -> World:
    """`accesses`: how many each vCPU makes."""

    def fill(k: Kernel) -> None:
        Merge(k, n, accesses, bug, chk).start()

    return fill
