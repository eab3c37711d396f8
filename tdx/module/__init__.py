"""Intel's TDX module: leaf calls as guarded state transitions over the tables they keep.

What is modelled. The module 1.5.01 as a host and a guest meet it, for a TD from birth to death: TDR, TDCS, TDVPS, key ids, the PAMT in
three sizes, and the S-EPT with one 64-bit word per entry (`septe`). Calls try their locks and fail busy (`locks`), check in Intel's
order, and refuse before they change anything (`seamcall`; `leaves/`, one file per call). Which leaf may act on which S-EPT state and
in which op_state is one table (`sept_states`). TLB tracking: epochs, the two REFCOUNTs, BEPOCH (`tracking`). Resizing, with what an
interruption leaves behind (`resize`); L2 S-EPT trees (`l2`); export and import of TDs (`migration`; `migration_data` says how a list call
is made); metadata by field (`metadata`). Inside the guest: ACCEPT with its page zeroing in steps and the attribute calls, #VE or exit
for a missing page, host priority with its timeout (`tdcall`), the defences against stepping (`stepping`). Other releases, and Dynamic
PAMT, are a `profile`. Both sides can be called by registers (`dispatch`, `tdcall`). Observers look through the `peek` helpers of
`TdxModule`; `invariants` says what holds at rest, `watch` holds every step of a search to the module's rules.

What is not, and why. Cryptography and serialised metadata of a migration: nobody asks for bytes. Running L2 VMs, service TDs: later.
TLBs: a translation is cached where the guest runs; a `LogicalProcessor` has a hook that flushes. Caches and keys' effect on contents:
WBINVD and CACHE.WB take their locks and time, and `TdxModule.overwritten` says what a DEMOTE that did not commit has written. Guest
state beside RAX: what the embedding runs keeps it. SYS.* calls: the module is there and READY. Entropy, key generation, TSC and MSR
checks fail by injection only, before anything has happened.

Where one access stands for several: a lock attempt with its host-priority bit; sampling the epoch with being counted in it; the
zeroing of many pages by ACCEPT and the locking of many children by PROMOTE, both by a number that the embedding chooses. Each
says at its place why nobody can tell, or what is lost. Fields guarded by a lock held exclusive need no access of their own.

Sources. Intel's public sources, 1.5.01 as the base, and our reading of them in the reference, whose section numbers the docstrings cite.
Who may import whom: this package imports `sim` and `vcpu.addresses` only. It never learns who its host is.
"""

from tdx.module.dispatch import Registers, dispatch
from tdx.module.ept_violation import private_ept_violation
from tdx.module.exits import (
    Access,
    ExitReason,
    ExtendedType,
    LastTdExit,
    TdcallResult,
    TdExit,
    VirtualizationException,
)
from tdx.module.leaves.tdg_mem_page_accept import tdg_mem_page_accept
from tdx.module.leaves.tdg_mem_page_attr_rd import tdg_mem_page_attr_rd
from tdx.module.leaves.tdg_mem_page_attr_wr import tdg_mem_page_attr_wr
from tdx.module.leaves.tdg_vp_vmcall import tdg_vp_veinfo_get, tdg_vp_vmcall
from tdx.module.leaves.tdh_export_abort import tdh_export_abort
from tdx.module.leaves.tdh_export_blockw import tdh_export_blockw
from tdx.module.leaves.tdh_export_mem import tdh_export_mem
from tdx.module.leaves.tdh_export_pause import tdh_export_pause
from tdx.module.leaves.tdh_export_restore import tdh_export_restore
from tdx.module.leaves.tdh_export_state_immutable import tdh_export_state_immutable
from tdx.module.leaves.tdh_export_state_td import tdh_export_state_td
from tdx.module.leaves.tdh_export_state_vp import tdh_export_state_vp
from tdx.module.leaves.tdh_export_track import tdh_export_track
from tdx.module.leaves.tdh_export_unblockw import tdh_export_unblockw
from tdx.module.leaves.tdh_import_abort import tdh_import_abort
from tdx.module.leaves.tdh_import_commit import tdh_import_commit
from tdx.module.leaves.tdh_import_end import tdh_import_end
from tdx.module.leaves.tdh_import_mem import tdh_import_mem
from tdx.module.leaves.tdh_import_state_immutable import tdh_import_state_immutable
from tdx.module.leaves.tdh_import_state_td import tdh_import_state_td
from tdx.module.leaves.tdh_import_state_vp import tdh_import_state_vp
from tdx.module.leaves.tdh_import_track import tdh_import_track
from tdx.module.leaves.tdh_mem_page_add import tdh_mem_page_add
from tdx.module.leaves.tdh_mem_page_aug import tdh_mem_page_aug
from tdx.module.leaves.tdh_mem_page_demote import tdh_mem_page_demote
from tdx.module.leaves.tdh_mem_page_promote import tdh_mem_page_promote
from tdx.module.leaves.tdh_mem_page_relocate import tdh_mem_page_relocate
from tdx.module.leaves.tdh_mem_page_remove import tdh_mem_page_remove
from tdx.module.leaves.tdh_mem_range_block import tdh_mem_range_block
from tdx.module.leaves.tdh_mem_range_unblock import tdh_mem_range_unblock
from tdx.module.leaves.tdh_mem_rd_wr import tdh_mem_rd, tdh_mem_wr
from tdx.module.leaves.tdh_mem_sept_add import tdh_mem_sept_add
from tdx.module.leaves.tdh_mem_sept_rd import tdh_mem_sept_rd
from tdx.module.leaves.tdh_mem_sept_remove import tdh_mem_sept_remove
from tdx.module.leaves.tdh_mem_track import tdh_mem_track
from tdx.module.leaves.tdh_mig_stream_create import tdh_mig_stream_create
from tdx.module.leaves.tdh_mng_addcx import tdh_mng_addcx
from tdx.module.leaves.tdh_mng_create import tdh_mng_create
from tdx.module.leaves.tdh_mng_init import tdh_mng_init
from tdx.module.leaves.tdh_mng_key_config import tdh_mng_key_config
from tdx.module.leaves.tdh_mng_key_freeid import tdh_mng_key_freeid
from tdx.module.leaves.tdh_mng_key_reclaimid import tdh_mng_key_reclaimid
from tdx.module.leaves.tdh_mng_rd_wr import tdh_mng_rd, tdh_mng_wr
from tdx.module.leaves.tdh_mng_vpflushdone import tdh_mng_vpflushdone
from tdx.module.leaves.tdh_mr_extend import tdh_mr_extend
from tdx.module.leaves.tdh_mr_finalize import tdh_mr_finalize
from tdx.module.leaves.tdh_phymem_cache_wb import tdh_phymem_cache_wb
from tdx.module.leaves.tdh_phymem_page_rdmd import tdh_phymem_page_rdmd
from tdx.module.leaves.tdh_phymem_page_reclaim import tdh_phymem_page_reclaim
from tdx.module.leaves.tdh_phymem_page_wbinvd import tdh_phymem_page_wbinvd
from tdx.module.leaves.tdh_phymem_pamt_add import tdh_phymem_pamt_add
from tdx.module.leaves.tdh_phymem_pamt_remove import tdh_phymem_pamt_remove
from tdx.module.leaves.tdh_vp_addcx import tdh_vp_addcx
from tdx.module.leaves.tdh_vp_create import tdh_vp_create
from tdx.module.leaves.tdh_vp_enter import tdh_vp_enter
from tdx.module.leaves.tdh_vp_flush import tdh_vp_flush
from tdx.module.leaves.tdh_vp_init import tdh_vp_init
from tdx.module.leaves.tdh_vp_rd_wr import tdh_vp_rd, tdh_vp_wr
from tdx.module.migration import MigrationContext, exchange_keys
from tdx.module.migration_data import (
    COMMAND_IN_ORDER_DONE,
    COMMAND_RESUME,
    MBMD_BUFFER,
    SHARED_PAGE,
    GpaListEntry,
    GpaOperation,
    GpaStatus,
    ListInfo,
    Mbmd,
    MbType,
    MemoryBundle,
    PageListEntry,
    StateBundle,
    TokenBuffer,
    page_list_info,
)
from tdx.module.module import TdxModule
from tdx.module.objects import SEPT_VE_DISABLE, TDCX_PAGES, TDVPS_PAGES, LogicalProcessor, Tdvps
from tdx.module.operands import Td
from tdx.module.pamt import PageType
from tdx.module.profile import PROFILES, TDX_1_5_01, Profile, profile_named
from tdx.module.seamcall import LEAVES
from tdx.module.sept_states import OpState
from tdx.module.septe import Septe, SeptState
from tdx.module.status import Operand, SeamcallReturn, Status
from tdx.module.stepping import interrupt_exit
from tdx.module.tdcall import TDCALLS, tdcall
from tdx.module.walk import hardware_walk

__all__ = [
    "COMMAND_IN_ORDER_DONE",
    "COMMAND_RESUME",
    "LEAVES",
    "MBMD_BUFFER",
    "PROFILES",
    "SEPT_VE_DISABLE",
    "SHARED_PAGE",
    "TDCALLS",
    "TDCX_PAGES",
    "TDVPS_PAGES",
    "TDX_1_5_01",
    "Access",
    "ExitReason",
    "ExtendedType",
    "GpaListEntry",
    "GpaOperation",
    "GpaStatus",
    "LastTdExit",
    "ListInfo",
    "LogicalProcessor",
    "MbType",
    "Mbmd",
    "MemoryBundle",
    "MigrationContext",
    "OpState",
    "Operand",
    "PageListEntry",
    "PageType",
    "Profile",
    "Registers",
    "SeamcallReturn",
    "SeptState",
    "Septe",
    "StateBundle",
    "Status",
    "Td",
    "TdExit",
    "TdcallResult",
    "Tdvps",
    "TdxModule",
    "TokenBuffer",
    "VirtualizationException",
    "dispatch",
    "exchange_keys",
    "hardware_walk",
    "interrupt_exit",
    "page_list_info",
    "private_ept_violation",
    "profile_named",
    "tdcall",
    "tdg_mem_page_accept",
    "tdg_mem_page_attr_rd",
    "tdg_mem_page_attr_wr",
    "tdg_vp_veinfo_get",
    "tdg_vp_vmcall",
    "tdh_export_abort",
    "tdh_export_blockw",
    "tdh_export_mem",
    "tdh_export_pause",
    "tdh_export_restore",
    "tdh_export_state_immutable",
    "tdh_export_state_td",
    "tdh_export_state_vp",
    "tdh_export_track",
    "tdh_export_unblockw",
    "tdh_import_abort",
    "tdh_import_commit",
    "tdh_import_end",
    "tdh_import_mem",
    "tdh_import_state_immutable",
    "tdh_import_state_td",
    "tdh_import_state_vp",
    "tdh_import_track",
    "tdh_mem_page_add",
    "tdh_mem_page_aug",
    "tdh_mem_page_demote",
    "tdh_mem_page_promote",
    "tdh_mem_page_relocate",
    "tdh_mem_page_remove",
    "tdh_mem_range_block",
    "tdh_mem_range_unblock",
    "tdh_mem_rd",
    "tdh_mem_sept_add",
    "tdh_mem_sept_rd",
    "tdh_mem_sept_remove",
    "tdh_mem_track",
    "tdh_mem_wr",
    "tdh_mig_stream_create",
    "tdh_mng_addcx",
    "tdh_mng_create",
    "tdh_mng_init",
    "tdh_mng_key_config",
    "tdh_mng_key_freeid",
    "tdh_mng_key_reclaimid",
    "tdh_mng_rd",
    "tdh_mng_vpflushdone",
    "tdh_mng_wr",
    "tdh_mr_extend",
    "tdh_mr_finalize",
    "tdh_phymem_cache_wb",
    "tdh_phymem_page_rdmd",
    "tdh_phymem_page_reclaim",
    "tdh_phymem_page_wbinvd",
    "tdh_phymem_pamt_add",
    "tdh_phymem_pamt_remove",
    "tdh_vp_addcx",
    "tdh_vp_create",
    "tdh_vp_enter",
    "tdh_vp_flush",
    "tdh_vp_init",
    "tdh_vp_rd",
    "tdh_vp_wr",
]
