import pytest

from mmu.attributes import MemoryAttributes
from mmu.memslots import KVM_LPAGE_MIXED_FLAG, Memslot, Memslots, MemslotsPointer
from sim import Kernel
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M


def test_misaligned_ends_forbid_only_their_huge_pages():
    """Head and tail of a misaligned slot cannot be huge, the middle can."""
    slot = Memslot(0, 0x10, 512 * 3)

    assert [slot.peek_disallow_lpage(PG_LEVEL_2M, gfn) for gfn in (0x10, 512, 1024, 1536)] == [1, 1, 1, 1]
    slot = Memslot(0, 0x10, 512 * 3, userspace_addr=0x10 << 12)
    assert [slot.disallow_lpage(PG_LEVEL_2M, gfn).v for gfn in (0x10, 512, 1024, 1536)] == [1, 0, 0, 1]


def test_slot_starts_mixed_where_attributes_change():
    """MIXED is set at creation exactly for full huge pages in which attributes change."""
    attributes = MemoryAttributes(Kernel())
    attributes.set_initial(512, 1000, attributes.PRIVATE)
    slot = Memslot(0, 0, 512 * 3, attributes=attributes)

    assert [
        bool(slot.peek_disallow_lpage(PG_LEVEL_2M, g) & KVM_LPAGE_MIXED_FLAG) for g in (0, 512, 1024)
    ] == [0, 1, 0]
    assert slot.peek_disallow_lpage(PG_LEVEL_1G, 0) == 1


def test_lookup_finds_the_slot_around_a_frame():
    """Ends are exclusive and gaps belong to nobody."""
    low, high = Memslot(1, 0, 16), Memslot(2, 32, 16)
    slots = Memslots((high, low))

    assert [slots.find(gfn) for gfn in (0, 15, 16, 32, 47, 48)] == [low, low, None, high, high, None]
    assert slots.overlapping(15, 33) == [low, high]


def test_overlapping_slots_are_refused():
    """A set whose slots share frames is the model's own bug."""
    with pytest.raises(AssertionError, match="overlap"):
        Memslots((Memslot(1, 0, 16), Memslot(2, 15, 16)))


def test_invalid_copy_shares_lpage_info():
    """The copy that is flagged INVALID has the original's words."""
    slot = Memslot(1, 0, 512)
    assert slot.invalidated().invalid
    assert slot.invalidated().disallow_lpage(PG_LEVEL_2M, 0) is slot.disallow_lpage(PG_LEVEL_2M, 0)


def test_readers_see_the_published_set():
    """A replacement has a new generation, and reading outside SRCU is a finding."""
    kernel = Kernel(stop_at_finding=False)
    pointer = MemslotsPointer(kernel, Memslots((Memslot(1, 0, 16),)))

    def steps():
        yield pointer.publish(pointer.peek().without(1))
        yield pointer.srcu.read_lock()
        slots = yield pointer.load()
        yield pointer.srcu.read_unlock()
        assert (len(slots), slots.generation) == (0, 1)
        yield pointer.load()

    kernel.thread("vmm", steps())
    kernel.execute()

    assert [finding.kind for finding in kernel.findings] == ["lock-rule"]
