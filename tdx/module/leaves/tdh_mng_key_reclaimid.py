"""TDH.MNG.KEY.RECLAIMID: does nothing; hosts of module 1.0 call it between VPFLUSHDONE and CACHE.WB."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.seamcall import seamcall
from tdx.module.status import SUCCESS, SeamcallReturn

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MNG.KEY.RECLAIMID", leaf=27, rcx="td")
def tdh_mng_key_reclaimid(
    module: TdxModule,
    held: Held,  # noqa: ARG001
    *,
    td: Td,  # noqa: ARG001 - not even looked at
) -> Steps[SeamcallReturn]:
    """Always succeeds, whatever RCX is. Source: tdh_mng_key_reclaimid.c; reference 6.1."""
    yield module.state.read_once()  # a call always is a step
    return SUCCESS
