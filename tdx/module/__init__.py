"""Intel's TDX module: leaf calls as guarded state transitions over the tables they keep.

What is modelled. The module 1.5.01 as a host and a guest meet it, for a TD from birth to death: TDR, TDCS, TDVPS, PAMT, key
ids, and the S-EPT with one 64-bit word per entry (`septe`). Calls try their locks and fail busy (`locks`), check in Intel's
order, and refuse before they change anything (`seamcall`, `leaves/`, one file per leaf). Which leaf may act on which S-EPT
state is one table (`sept_states`). TLB tracking: epochs, the two REFCOUNTs, BEPOCH. Inside the guest: ACCEPT with its page
zeroing in steps, #VE or exit for a missing page, host priority with its timeout, the zero-step defence. Observers look through
the `peek` helpers of `TdxModule`; `invariants` says what must always hold.

What is not, and why. DEMOTE, PROMOTE, RELOCATE, SEPT.REMOVE, MEM.RD and WR, attributes, migration, L2 guests, service TDs: later.
TLBs: a translation is cached where the guest runs; a `LogicalProcessor` has a hook that flushes. Caches and keys'
effect on contents: WBINVD and CACHE.WB take their locks and time, nothing else. The single-step defence and the #VE that
NOTIFY_ENABLES asks for: nobody measures them yet. Entropy and key generation fail by injection only.

Where one access stands for several: a lock attempt with its host-priority bit; sampling the epoch with being counted in it; the
zeroing of many pages by ACCEPT and the locking of many children by PROMOTE, both by a number that the embedding chooses. Each
says at its place why nobody can tell, or what is lost. Fields guarded by a lock held exclusive need no access of their own.

Sources. The public source of module 1.5.01; our reading of it in the reference, whose section numbers the docstrings cite.
Who may import whom: this package imports `sim` and `vcpu.addresses` only. It never learns who its host is.
"""

from tdx.module.dispatch import Registers, dispatch
from tdx.module.ept_violation import private_ept_violation
from tdx.module.exits import (
    AcceptResult,
    Access,
    ExitReason,
    ExtendedType,
    TdExit,
    VirtualizationException,
)
from tdx.module.leaves.tdg_mem_page_accept import tdg_mem_page_accept
from tdx.module.leaves.tdg_vp_vmcall import tdg_vp_veinfo_get, tdg_vp_vmcall
from tdx.module.leaves.tdh_mem_page_add import tdh_mem_page_add
from tdx.module.leaves.tdh_mem_page_aug import tdh_mem_page_aug
from tdx.module.leaves.tdh_mem_page_remove import tdh_mem_page_remove
from tdx.module.leaves.tdh_mem_range_block import tdh_mem_range_block
from tdx.module.leaves.tdh_mem_range_unblock import tdh_mem_range_unblock
from tdx.module.leaves.tdh_mem_sept_add import tdh_mem_sept_add
from tdx.module.leaves.tdh_mem_sept_rd import tdh_mem_sept_rd
from tdx.module.leaves.tdh_mem_track import tdh_mem_track
from tdx.module.leaves.tdh_mng_addcx import tdh_mng_addcx
from tdx.module.leaves.tdh_mng_create import tdh_mng_create
from tdx.module.leaves.tdh_mng_init import tdh_mng_init
from tdx.module.leaves.tdh_mng_key_config import tdh_mng_key_config
from tdx.module.leaves.tdh_mng_key_freeid import tdh_mng_key_freeid
from tdx.module.leaves.tdh_mng_vpflushdone import tdh_mng_vpflushdone
from tdx.module.leaves.tdh_mr_extend import tdh_mr_extend
from tdx.module.leaves.tdh_mr_finalize import tdh_mr_finalize
from tdx.module.leaves.tdh_phymem_cache_wb import tdh_phymem_cache_wb
from tdx.module.leaves.tdh_phymem_page_reclaim import tdh_phymem_page_reclaim
from tdx.module.leaves.tdh_phymem_page_wbinvd import tdh_phymem_page_wbinvd
from tdx.module.leaves.tdh_vp_addcx import tdh_vp_addcx
from tdx.module.leaves.tdh_vp_create import tdh_vp_create
from tdx.module.leaves.tdh_vp_enter import tdh_vp_enter
from tdx.module.leaves.tdh_vp_flush import tdh_vp_flush
from tdx.module.leaves.tdh_vp_init import tdh_vp_init
from tdx.module.module import TdxModule
from tdx.module.objects import SEPT_VE_DISABLE, TDCX_PAGES, TDVPS_PAGES, LogicalProcessor, Tdvps
from tdx.module.operands import Td
from tdx.module.pamt import PageType
from tdx.module.profile import PROFILES, TDX_1_5_01, Profile, profile_named
from tdx.module.seamcall import LEAVES
from tdx.module.sept_states import OpState
from tdx.module.septe import Septe, SeptState
from tdx.module.status import Operand, SeamcallReturn, Status
from tdx.module.walk import hardware_walk

__all__ = [
    "LEAVES",
    "PROFILES",
    "SEPT_VE_DISABLE",
    "TDCX_PAGES",
    "TDVPS_PAGES",
    "TDX_1_5_01",
    "AcceptResult",
    "Access",
    "ExitReason",
    "ExtendedType",
    "LogicalProcessor",
    "OpState",
    "Operand",
    "PageType",
    "Profile",
    "Registers",
    "SeamcallReturn",
    "SeptState",
    "Septe",
    "Status",
    "Td",
    "TdExit",
    "Tdvps",
    "TdxModule",
    "VirtualizationException",
    "dispatch",
    "hardware_walk",
    "private_ept_violation",
    "profile_named",
    "tdg_mem_page_accept",
    "tdg_vp_veinfo_get",
    "tdg_vp_vmcall",
    "tdh_mem_page_add",
    "tdh_mem_page_aug",
    "tdh_mem_page_remove",
    "tdh_mem_range_block",
    "tdh_mem_range_unblock",
    "tdh_mem_sept_add",
    "tdh_mem_sept_rd",
    "tdh_mem_track",
    "tdh_mng_addcx",
    "tdh_mng_create",
    "tdh_mng_init",
    "tdh_mng_key_config",
    "tdh_mng_key_freeid",
    "tdh_mng_vpflushdone",
    "tdh_mr_extend",
    "tdh_mr_finalize",
    "tdh_phymem_cache_wb",
    "tdh_phymem_page_reclaim",
    "tdh_phymem_page_wbinvd",
    "tdh_vp_addcx",
    "tdh_vp_create",
    "tdh_vp_enter",
    "tdh_vp_flush",
    "tdh_vp_init",
]
