from hypothesis import given
from hypothesis import strategies as st

from mmu import spte as s
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K


@given(
    st.integers(1, (1 << 40) - 1), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans()
)
def test_leaf_keeps_what_it_was_made_of(pfn, writable, host_writable, executable, accessed, ad_disabled):
    """A made leaf is present, has its pfn, and never breaks the rule of the write bits."""
    spte = s.make_spte(
        pfn=pfn,
        level=PG_LEVEL_4K,
        writable=writable,
        host_writable=host_writable,
        executable=executable,
        accessed=accessed,
        ad_disabled=ad_disabled,
    )

    assert s.is_leaf_spte(spte, PG_LEVEL_4K)
    assert pfn == s.spte_to_pfn(spte)
    assert s.broken_write_bits(spte) is None
    assert accessed == s.is_accessed_spte(spte)
    assert s.spte_kind(spte, PG_LEVEL_4K) == "leaf"


@given(st.integers(1, (1 << 31) - 1), st.integers(0, 511))
def test_splitting_and_merging_are_inverse(block, index):
    """A small entry made of a huge one makes the huge one again."""
    huge = s.make_mirror_leaf(block << 9, PG_LEVEL_2M)
    small = s.make_small_spte(huge, PG_LEVEL_4K, index)

    assert (block << 9) + index == s.spte_to_pfn(small)
    assert not s.is_large_pte(small)
    assert huge == s.make_huge_spte(small, PG_LEVEL_2M)


@given(
    st.integers(0, (1 << 40) - 1),
    st.integers(0, (1 << 19) - 1),
    st.sampled_from([s.TDX_MMIO_VALUE, s.VMX_MMIO_VALUE]),
)
def test_mmio_entry_keeps_gfn_and_generation(gfn, gen, value):
    """An MMIO entry is not present and gives back its gfn and generation."""
    spte = s.make_mmio_spte(gfn, gen, value)

    assert not s.is_shadow_present_pte(spte)
    assert s.is_mmio_spte(spte, value)
    assert (gfn, gen) == (s.mmio_spte_gfn(spte), s.mmio_spte_generation(spte))


def test_special_values_are_what_they_seem():
    """Holes and frozen entries are neither present nor MMIO; a frozen one looks large."""
    for spte in (s.SHADOW_NONPRESENT_VALUE, s.FROZEN_SPTE):
        assert not s.is_shadow_present_pte(spte)
        assert not s.is_mmio_spte(spte)
        assert not s.is_private_zapped_spte(spte)
    assert s.is_large_pte(s.FROZEN_SPTE)


def test_only_entries_that_change_without_mmu_lock_need_an_atomic():
    """Write-protected and not yet dirty leaves are volatile; mirrors and settled leaves are not."""
    leaf = s.make_spte(pfn=512, level=PG_LEVEL_4K, writable=True, host_writable=True, executable=True)

    assert not s.spte_write_must_be_atomic(leaf, PG_LEVEL_4K)
    assert s.spte_write_must_be_atomic(s.wrprot_spte(leaf), PG_LEVEL_4K)
    assert s.spte_write_must_be_atomic(s.clear_dirty_spte(leaf), PG_LEVEL_4K)
    assert not s.spte_write_must_be_atomic(s.write_tracked_spte(leaf), PG_LEVEL_4K)
    assert not s.spte_write_must_be_atomic(s.make_mirror_leaf(512, PG_LEVEL_2M), PG_LEVEL_2M)
    assert not s.spte_write_must_be_atomic(s.FROZEN_SPTE, PG_LEVEL_2M)


def test_write_bits_out_of_order_are_named():
    """W without MMU-writable, and MMU-writable without host-writable, are both broken."""
    assert s.broken_write_bits(s.SPTE_W) == "writable, but not MMU-writable"
    assert s.broken_write_bits(s.SPTE_MMU_WRITABLE) == "MMU-writable, but not host-writable"


def test_description_reads_like_a_report():
    """A mirror leaf is described with size, frame and permissions."""
    assert (
        s.describe(s.make_mirror_leaf(0x200, PG_LEVEL_2M), PG_LEVEL_2M)
        == "leaf 2M pfn 0x200 RWX AD host-w mmu-w"
    )
    assert s.describe(s.make_nonleaf_spte(0x300), PG_LEVEL_2M) == "table 2M pfn 0x300 RWX"
