"""Per-vCPU caches: what a fault may need under mmu_lock is allocated before, where allocating may sleep and fail.

A cache counts its objects; a frame gets its number when it is popped, so that filling one costs nothing. Topping up and
popping touch only the vCPU's own memory: plain calls. Source: reference 1.6; virt/kvm/kvm_main.c
(__kvm_mmu_topup_memory_cache, kvm_mmu_memory_cache_alloc), mmu.c (mmu_topup_memory_caches).
Not modelled: the contents of rmap descriptors and gfn arrays (shadow MMU only), Dynamic PAMT's cache.
"""

from __future__ import annotations

from mmu.errno import ENOMEM
from mmu.host_memory import HostMemory
from mmu.page_table import KvmMmuPage, Role
from vcpu.addresses import PG_LEVEL_4K, Pfn, PgLevel

PT64_ROOT_MAX_LEVEL = 5
PTE_PREFETCH_NUM = 8
KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE = 40


class MemoryCache:
    """kvm_mmu_memory_cache: at least `minimum` objects after a top-up, at most `capacity`.

    Args:
        name: what the objects are; an injected failure (`HostMemory.may_fail`) is asked for it.
        pages: whether an object is a page frame; others are slab objects, which have no number here.
    """

    __slots__ = ("capacity", "host_memory", "minimum", "name", "objects", "pages")

    def __init__(
        self,
        host_memory: HostMemory,
        name: str,
        minimum: int = PT64_ROOT_MAX_LEVEL,
        capacity: int = KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE,
        *,
        pages: bool = True,
    ) -> None:
        assert 0 < minimum <= capacity
        self.host_memory = host_memory
        self.name = name
        self.minimum = minimum
        self.capacity = capacity
        self.pages = pages
        self.objects = 0

    def __str__(self) -> str:
        return self.name

    def topup(self) -> int:
        """Nothing if there are enough objects, else fill to capacity: 0, or -ENOMEM below the minimum."""
        if self.objects >= self.minimum:
            return 0
        may_fail = self.host_memory.may_fail
        if may_fail is None:
            self.objects = self.capacity
            return 0
        while self.objects < self.capacity:
            if may_fail(self.name):
                return 0 if self.objects >= self.minimum else -ENOMEM
            self.objects += 1
        return 0

    def pop(self) -> Pfn:
        """Take an object; of pages, its frame, else 0. From an empty cache: a finding, then an atomic allocation."""
        if self.objects:
            self.objects -= 1
        else:
            self.host_memory.kernel.find("kvm-bug", f"WARN: {self.name} is empty")
        return self.host_memory.alloc(0, self.name) if self.pages else Pfn(0)

    def drain(self) -> int:
        """Give all objects back (vCPU destruction); how many there were."""
        drained, self.objects = self.objects, 0
        return drained


class VcpuCaches:
    """The caches of one vCPU, in their order of topping up; the external one exists only if the VM mirrors."""

    __slots__ = (
        "_direct",
        "mmu_external_spt_cache",
        "mmu_page_header_cache",
        "mmu_pte_list_desc_cache",
        "mmu_shadow_page_cache",
        "mmu_shadowed_info_cache",
    )

    def __init__(self, host_memory: HostMemory, *, has_mirrored_tdp: bool) -> None:
        descriptors = 1 + PT64_ROOT_MAX_LEVEL + PTE_PREFETCH_NUM
        self.mmu_pte_list_desc_cache = MemoryCache(
            host_memory, "mmu_pte_list_desc_cache", descriptors, pages=False
        )
        self.mmu_external_spt_cache = (
            MemoryCache(host_memory, "mmu_external_spt_cache") if has_mirrored_tdp else None
        )
        self.mmu_shadow_page_cache = MemoryCache(host_memory, "mmu_shadow_page_cache")
        self.mmu_shadowed_info_cache = MemoryCache(host_memory, "mmu_shadowed_info_cache")
        self.mmu_page_header_cache = MemoryCache(host_memory, "mmu_page_header_cache", pages=False)
        order = (
            self.mmu_pte_list_desc_cache,
            self.mmu_external_spt_cache,
            self.mmu_shadow_page_cache,
            self.mmu_page_header_cache,
        )
        self._direct = tuple(cache for cache in order if cache is not None)

    def topup(self, *, maybe_indirect: bool = False) -> int:
        """mmu_topup_memory_caches: 0, or -ENOMEM from the first cache that stays below its minimum."""
        caches = self._direct
        if maybe_indirect:
            caches = (*caches[:-1], self.mmu_shadowed_info_cache, caches[-1])
        for cache in caches:
            error = cache.topup()
            if error:
                return error
        return 0

    def alloc_sp(self, *, mirror: bool) -> KvmMmuPage:
        """tdp_mmu_alloc_sp, and the external page of a mirror: a table without a place (`PageTables.init_child`)."""
        self.mmu_page_header_cache.pop()
        spt_pfn = self.mmu_shadow_page_cache.pop()
        external_spt = None
        if mirror:
            assert self.mmu_external_spt_cache is not None, "a VM without mirrored TDP makes no mirror table"
            external_spt = self.mmu_external_spt_cache.pop()
        return KvmMmuPage(Role(PG_LEVEL_4K, mirror), 0, spt_pfn, external_spt=external_spt)

    def alloc_root(self, level: PgLevel, *, mirror: bool) -> KvmMmuPage:
        """A root: no external page, for the S-EPT's root belongs to the TDX module from the start."""
        self.mmu_page_header_cache.pop()
        return KvmMmuPage(Role(level, mirror), 0, self.mmu_shadow_page_cache.pop())

    def drain(self) -> int:
        """mmu_free_memory_caches; how many objects there were."""
        return sum(cache.drain() for cache in (*self._direct, self.mmu_shadowed_info_cache))
