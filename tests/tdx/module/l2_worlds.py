"""Worlds with L2 VMs: a TD whose L2 trees reach down to the entries of one range, and calls of its guest."""

from __future__ import annotations

from tdx.module import (
    tdg_mem_page_accept,
    tdg_mem_page_attr_rd,
    tdg_mem_page_attr_wr,
    tdh_mem_sept_add,
)
from tdx.module.invariants import INVARIANTS
from tdx.module.l2 import (
    ATTR_R,
    ATTR_VALID,
    ATTR_W,
    L2Septe,
    aliases_agree,
)
from tests.tdx.module.worlds import GFN, World, run
from vcpu.addresses import LEVELS, PG_LEVEL_4K, align_down, gpa_of

READ_WRITE = ATTR_VALID | ATTR_R | ATTR_W
ALL = 0x7FFF
"""A mask that changes every attribute."""


def of_vm(attributes, vm=1):
    """A register's word with the attributes of one VM."""
    return attributes << 16 * vm


class L2World(World):
    """A TD with L2 VMs, whose trees reach down to the entries of GFN."""

    def __init__(self, kernel=None, *, l2_vms=1, tables=True, **options):
        super().__init__(kernel, l2_vms=l2_vms, **options)
        for vm in range(1, l2_vms + 1) if tables else ():
            for level in (4, 3, 2):
                ret = self.add_table(vm, LEVELS[level])
                assert ret.ok, str(ret)

    def add_table(self, vm, level, gfn=GFN, **operands):
        return self.on(
            tdh_mem_sept_add,
            align_down(gfn, level),
            level,
            pfn=None,
            version=1,
            **{f"l2_{vm}_pfn": self.page()},
            **operands,
        )

    def l2_entry(self, vm=1, gfn=GFN, level=1):
        """The entry, found without a step."""
        page = self.module.tdcs(self.td).l2_roots[vm - 1]
        while page.level != level:
            page = self.module.sept_pages[L2Septe(page.septe(gfn).peek()).pfn]
        return L2Septe(page.septe(gfn).peek())

    def l1_entry(self, gfn=GFN, level=1):
        return self.module.peek_septe(self.td, gfn, level)

    def attr_wr(self, attributes, *, mask=None, vm=1, gfn=GFN, level=PG_LEVEL_4K):
        """Change one VM's attributes, as the guest."""
        call = tdg_mem_page_attr_wr(
            self.module,
            vcpu=self.vcpu(),
            gpa=gpa_of(gfn),
            level=level,
            attributes=of_vm(attributes, vm),
            flags=of_vm(ALL if mask is None else mask, vm),
        )
        return run(self.kernel, call)

    def attr_rd(self, gfn=GFN):
        return run(self.kernel, tdg_mem_page_attr_rd(self.module, vcpu=self.vcpu(), gpa=gpa_of(gfn)))

    def accept_steps(self, gfn=GFN, level=PG_LEVEL_4K, interrupt_pending=lambda: False):
        return tdg_mem_page_accept(
            self.module,
            td=self.td,
            vcpu=self.vcpu(),
            gpa=gpa_of(gfn),
            level=level,
            interrupt_pending=interrupt_pending,
        )

    def accept(self, *args, **options):
        return run(self.kernel, self.accept_steps(*args, **options))

    def check(self):
        """Everything that must hold when no call is in flight."""
        for text, invariant in INVARIANTS.items():
            assert invariant(self.module)() is True, text
        assert aliases_agree(self.module)() is True


def mapped(attributes=READ_WRITE, **options):
    """A world with a mapped page that L2 VM 1 shares."""
    world = L2World(**options)
    world.aug()
    assert world.accept().ok
    assert world.attr_wr(attributes).ok
    return world
