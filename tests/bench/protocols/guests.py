"""What the worlds with guests (M2, M3) have in common: vCPUs that enter and leave, TLBs, the epoch, IPIs and the shootdown."""

from __future__ import annotations

from sim import Kernel, Steps
from tests.bench.protocols.words import Atomic


class Guests:
    """The words of `n` vCPUs, and what the hardware does to them in one step each."""

    def __init__(self, k: Kernel, n: int) -> None:
        self.k = k
        self.n = n
        self.epoch = k.cell("epoch", 0)
        self.in_guest = [k.cell(f"in_guest{v}", False) for v in range(n)]
        self.entered_at = [k.cell(f"entered_at{v}", 0) for v in range(n)]
        self.tlb = [k.cell(f"tlb{v}", 0) for v in range(n)]
        self.ipi = [k.cell(f"ipi{v}", False) for v in range(n)]

    def enter(self, v: int) -> Atomic:
        """VP.ENTER: a TLB of an older epoch is flushed."""

        def step() -> None:
            self.in_guest[v].v = True
            if self.entered_at[v].v != self.epoch.v:
                self.tlb[v].v = 0
                self.entered_at[v].v = self.epoch.v

        return Atomic(
            f"enter v{v}",
            step,
            reads=[self.epoch],
            writes=[self.in_guest[v], self.tlb[v], self.entered_at[v]],
        )

    def leave(self, v: int) -> Atomic:
        """A TD exit, which acknowledges an IPI."""

        def step() -> None:
            self.in_guest[v].v = self.ipi[v].v = False

        return Atomic(f"leave v{v}", step, writes=[self.in_guest[v], self.ipi[v]])

    def untracked(self, blocked_at: int) -> bool:
        """Whether a vCPU may still use what was blocked at this epoch."""
        return any(self.in_guest[v].v and self.entered_at[v].v <= blocked_at for v in range(self.n))

    def kick(self) -> Steps[None]:
        """IPI whoever is in the guest, and wait until they left."""
        for v in range(self.n):

            def step(v: int = v) -> None:
                if self.in_guest[v].v:
                    self.ipi[v].v = True

            yield Atomic(f"kick v{v}", step, reads=[self.in_guest[v]], writes=[self.ipi[v]])
        for v in range(self.n):
            yield self.ipi[v].wait_until(lambda sent: not sent)

    def shootdown(self) -> Steps[None]:
        """Advance the epoch (TDH.MEM.TRACK), then kick."""
        yield self.epoch.fetch_add(1)
        yield from self.kick()
