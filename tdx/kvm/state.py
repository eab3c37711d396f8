"""struct kvm_tdx: what KVM remembers of a TD (reference 1.1)."""

from __future__ import annotations

from enum import Enum

from mmu.vm import Kvm
from sim import Cell, Thread
from tdx.module import LogicalProcessor, SeamcallReturn, Status, Td, TdxModule
from tdx.module.status import Awaited
from vcpu.addresses import Pfn


class TdState(Enum):
    """kvm_tdx->state."""

    UNINITIALIZED = "TD_STATE_UNINITIALIZED"
    INITIALIZED = "TD_STATE_INITIALIZED"
    RUNNABLE = "TD_STATE_RUNNABLE"


def operand_busy(result: SeamcallReturn) -> bool:
    """tdx_operand_busy: the one status that KVM answers with another try. PREVIOUS_TLB_EPOCH_BUSY is a bug of its own."""
    return result.status is Status.TDX_OPERAND_BUSY


class KvmTdx:
    """One TD. `hkid` is -1 once it has been freed; `page_add_src` is set only inside one post-populate callback."""

    def __init__(self, kvm: Kvm, module: TdxModule, td: Td, hkid: int, lps: list[LogicalProcessor]) -> None:
        self.kvm = kvm
        self.module = module
        self.td = td
        self.hkid = hkid
        self.lps = lps
        self.state: Cell[TdState] = Cell("kvm_tdx.state", TdState.UNINITIALIZED)
        self.wait_for_sept_zap: Cell[bool] = Cell("kvm_tdx.wait_for_sept_zap", False)
        self.page_add_src: Pfn | None = None
        self.tdcs_pages: list[Pfn] = []
        self.tdvpr: dict[int, Pfn] = {}
        self.vcpu_pages: dict[int, list[Pfn]] = {}
        self.busy: dict[Thread, Awaited] = {}
        """What each thread's last busy SEAMCALL was about: the lock that was taken."""
        self.taken_by_host: set[int] = set()
        """Frames that host threads took from the guest unasked: touching one again may kill the TD, and nobody is to blame."""

    def note_busy(self, result: SeamcallReturn) -> None:
        """The running thread will try again: remember what it may wait for. An injected BUSY has no lock behind it."""
        thread = self.kvm.kernel.current
        self.busy.pop(thread, None)
        if result.awaited is not None:
            self.busy[thread] = result.awaited

    def awaited(self) -> Awaited | None:
        """What the running thread's last busy SEAMCALL was about; asked once."""
        return self.busy.pop(self.kvm.kernel.current, None)

    @property
    def hkid_assigned(self) -> bool:
        """is_hkid_assigned."""
        return self.hkid > 0

    def bug_on(self, result: SeamcallReturn, leaf: str) -> bool:
        """TDX_BUG_ON: a SEAMCALL that must not fail did."""
        if result.is_error:
            self.kvm.bug(f"{leaf} failed", status=str(result))
        return result.is_error
