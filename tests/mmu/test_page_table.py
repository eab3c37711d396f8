import pytest

from mmu.page_table import KvmMmuPage, PageTables, Role
from mmu.spte import SHADOW_NONPRESENT_VALUE, make_mirror_leaf
from sim import Kernel
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, Pfn


def test_words_are_made_when_looked_at_and_named():
    """A new table has no words; one that is asked for is a hole with a telling name."""
    sp = KvmMmuPage(Role(PG_LEVEL_4K, True), 0x1005, Pfn(600))

    assert sp.cells == {}
    assert str(sp.cell(5)) == "spte[mirror 4K gfn 0x1005]"
    assert sp.cell(5) is sp.cell(5)
    assert sp.cell(5).v == SHADOW_NONPRESENT_VALUE
    assert list(sp.present()) == []


@pytest.mark.parametrize("index", [3, 4])
def test_touching_a_freed_table_is_a_finding(index):
    """Words that existed and words that did not are poisoned alike."""
    kernel = Kernel()
    sp = KvmMmuPage(Role(PG_LEVEL_4K), 0, Pfn(600))
    sp.cell(3).v = make_mirror_leaf(700, PG_LEVEL_4K)
    assert [i for i, _ in sp.present()] == [3]

    def walker():
        yield sp.cell(index).read_once()

    sp.free(kernel)
    kernel.thread("walker", walker())
    kernel.execute()

    assert [finding.kind for finding in kernel.findings] == ["uaf-table"]
    assert list(sp.present()) == []


def test_child_takes_role_and_place_from_its_parent():
    """A fresh table gets level, kind and base frame when it is to be linked."""
    tables = PageTables(Kernel())
    parent = tables.add(KvmMmuPage(Role(PG_LEVEL_2M, True), 0, Pfn(600)))
    child = tables.init_child(KvmMmuPage(Role(PG_LEVEL_4K, True), 0, Pfn(601)), parent, 0x1234)

    assert (child.level, child.is_mirror, child.gfn) == (PG_LEVEL_4K, True, 0x1200)
    assert child.parent == (parent, 9)
    assert tables.to_sp(Pfn(601)) is child


def test_following_a_pointer_to_a_forgotten_table_is_a_finding():
    """A stale table frame is a use after free, not a crash."""
    kernel = Kernel()
    tables = PageTables(kernel)
    sp = tables.add(KvmMmuPage(Role(PG_LEVEL_4K), 0, Pfn(600)))
    tables.free(sp)

    def walker():
        yield kernel.cell("x", 0).read()
        tables.to_sp(Pfn(600))

    kernel.thread("walker", walker())
    kernel.execute()

    assert [finding.kind for finding in kernel.findings] == ["uaf-table"]
