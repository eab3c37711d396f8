from mmu.caches import MemoryCache, VcpuCaches
from mmu.errno import ENOMEM
from mmu.host_memory import HostMemory
from sim import Kernel


def test_topup_fills_only_below_the_minimum():
    """A cache with enough objects is left alone; one with fewer is filled to capacity."""
    cache = MemoryCache(HostMemory(Kernel(), 100), "cache")
    assert cache.topup() == 0
    assert cache.objects == 40
    for _ in range(35):
        cache.pop()
    cache.topup()
    assert cache.objects == 5


def test_failed_allocation_below_the_minimum_is_enomem():
    """An injected failure matters only if fewer objects than the minimum were there."""
    memory = HostMemory(Kernel(), 100)
    memory.may_fail = lambda what: what == "mmu_external_spt_cache"

    assert VcpuCaches(memory, has_mirrored_tdp=True).topup() == -ENOMEM
    assert VcpuCaches(memory, has_mirrored_tdp=False).topup() == 0


def test_pop_from_empty_is_a_finding():
    """The locked walk must never have to allocate."""
    kernel = Kernel(stop_at_finding=False)
    MemoryCache(HostMemory(kernel, 100), "cache").pop()

    assert [finding.kind for finding in kernel.findings] == ["kvm-bug"]


def test_mirror_table_gets_an_external_page():
    """Only a mirror's table takes a page for the TDX module."""
    caches = VcpuCaches(HostMemory(Kernel(), 100), has_mirrored_tdp=True)
    caches.topup()

    assert caches.alloc_sp(mirror=True).external_spt is not None
    assert caches.alloc_sp(mirror=False).external_spt is None
