"""TDH.MNG.RD and TDH.MNG.WR: the metadata of a TD, field by field.

Source: TDX module 1.5.01, tdh_mng_rd_wr.c; the fields: `metadata`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim import Steps
from tdx.module.metadata import (
    ALL,
    FIELD_ID_NA,
    TD_FIELDS,
    read_field,
    write_field,
)
from tdx.module.seamcall import lock_td, seamcall
from tdx.module.status import Operand, Refused, SeamcallReturn, Status

if TYPE_CHECKING:
    from tdx.module.locks import Held
    from tdx.module.module import TdxModule
    from tdx.module.operands import Td


@seamcall("TDH.MNG.RD", leaf=11, rcx="td", rdx="field_id")
def tdh_mng_rd(
    module: TdxModule,  # noqa: ARG001
    held: Held,
    *,
    td: Td,
    field_id: int,
    version: int = 0,
) -> Steps[SeamcallReturn]:
    """Read a field; R8 returns the bits that may be seen.

    Version 1 returns in RDX the id of the next field, or `FIELD_ID_NA`, also with an error; a null id gets the first field's and a warning.
    Cost: no row in the table, `seamcall_null`.
    """
    try:
        tdr, tdcs = yield from lock_td(held, td, "TDH.MNG.RD", Operand.RCX)
        return (yield from read_field(TD_FIELDS, field_id, tdr, debug=tdcs.is_debug, version=version))
    except Refused as refused:
        refused.rdx = FIELD_ID_NA if version else 0
        raise


@seamcall("TDH.MNG.WR", leaf=13, rcx="td", rdx="field_id", r8="data", r9="mask")
def tdh_mng_wr(
    module: TdxModule,  # noqa: ARG001
    held: Held,
    *,
    td: Td,
    field_id: int,
    data: int,
    mask: int = ALL,
) -> Steps[SeamcallReturn]:
    """Write the bits of `mask` of a field; R8 returns what was there, as far as it may be seen.

    Cost: no row in the table, `seamcall_null`.
    """
    tdr, tdcs = yield from lock_td(held, td, "TDH.MNG.WR", Operand.RCX)
    before = yield from write_field(TD_FIELDS, field_id, tdr, data, mask, debug=tdcs.is_debug)
    return SeamcallReturn(Status.TDX_SUCCESS, r8=before)
