"""TDH.PHYMEM.CACHE.WB: write back the caches of a package, for key ids about to be freed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.interrupts import InterruptTest
from tdx.module.objects import HkidState, LogicalProcessor, package_of
from tdx.module.seamcall import seamcall
from tdx.module.status import SUCCESS, Operand, Refused, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule

SUB_BLOCKS = 8
"""How many parts the write-back has here; the CPU says how many it really are."""
RESUME = 1
"""Command: go on where an interrupt ended the call; 0 starts anew."""


@seamcall("TDH.PHYMEM.CACHE.WB", leaf=40, cost="", rcx="resume")
def tdh_phymem_cache_wb(
    module: TdxModule,
    held: Held,
    *,
    resume: int = 0,
    lp: LogicalProcessor | None = None,
    package: int | None = None,
) -> Steps[SeamcallReturn]:
    """Clear this package's bit of the key ids that were FLUSHED when the write-back started.

    INTERRUPTED_RESUMABLE between two sub-blocks when an interrupt waits for `lp`; the host then calls with `resume` on the
    same package. A start forgets what was to be resumed, also if it finds nothing to do.
    Args:
        resume: the command, 0 or 1 (or a bool).
        lp: who calls; without one no interrupt comes.
        package: for callers that have no `lp` at hand; 0 if neither is given.
    Source: tdh_phymem_cache_wb.c; reference 6.1, 9.3.
    """
    require(0 <= resume <= RESUME, Status.TDX_OPERAND_INVALID, Operand.RCX)
    package = package_of(lp, package)
    yield from held.exclusive(module.wbt_locks[package], Operand.WBCACHE)
    kot = module.kot
    yield from held.shared(kot.lock, Operand.KOT)
    if not resume:
        flushed = frozenset(hkid for hkid, key in kot.hkids.items() if key.state is HkidState.FLUSHED)
        module.wb_saved[package] = (0, flushed) if flushed else None
        require(bool(flushed), Status.TDX_NO_HKID_READY_TO_WBCACHE)
    saved = module.wb_saved[package]
    if saved is None:
        raise Refused(Status.TDX_WBCACHE_RESUME_ERROR)
    # All checks passed.
    done, hkids = saved
    kernel = module.kernel
    step_ns = kernel.costs.draw("tdh_phymem_cache_wb") // SUB_BLOCKS if kernel.costs is not None else 0
    while True:
        kernel.spend(step_ns)
        done += 1
        if done == SUB_BLOCKS:
            break
        if lp is not None and (yield InterruptTest(lp.interrupt_pending)):
            module.wb_saved[package] = (done, hkids)
            return SeamcallReturn(Status.TDX_INTERRUPTED_RESUMABLE)
    module.wb_saved[package] = None
    for hkid in sorted(hkids):
        kot.hkids[hkid].to_write_back.discard(package)
    return SUCCESS
