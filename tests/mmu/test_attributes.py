from hypothesis import given, settings
from hypothesis import strategies as st

from mmu.attributes import MemoryAttributes
from mmu.memslots import KVM_LPAGE_MIXED_FLAG, Memslot, hugepage_clear_mixed, hugepage_set_mixed
from sim import Kernel
from vcpu.addresses import PG_LEVEL_1G, PG_LEVEL_2M

PRIVATE = MemoryAttributes.PRIVATE
RANGES = st.lists(st.tuples(st.integers(0, 2047), st.integers(1, 700), st.booleans()), max_size=6)


def run(steps):
    kernel = Kernel()
    thread = kernel.thread("vmm", steps)
    kernel.execute()
    assert not kernel.findings
    return thread.value


@given(RANGES)
def test_intervals_are_what_an_array_would_be(ranges):
    """Setting ranges and asking frames agrees with a plain list."""
    attributes = MemoryAttributes(Kernel())
    model = [0] * 3000
    for start, length, private in ranges:
        value = PRIVATE if private else 0
        attributes.set_initial(start, start + length, value)
        model[start : start + length] = [value] * length

    assert model == [attributes.peek(gfn) for gfn in range(3000)]
    assert [g for g in range(1, 3000) if model[g] != model[g - 1]] == attributes.changes(0, 3000)


@settings(max_examples=40, deadline=None)
@given(RANGES, st.lists(st.tuples(st.integers(0, 2047), st.booleans()), max_size=8))
def test_mixed_agrees_with_brute_force(ranges, stores):
    """After any stores, recomputed bottom-up, MIXED says exactly whether the frames of a huge page differ."""
    attributes = MemoryAttributes(Kernel())
    for start, length, private in ranges:
        attributes.set_initial(start, start + length, PRIVATE if private else 0)
    slot = Memslot(0, 0, 1 << 18, attributes=attributes)

    def vmm():
        for gfn, private in stores:
            value = PRIVATE if private else 0
            yield attributes.store(gfn, value)
            for level in (PG_LEVEL_2M, PG_LEVEL_1G):
                same = yield from attributes.hugepage_has_attrs(slot, gfn, level, value)
                yield from (hugepage_clear_mixed if same else hugepage_set_mixed)(slot, gfn, level)

    run(vmm())

    for level in (PG_LEVEL_2M, PG_LEVEL_1G):
        for gfn in range(0, 4096, level.pages):
            values = {attributes.peek(g) for g in range(gfn, min(gfn + level.pages, 4096))}
            mixed = len(values | ({0} if level == PG_LEVEL_1G else set())) > 1
            assert mixed == bool(slot.peek_disallow_lpage(level, gfn) & KVM_LPAGE_MIXED_FLAG)


@given(RANGES, st.sets(st.integers(0, 2047), max_size=5), st.integers(0, 2000), st.integers(1, 600))
def test_range_check_agrees_with_brute_force(ranges, stored, start, length):
    """Frames with and without words together have an attribute if each one has it."""
    attributes = MemoryAttributes(Kernel())
    for low, size, private in ranges:
        attributes.set_initial(low, low + size, PRIVATE if private else 0)
    for gfn in stored:
        attributes.cell(gfn).v = PRIVATE

    answer = run(attributes.range_has(start, start + length, PRIVATE))

    assert answer == all(attributes.peek(gfn) == PRIVATE for gfn in range(start, start + length))
