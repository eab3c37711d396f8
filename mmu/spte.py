"""SPTEs: one entry of KVM's page tables, as the 64-bit number it is.

The layout is EPT's, for direct and mirror tables alike (reference 1.5; arch/x86/kvm/mmu/spte.h and spte.c). An entry is
exactly one of: non-present (nothing, or an MMIO note), frozen, a present leaf, a present non-leaf; bit 11 alone says
present. Nothing here touches shared state: these are pure functions of numbers, and paths read and write the cells.

Not modelled: non-EPT layouts, protection keys, memory encryption bits, the L1TF inversion of MMIO entries, user/kernel
execute (MBEC). Bit 62 as PRIVATE_ZAPPED is Isaku Yamahata's; its position there is not established.
"""

from __future__ import annotations

from vcpu.addresses import PAGE_SHIFT, PG_LEVEL_4K, Gfn, Pfn, PgLevel

SPTE_R = 1 << 0
SPTE_W = 1 << 1
SPTE_X = 1 << 2
SPTE_RWX = SPTE_R | SPTE_W | SPTE_X
SPTE_MEMTYPE_WB = 6 << 3
SPTE_IGNORE_PAT = 1 << 6
PT_PAGE_SIZE_MASK = 1 << 7
SPTE_ACCESSED = 1 << 8
SPTE_DIRTY = 1 << 9
SPTE_MMU_PRESENT_MASK = 1 << 11
SPTE_BASE_ADDR_MASK = ((1 << 52) - 1) & -(1 << PAGE_SHIFT)
SPTE_TDP_AD_MASK = 3 << 52
SPTE_TDP_AD_ENABLED = 0 << 52
SPTE_TDP_AD_DISABLED = 1 << 52
SPTE_TDP_AD_WRPROT_ONLY = 2 << 52
SHADOW_ACC_TRACK_SAVED_SHIFT = 54
SHADOW_ACC_TRACK_SAVED = (SPTE_R | SPTE_X) << SHADOW_ACC_TRACK_SAVED_SHIFT
SPTE_HOST_WRITABLE = 1 << 57
SPTE_MMU_WRITABLE = 1 << 58
SPTE_PRIVATE_ZAPPED = 1 << 62
SPTE_SUPPRESS_VE = 1 << 63

SHADOW_NONPRESENT_VALUE = SPTE_SUPPRESS_VE
"""A hole: an access exits to KVM, instead of raising #VE in the guest."""
FROZEN_SPTE = SHADOW_NONPRESENT_VALUE | 0x5A0
"""Somebody is changing what is behind this entry: stay away. Its bit 7 is set and means nothing."""

SHADOW_MMIO_MASK = SPTE_RWX | SPTE_SUPPRESS_VE
VMX_MMIO_VALUE = SPTE_W | SPTE_X
"""A misconfiguration on purpose: a normal VM's MMIO access exits as EPT_MISCONFIG."""
TDX_MMIO_VALUE = 0
"""Suppress-#VE clear: a TD's MMIO access raises #VE in the guest."""
_GEN_LOW_BITS = 8
_GEN_LOW_SHIFT = 3
_GEN_HIGH_SHIFT = 52
_GEN_BITS = _GEN_LOW_BITS + 11


def is_shadow_present_pte(spte: int) -> bool:
    """Whether the entry maps a page or leads to a table."""
    return spte & SPTE_MMU_PRESENT_MASK != 0


def is_frozen_spte(spte: int) -> bool:
    """Whether somebody else owns the entry for now."""
    return spte == FROZEN_SPTE


def is_mmio_spte(spte: int, mmio_value: int = TDX_MMIO_VALUE) -> bool:
    """Whether the entry notes an address without memory behind it; `mmio_value` is the VM's."""
    return not spte & SPTE_MMU_PRESENT_MASK and spte & SHADOW_MMIO_MASK == mmio_value


def is_private_zapped_spte(spte: int) -> bool:
    """Isaku's profile: a leaf that was blocked in the S-EPT and keeps its pfn."""
    zapped = SPTE_PRIVATE_ZAPPED | SPTE_SUPPRESS_VE
    return not spte & SPTE_MMU_PRESENT_MASK and spte & zapped == zapped


def is_large_pte(spte: int) -> bool:
    """Bit 7. True for FROZEN_SPTE too, so ask `is_shadow_present_pte` first."""
    return spte & PT_PAGE_SIZE_MASK != 0


def is_last_spte(spte: int, level: int) -> bool:
    """Whether a present entry of that level maps a page rather than a table."""
    return level == PG_LEVEL_4K or spte & PT_PAGE_SIZE_MASK != 0


def is_leaf_spte(spte: int, level: int) -> bool:
    """Present, and maps a page."""
    return spte & SPTE_MMU_PRESENT_MASK != 0 and is_last_spte(spte, level)


def is_nonleaf_spte(spte: int, level: int) -> bool:
    """Present, and leads to a table one level down."""
    return spte & SPTE_MMU_PRESENT_MASK != 0 and not is_last_spte(spte, level)


def spte_to_pfn(spte: int) -> Pfn:
    """The frame of the page, or of the table below."""
    return Pfn((spte & SPTE_BASE_ADDR_MASK) >> PAGE_SHIFT)


def is_writable_pte(spte: int) -> bool:
    """The hardware lets the guest write."""
    return spte & SPTE_W != 0


def is_executable_pte(spte: int) -> bool:
    """The hardware lets the guest execute."""
    return spte & SPTE_X != 0


def is_mmu_writable_spte(spte: int) -> bool:
    """KVM has no reason of its own against writes: a write fault may set W without mmu_lock."""
    return spte & SPTE_MMU_WRITABLE != 0


def is_host_writable_spte(spte: int) -> bool:
    """The host's mapping of the page is writable."""
    return spte & SPTE_HOST_WRITABLE != 0


def spte_ad_enabled(spte: int) -> bool:
    """The hardware sets A and D in this entry."""
    return spte & SPTE_TDP_AD_MASK != SPTE_TDP_AD_DISABLED


def spte_ad_need_write_protect(spte: int) -> bool:
    """D cannot be trusted for dirty logging here: write-protect instead (A/D off, or write-protect-only)."""
    return spte & SPTE_TDP_AD_MASK != SPTE_TDP_AD_ENABLED


def is_access_track_spte(spte: int) -> bool:
    """Accesses are noticed by faults (A/D off), and the entry waits for one."""
    return not spte_ad_enabled(spte) and not spte & SPTE_RWX


def is_accessed_spte(spte: int) -> bool:
    """The guest has used the page since the entry was last aged."""
    return spte & SPTE_ACCESSED != 0 if spte_ad_enabled(spte) else not is_access_track_spte(spte)


def is_dirty_spte(spte: int) -> bool:
    """The guest may have written the page: D, or W where there is no D."""
    return spte & SPTE_DIRTY != 0 if spte_ad_enabled(spte) else spte & SPTE_W != 0


def spte_needs_atomic_update(spte: int) -> bool:
    """Whether somebody without mmu_lock may change this present leaf, so that a plain store could lose a bit.

    The rule since 6.15: a fast page fault may set W or restore an access-tracked entry, the CPU may set D. A alone is
    not worth an atomic; neither is anything in a mirror, where the three conditions never hold. Reference 8.3.
    """
    if not spte & SPTE_W and spte & SPTE_MMU_WRITABLE:
        return True
    if is_access_track_spte(spte):
        return True
    return spte_ad_enabled(spte) and spte & SPTE_W != 0 and not spte & SPTE_DIRTY


def spte_write_must_be_atomic(spte: int, level: int) -> bool:
    """kvm_tdp_mmu_spte_need_atomic_update: `spte` is what the entry holds now, of whatever kind."""
    return is_leaf_spte(spte, level) and spte_needs_atomic_update(spte)


def broken_write_bits(spte: int) -> str | None:
    """Which rule of W => MMU-writable => host-writable the leaf breaks (invariant I8), or None."""
    if spte & SPTE_W and not spte & SPTE_MMU_WRITABLE:
        return "writable, but not MMU-writable"
    if spte & SPTE_MMU_WRITABLE and not spte & SPTE_HOST_WRITABLE:
        return "MMU-writable, but not host-writable"
    return None


def make_spte(
    *,
    pfn: int,
    level: PgLevel,
    writable: bool,
    host_writable: bool,
    executable: bool,
    accessed: bool = True,
    dirty: bool | None = None,
    ad_disabled: bool = False,
) -> int:
    """A present leaf of a direct table.

    `writable` counts only if the host may write too. `dirty=None` is the kernel's habit: dirty as soon as writable,
    because a fault that asked for write is about to write. A prefetched entry is not `accessed`.
    """
    assert not pfn & (level.pages - 1), f"pfn {pfn:#x} is not aligned for {level.short}"
    spte = SPTE_MMU_PRESENT_MASK | SPTE_SUPPRESS_VE | SPTE_MEMTYPE_WB | SPTE_IGNORE_PAT | SPTE_R
    spte |= pfn << PAGE_SHIFT
    if level > PG_LEVEL_4K:
        spte |= PT_PAGE_SIZE_MASK
    if executable:
        spte |= SPTE_X
    if host_writable:
        spte |= SPTE_HOST_WRITABLE
        if writable:
            spte |= SPTE_W | SPTE_MMU_WRITABLE
    if ad_disabled:
        spte |= SPTE_TDP_AD_DISABLED
        return spte if accessed else mark_spte_for_access_track(spte)
    if accessed:
        spte |= SPTE_ACCESSED
    if (spte & SPTE_W != 0) if dirty is None else dirty:
        spte |= SPTE_DIRTY
    return spte


def make_mirror_leaf(pfn: int, level: PgLevel) -> int:
    """A present leaf of a mirror: always RWX and fully settled, for the S-EPT knows no other permissions (I9)."""
    return make_spte(pfn=pfn, level=level, writable=True, host_writable=True, executable=True, dirty=True)


def make_nonleaf_spte(pfn_of_table: int, ad_disabled: bool = False) -> int:
    """A present entry that leads to a table."""
    spte = SPTE_MMU_PRESENT_MASK | SPTE_SUPPRESS_VE | SPTE_RWX | pfn_of_table << PAGE_SHIFT
    return spte | (SPTE_TDP_AD_DISABLED if ad_disabled else SPTE_ACCESSED)


def make_mmio_spte(gfn: int, gen: int, mmio_value: int = TDX_MMIO_VALUE) -> int:
    """A note that this gfn has no memslot, true while the memslots' generation is `gen` (taken modulo 2**19)."""
    gen &= (1 << _GEN_BITS) - 1
    low = gen & (1 << _GEN_LOW_BITS) - 1
    high = gen >> _GEN_LOW_BITS
    return mmio_value | gfn << PAGE_SHIFT | low << _GEN_LOW_SHIFT | high << _GEN_HIGH_SHIFT


def mmio_spte_gfn(spte: int) -> Gfn:
    """The gfn that an MMIO entry was made for."""
    return Gfn((spte & SPTE_BASE_ADDR_MASK) >> PAGE_SHIFT)


def mmio_spte_generation(spte: int) -> int:
    """The generation (modulo 2**19) that an MMIO entry was made in."""
    low = spte >> _GEN_LOW_SHIFT & (1 << _GEN_LOW_BITS) - 1
    high = spte >> _GEN_HIGH_SHIFT & (1 << _GEN_BITS - _GEN_LOW_BITS) - 1
    return low | high << _GEN_LOW_BITS


def make_small_spte(huge: int, level: PgLevel, index: int) -> int:
    """Entry `index` of the table, of that (the child's) level, which replaces the huge leaf one level up."""
    assert is_leaf_spte(huge, level + 1)
    small = huge | index * level.pages << PAGE_SHIFT
    return small & ~PT_PAGE_SIZE_MASK if level == PG_LEVEL_4K else small


def make_huge_spte(small: int, level: PgLevel) -> int:
    """The huge leaf, of that (the parent's) level, which covers a leaf one level down."""
    assert level > PG_LEVEL_4K
    assert is_leaf_spte(small, level - 1)
    return small & ~((level.size - 1) & SPTE_BASE_ADDR_MASK) | PT_PAGE_SIZE_MASK


def mark_spte_for_access_track(spte: int) -> int:
    """The leaf aged: A cleared, or, without A/D, permissions put aside until the next access."""
    if spte_ad_enabled(spte):
        return spte & ~SPTE_ACCESSED
    if is_access_track_spte(spte):
        return spte
    saved = (spte & (SPTE_R | SPTE_X)) << SHADOW_ACC_TRACK_SAVED_SHIFT
    return spte & ~(SPTE_RWX | SHADOW_ACC_TRACK_SAVED) | saved


def restore_acc_track_spte(spte: int) -> int:
    """The access-tracked leaf usable again, without W: writing is a fault's business."""
    saved = spte >> SHADOW_ACC_TRACK_SAVED_SHIFT & (SPTE_R | SPTE_X)
    return spte & ~(SPTE_RWX | SHADOW_ACC_TRACK_SAVED) | saved


def wrprot_spte(spte: int) -> int:
    """Write-protected for dirty logging: a fast page fault may make it writable again."""
    return spte & ~SPTE_W


def write_tracked_spte(spte: int) -> int:
    """Write-protected for KVM's own reasons: only a full fault may make it writable again."""
    return spte & ~(SPTE_W | SPTE_MMU_WRITABLE)


def clear_dirty_spte(spte: int) -> int:
    """D cleared, or W where D cannot be trusted."""
    return spte & ~(SPTE_W if spte_ad_need_write_protect(spte) else SPTE_DIRTY)


def make_writable_spte(spte: int) -> int:
    """W set, as a fast page fault does; the CPU sets D when it writes."""
    return spte | SPTE_W


def zapped_private_spte(spte: int) -> int:
    """Isaku's profile: the leaf blocked; pfn and size stay, nothing else."""
    return SHADOW_NONPRESENT_VALUE | SPTE_PRIVATE_ZAPPED | spte & (SPTE_BASE_ADDR_MASK | PT_PAGE_SIZE_MASK)


def spte_kind(spte: int, level: int) -> str:
    """`none`, `frozen`, `zapped`, `mmio`, `leaf` or `table`."""
    if spte & SPTE_MMU_PRESENT_MASK:
        return "leaf" if is_last_spte(spte, level) else "table"
    if spte == FROZEN_SPTE:
        return "frozen"
    if spte == SHADOW_NONPRESENT_VALUE:
        return "none"
    if is_private_zapped_spte(spte):
        return "zapped"
    return "mmio"


def describe(spte: int, level: int) -> str:
    """One line for reports, such as `leaf 2M pfn 0x200 RWX AD host-w mmu-w`."""
    kind = spte_kind(spte, level)
    if kind in {"none", "frozen"}:
        return kind
    if kind == "mmio":
        return f"mmio gfn {mmio_spte_gfn(spte):#x} gen {mmio_spte_generation(spte)}"
    size = PgLevel(level).short
    if kind == "zapped":
        return f"zapped {size} pfn {spte_to_pfn(spte):#x}"
    words = [kind, size, f"pfn {spte_to_pfn(spte):#x}"]
    words.append(_letters(spte, {"R": SPTE_R, "W": SPTE_W, "X": SPTE_X}))
    if kind == "leaf":
        words.append(_letters(spte, {"A": SPTE_ACCESSED, "D": SPTE_DIRTY}))
        if is_host_writable_spte(spte):
            words.append("host-w")
        if is_mmu_writable_spte(spte):
            words.append("mmu-w")
        if is_access_track_spte(spte):
            words.append("access-tracked")
    return " ".join(words)


def _letters(spte: int, names: dict[str, int]) -> str:
    return "".join(letter if spte & bit else "-" for letter, bit in names.items())
