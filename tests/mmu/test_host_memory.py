from hypothesis import given
from hypothesis import strategies as st

from mmu.host_memory import HostMemory, Hva, PrimaryMmu, Vma
from sim import Kernel, explore
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K

BASE = 1 << 30


@given(st.lists(st.tuples(st.sampled_from([0, 9]), st.booleans()), max_size=40))
def test_blocks_are_aligned_disjoint_and_come_back(plan):
    """Whatever is allocated and freed, blocks do not overlap, and at the end everything is there again."""
    memory = HostMemory(Kernel(), 512 * 50)
    held = []
    for order, drop in plan:
        pfn = memory.alloc(order)
        assert not pfn & (1 << order) - 1
        assert all(pfn + (1 << order) <= p or p + (1 << o) <= pfn for p, o in held)
        held.append((pfn, order))
        if drop:
            memory.free(*held.pop(0))
    for pfn, order in held:
        memory.free(pfn, order)
    assert memory.in_use == 0


def test_touching_a_freed_frame_is_a_finding():
    """A frame that is nobody's may not be used."""
    kernel = Kernel(stop_at_finding=False)
    memory = HostMemory(kernel, 10)
    pfn = memory.alloc()
    memory.touch(pfn)
    memory.free(pfn)
    memory.touch(pfn)

    assert [finding.kind for finding in kernel.findings] == ["uaf-page"]


def test_partial_unmap_splits_the_folio():
    """After a page is unmapped out of a 2M folio, its neighbours stay, mapped small."""
    kernel = Kernel()
    memory = HostMemory(kernel, 4096)
    primary = PrimaryMmu(kernel, memory)
    primary.map(Vma(Hva(BASE), 512, 9))
    seen = []

    def vmm():
        pfn, order = yield from primary.fault_in(BASE + 0x3000)
        seen.append(order)
        memory.put_page(pfn)
        seen.append((yield from primary.host_mapping_level(BASE)))
        yield from primary.unmap(BASE, BASE + 0x1000)
        seen.append((yield from primary.host_mapping_level(BASE)))
        seen.append(memory.in_use)
        again, _ = yield from primary.fault_in(BASE + 0x3000)
        seen.append(again == pfn)
        memory.put_page(again)
        yield from primary.unmap(BASE, BASE + (2 << 20))

    kernel.thread("vmm", vmm())
    kernel.execute()

    assert seen == [9, PG_LEVEL_2M, PG_LEVEL_4K, 511, True]
    assert memory.in_use == 0
    assert not kernel.findings


def test_faults_and_unmaps_lose_no_page():
    """Whatever the order, every page is freed once its mapping and its users have gone."""

    def world(kernel):
        memory = HostMemory(kernel, 4096)
        primary = PrimaryMmu(kernel, memory)
        primary.map(Vma(Hva(BASE), 4))

        def toucher():
            pfn, _ = yield from primary.fault_in(BASE)
            yield primary.page_table_lock.lock()
            yield primary.page_table_lock.unlock()
            memory.touch(pfn)
            memory.put_page(pfn)
            yield from primary.unmap(BASE, BASE + 0x1000)

        for name in ("a", "b"):
            kernel.thread(name, toucher())
        kernel.at_end("all frames are free", lambda: memory.in_use == 0, "leak")

    assert explore(world, executions=300).clean
