"""TDH.MNG.INIT: give the TD its parameters; from now on it can be built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import SEPT_ROOT_INDEX, SEPT_VE_DISABLE, Epoch
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept import SeptPage
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from vcpu.addresses import PG_LEVEL_256T, PG_LEVEL_512G

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MNG.INIT", leaf=21, rcx="td")
def tdh_mng_init(
    module: TdxModule,  # noqa: ARG001
    held: Held,
    *,
    td: Td,
    attributes: int = SEPT_VE_DISABLE,
    max_vcpus: int = 576,
    gpaw: bool = False,
) -> Steps[SeamcallReturn]:
    """Initialise the TDCS: epoch 1, nobody inside, op_state INITIALIZED.

    Args:
        attributes: TD attributes; with SEPT_VE_DISABLE a pending page is an exit, without it a #VE.
        gpaw: the shared bit is 51 and the S-EPT has five levels; else 47 and four.
    """
    tdr, tdcs = yield from lock_td(held, td, "TDH.MNG.INIT", Operand.RCX, exclusive=True)
    require(1 <= max_vcpus <= 0xFFFF and attributes >= 0, Status.TDX_OPERAND_INVALID, Operand.RDX)
    # All checks passed.
    root_level = PG_LEVEL_256T if gpaw else PG_LEVEL_512G
    tdcs.root = SeptPage(tdr.tdcx[SEPT_ROOT_INDEX], root_level, 0)
    tdcs.private_end = 1 << (51 if gpaw else 47)
    tdcs.attributes = attributes
    tdcs.pending_ve_disable = attributes & SEPT_VE_DISABLE != 0
    tdcs.max_vcpus = max_vcpus
    yield tdcs.epoch.write_once(Epoch(1, 0, 0))
    tdcs.op_state = OpState.INITIALIZED
    return SUCCESS
