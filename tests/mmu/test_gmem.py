import pytest

from mmu.errno import Errno
from mmu.gmem import GmemFile, GmemInode, kvm_gmem_get_pfn
from mmu.host_memory import HostMemory
from mmu.memslots import Memslot, SlotFlag
from sim import Kernel, explore


def build(kernel, *, order=0, pages=1024):
    memory = HostMemory(kernel, 8192)
    inode = GmemInode(kernel, memory, pages, order)
    file = GmemFile(inode)
    slot = Memslot(0, 0, pages, flags=SlotFlag.GUEST_MEMFD)
    file.attach(slot)
    return memory, inode, file, slot


def hole(inode, start, end):
    yield inode.invalidate_lock.write_lock()
    yield from inode.truncate_range(start, end)
    yield inode.invalidate_lock.write_unlock()


@pytest.mark.parametrize("order", [0, 9])
def test_pfn_keeps_its_frame_until_a_hole_is_punched(order):
    """The same gfn has the same frame, zeroed once; after the hole all memory is free."""
    kernel = Kernel()
    memory, inode, _, slot = build(kernel, order=order)
    cleared = []
    memory.on_clear.append(lambda _pfn, pages: cleared.append(pages))

    def steps():
        one, got = yield from kvm_gmem_get_pfn(slot.gmem.file, slot, 3)
        two, _ = yield from kvm_gmem_get_pfn(slot.gmem.file, slot, 3)
        assert (one, order) == (two, got)
        assert one == inode.peek_pfn(3)
        inode.folio_put(one)
        inode.folio_put(two)
        yield from hole(inode, 0, 1024)

    kernel.thread("vcpu", steps())
    kernel.execute()

    assert not kernel.findings
    assert cleared == [1 << order]
    assert (memory.in_use, inode.nrpages.v) == (0, 0)


def test_hole_in_a_large_folio_splits_it():
    """One page goes, 511 stay where they were, up to date and small."""
    kernel = Kernel()
    memory, inode, _, slot = build(kernel, order=9)

    def steps():
        pfn, _ = yield from kvm_gmem_get_pfn(slot.gmem.file, slot, 3)
        inode.folio_put(pfn)
        yield from hole(inode, 5, 6)
        again, order = yield from kvm_gmem_get_pfn(slot.gmem.file, slot, 3)
        assert (pfn, 0) == (again, order)
        inode.folio_put(again)

    kernel.thread("vcpu", steps())
    kernel.execute()

    assert not kernel.findings
    assert (memory.in_use, inode.nrpages.v) == (511, 511)


def test_errors_are_the_kernels():
    """A slot that lost its file, its binding or its memory is told apart."""
    kernel = Kernel()
    _, inode, file, slot = build(kernel)
    results = []

    def steps():
        pfn, _ = yield from kvm_gmem_get_pfn(slot.gmem.file, slot, 1)
        inode.folio_put(pfn)
        inode.peek(1).hwpoison = True
        results.append((yield from kvm_gmem_get_pfn(slot.gmem.file, slot, 1)))
        results.append((yield from kvm_gmem_get_pfn(slot.gmem.file, slot.invalidated(), 1)))
        yield inode.invalidate_lock.write_lock()
        yield from file.unbind(slot)
        yield inode.invalidate_lock.write_unlock()
        results.append((yield from kvm_gmem_get_pfn(slot.gmem.file, slot, 1)))

    kernel.thread("vcpu", steps())
    kernel.execute()

    assert not kernel.findings
    assert results == [Errno.EHWPOISON, Errno.EIO, Errno.EFAULT]
    assert file.refs.v == 1


@pytest.mark.parametrize("order", [0, 9])
@pytest.mark.parametrize("end", [1, 1024])
def test_get_pfn_never_gives_a_freed_page_inside_the_folio_lock(order, end):
    """Against truncation in any order, a returned page is alive while it is referred to, and nothing leaks."""

    def world(kernel):
        memory, inode, file, slot = build(kernel, order=order)

        def vcpu():
            for _ in range(2):
                pfn, _ = yield from kvm_gmem_get_pfn(slot.gmem.file, slot, 0)
                memory.touch(pfn)
                yield file.refs.read_once()
                memory.touch(pfn)
                inode.folio_put(pfn)

        def locked_folios_are_alive():
            return all(
                memory.owner(folio.pfn) == "gmem" for folio in inode.folios() if folio.lock.writer is not None
            )

        kernel.thread("vcpu0", vcpu())
        kernel.thread("vcpu1", vcpu())
        kernel.thread("host0", hole(inode, 0, end))
        kernel.always("a locked folio in the file is allocated", locked_folios_are_alive, "uaf-page")
        kernel.at_end("the file owns all memory in use", lambda: memory.in_use == inode.nrpages.v, "leak")
        if end == 1024 or not order:  # a large folio is split only when nobody waits for it
            kernel.sometimes("a fault found its gmem folio truncated")

    report = explore(world, executions=300)

    assert not report.findings
    assert not report.unmet
