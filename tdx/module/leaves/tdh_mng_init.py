"""TDH.MNG.INIT: give the TD its parameters; from now on it can be built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.objects import (
    ATTRIBUTES,
    CONFIG_FLAGS,
    DEBUG,
    GPAW,
    HP_LOCK_TIMEOUT_NS,
    L2_SEPT_ROOT_INDEX,
    L2_VMS_MAX,
    MIGRATABLE,
    PERFMON,
    SEPT_ROOT_INDEX,
    SEPT_VE_DISABLE,
    TDCX_PAGES,
    Epoch,
)
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.sept import SeptPage
from tdx.module.sept_states import OpState
from tdx.module.status import SUCCESS, Operand, SeamcallReturn, Status, require
from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_256T, PG_LEVEL_512G

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


TD_PARAMS_BYTES = 1024


@seamcall("TDH.MNG.INIT", leaf=21, rcx="td", rdx="params_hpa")
def tdh_mng_init(
    module: TdxModule,
    held: Held,
    *,
    td: Td,
    params_hpa: int = 0,
    attributes: int = SEPT_VE_DISABLE,
    max_vcpus: int = 576,
    gpaw: bool = False,
    num_l2_vms: int = 0,
    config_flags: int = 0,
) -> Steps[SeamcallReturn]:
    """Initialise the TDCS: epoch 1, nobody inside, op_state INITIALIZED.

    The real module reads its parameters (TD_PARAMS) from a shared page; here they are arguments, beside the page's address.
    Args:
        params_hpa: where they would be: shared, a multiple of 1024.
        attributes: TD attributes; with SEPT_VE_DISABLE a pending page is an exit, without it a #VE. A migratable TD can be
            neither debugged nor profiled.
        gpaw: the GPAW flag, said by itself.
        num_l2_vms: L2 VMs, at most 3; each needs one more TDCX page, its S-EPT root.
        config_flags: `objects.CONFIG_FLAGS`.
    Not modelled: XFAM, EPTP controls, TSC frequency, CPUID configuration. Source: tdh_mng_init.c,
    read_and_set_td_configurations; reference 6.1.
    """
    config_flags |= GPAW if gpaw else 0
    tdr, tdcs = yield from lock_td(held, td, "TDH.MNG.INIT", Operand.RCX, exclusive=True)
    require(
        params_hpa % TD_PARAMS_BYTES == 0 and module.kot.is_shared(params_hpa >> PAGE_SHIFT),
        Status.TDX_OPERAND_INVALID,
        Operand.RDX,
    )
    require(_may_have(attributes), Status.TDX_OPERAND_INVALID, Operand.ATTRIBUTES)
    require(1 <= max_vcpus <= 0xFFFF, Status.TDX_OPERAND_INVALID, Operand.MAX_VCPUS)
    require(0 <= num_l2_vms <= L2_VMS_MAX, Status.TDX_OPERAND_INVALID, Operand.NUM_L2_VMS)
    require(len(tdr.tdcx) >= TDCX_PAGES + num_l2_vms, Status.TDX_TDCS_NOT_ALLOCATED)
    require(not config_flags & ~CONFIG_FLAGS, Status.TDX_OPERAND_INVALID, Operand.EXEC_CONTROLS)
    # All checks passed.
    wide = config_flags & GPAW != 0
    root_level = PG_LEVEL_256T if wide else PG_LEVEL_512G
    tdcs.root = SeptPage(tdr.tdcx[SEPT_ROOT_INDEX], root_level, 0)
    tdcs.num_l2_vms = num_l2_vms
    tdcs.l2_roots = [
        SeptPage(tdr.tdcx[L2_SEPT_ROOT_INDEX + vm - 1], root_level, 0, vm) for vm in range(1, num_l2_vms + 1)
    ]
    tdcs.private_end = 1 << (51 if wide else 47)
    tdcs.attributes = attributes
    tdcs.config_flags = config_flags
    tdcs.notify_enables = 0
    tdcs.pending_ve_disable = attributes & SEPT_VE_DISABLE != 0
    tdcs.max_vcpus = max_vcpus
    tdcs.hp_lock_timeout_ns = HP_LOCK_TIMEOUT_NS
    yield tdcs.epoch.write_once(Epoch(1, 0, 0))
    tdcs.op_state = OpState.INITIALIZED
    return SUCCESS


def _may_have(attributes: int) -> bool:
    if attributes & ~ATTRIBUTES:
        return False
    return not (attributes & MIGRATABLE and attributes & (DEBUG | PERFMON))
