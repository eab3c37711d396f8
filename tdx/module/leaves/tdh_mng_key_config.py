"""TDH.MNG.KEY.CONFIG: program the TD's key into one package."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import Lifecycle, LogicalProcessor, package_of
from tdx.module.seamcall import lock_tdr, seamcall
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MNG.KEY.CONFIG", leaf=8, rcx="td")
def tdh_mng_key_config(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    lp: LogicalProcessor | None = None,
    package: int | None = None,
) -> Steps[SeamcallReturn]:
    """Configure the key on the package of the calling LP; on the last package the TD's keys are configured.

    Args:
        package: for callers that have no `lp` at hand; 0 if neither is given.
    KEY_GENERATION_FAILED comes by injection only. KEY_CONFIGURED is a warning. Source: tdh_mng_key_config.c; reference 6.1.
    """
    package = package_of(lp, package)
    tdr = yield from lock_tdr(held, td, Operand.RCX, exclusive=True)
    require(not tdr.fatal, Status.TDX_TD_FATAL)
    require(tdr.lifecycle is Lifecycle.HKID_ASSIGNED, Status.TDX_LIFECYCLE_STATE_INCORRECT)
    require(package in tdr.keys_missing, Status.TDX_KEY_CONFIGURED)
    yield from held.exclusive(module.ket_locks[package], Operand.KET)
    # All checks passed.
    tdr.keys_missing.discard(package)
    if not tdr.keys_missing:
        tdr.lifecycle = Lifecycle.KEYS_CONFIGURED
    return SUCCESS
