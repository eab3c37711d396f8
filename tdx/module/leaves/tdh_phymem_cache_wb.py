"""TDH.PHYMEM.CACHE.WB: write back the caches of a package, for key ids about to be freed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.interrupts import InterruptTest
from tdx.module.objects import HkidState
from tdx.module.seamcall import seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule


SUB_BLOCKS = 8
"""How many times the real, far finer interruptibility is offered here."""


def _never() -> bool:
    return False


@seamcall("TDH.PHYMEM.CACHE.WB", leaf=40, cost="", rcx="resume")
def tdh_phymem_cache_wb(
    module: TdxModule,
    held: Held,
    *,
    package: int = 0,
    resume: bool = False,
    interrupt_pending: Callable[[], bool] = _never,
) -> Steps[SeamcallReturn]:
    """Clear this package's bit of the key ids that were FLUSHED when the write-back started. Reference 6.1.

    INTERRUPTED_RESUMABLE between sub-blocks when an interrupt waits; the host then calls with `resume` on this package.
    """
    yield from held.exclusive(module.wbt_locks[package], Operand.WBCACHE)
    kot = module.kot
    yield from held.shared(kot.lock, Operand.KOT)
    flushed = frozenset(
        number
        for number, hkid in kot.hkids.items()
        if hkid.state is HkidState.FLUSHED and package in hkid.to_write_back
    )
    saved = module.wb_saved[package]
    if resume:
        require(saved is not None, Status.TDX_WBCACHE_RESUME_ERROR)
    else:
        require(bool(flushed), Status.TDX_NO_HKID_READY_TO_WBCACHE)
    # All checks passed.
    done, hkids = saved if resume and saved is not None else (0, flushed)
    kernel = module.kernel
    step_ns = kernel.costs.draw("tdh_phymem_cache_wb") // SUB_BLOCKS if kernel.costs is not None else 0
    while True:
        kernel.spend(step_ns)
        done += 1
        if done == SUB_BLOCKS:
            break
        if (yield InterruptTest(interrupt_pending)):
            module.wb_saved[package] = (done, hkids)
            return SeamcallReturn(Status.TDX_INTERRUPTED_RESUMABLE)
    module.wb_saved[package] = None
    for number in sorted(hkids):
        kot.hkids[number].to_write_back.discard(package)
    return SUCCESS
