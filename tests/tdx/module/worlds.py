"""Small worlds around the module: no KVM, no vCPU package, a host that is a function."""

from __future__ import annotations

from sim import Kernel
from tdx.module import (
    TDCX_PAGES,
    TDVPS_PAGES,
    LogicalProcessor,
    Td,
    TdExit,
    TdxModule,
    tdh_mem_page_aug,
    tdh_mem_sept_add,
    tdh_mng_addcx,
    tdh_mng_create,
    tdh_mng_init,
    tdh_mng_key_config,
    tdh_mr_finalize,
    tdh_vp_addcx,
    tdh_vp_create,
    tdh_vp_enter,
    tdh_vp_init,
)
from vcpu.addresses import LEVELS, PG_LEVEL_2M, PG_LEVEL_4K, Gfn, Pfn, align_down, gpa_of

GFN = Gfn(0x10000)
TDMR = (0x1000, 0x100000)
DATA = 0x8000
"""Frames from here on are nobody's and 2M-aligned."""


def run(kernel, steps):
    """Run one sequence alone and return its result."""
    box = []

    def body():
        box.append((yield from steps))

    kernel.thread("host", body())
    kernel.run()
    assert box, "it did not end"
    return box[0]


class World:
    """A module with one TD; every step of the build is a call below."""

    def __init__(self, kernel=None, *, vcpus=1, finalize=True, attributes=0, l2_vms=0, **options):
        self.kernel = kernel if kernel is not None else Kernel()
        self.module = TdxModule(self.kernel, tdmr=[TDMR], **options)
        self.l2_vms = l2_vms
        self._next = TDMR[0]
        self.td = Td(self.page(), "td0")
        self.lps = [LogicalProcessor(n) for n in range(max(vcpus, 1))]
        self.tdvprs = []
        self.sept = []
        run(self.kernel, self.build(vcpus, finalize, attributes))

    def page(self):
        """A frame that nobody has used."""
        self._next += 1
        return Pfn(self._next)

    def build(self, vcpus, finalize, attributes):
        module, td = self.module, self.td
        done = [(yield from tdh_mng_create(module, td=td, hkid=32))]
        for package in range(module.packages):
            done.append((yield from tdh_mng_key_config(module, td=td, package=package)))  # noqa: PERF401 - a comprehension cannot yield
        self.tdcx = [self.page() for _ in range(TDCX_PAGES + self.l2_vms)]
        for pfn in self.tdcx:
            done.append((yield from tdh_mng_addcx(module, td=td, pfn=pfn)))  # noqa: PERF401 - a comprehension cannot yield
        done.append((yield from tdh_mng_init(module, td=td, attributes=attributes, num_l2_vms=self.l2_vms)))
        for n in range(vcpus):
            tdvpr = self.page()
            self.tdvprs.append(tdvpr)
            done.append((yield from tdh_vp_create(module, td=td, tdvpr_pfn=tdvpr)))
            for _ in range(TDVPS_PAGES + 3 * self.l2_vms - 1):
                done.append((yield from tdh_vp_addcx(module, tdvpr_pfn=tdvpr, pfn=self.page())))  # noqa: PERF401 - a comprehension cannot yield
            done.append((yield from tdh_vp_init(module, tdvpr_pfn=tdvpr, lp=self.lps[n])))
        yield from self.tables(GFN)
        if finalize:
            done.append((yield from tdh_mr_finalize(module, td=td)))
        assert all(ret.ok for ret in done), [str(ret) for ret in done]

    def tables(self, gfn, lowest=PG_LEVEL_2M):
        """S-EPT pages down to the one whose parent entry is of level `lowest`."""
        for level in (4, 3, 2):
            if level < lowest:
                break
            pfn = self.page()
            ret = yield from tdh_mem_sept_add(
                self.module,
                td=self.td,
                gpa=gpa_of(align_down(gfn, LEVELS[level])),
                level=LEVELS[level],
                pfn=pfn,
            )
            assert ret.ok or ret.status.name == "TDX_EPT_ENTRY_STATE_INCORRECT", str(ret)

    def do(self, call, **operands):
        """One call, alone."""
        return run(self.kernel, call(self.module, **operands))

    def on(self, call, gfn=GFN, level=PG_LEVEL_4K, **operands):
        """One call on an entry, alone."""
        return self.do(call, td=self.td, gpa=gpa_of(gfn), level=level, **operands)

    def aug(self, gfn=GFN, pfn=DATA, level=PG_LEVEL_4K):
        ret = self.on(tdh_mem_page_aug, gfn, level, pfn=Pfn(pfn))
        assert ret.ok, str(ret)

    def vcpu(self, n=0):
        return self.module.vcpu(self.tdvprs[n])

    def enter(self, guest, n=0, lp=None):
        """TDH.VP.ENTER as steps; `guest` is a generator function."""
        return tdh_vp_enter(self.module, tdvpr_pfn=self.tdvprs[n], lp=lp or self.lps[n], guest=guest)

    def state(self, gfn=GFN, level=1):
        return self.module.peek_septe(self.td, gfn, level).state

    def leave(self):
        """A guest that leaves at once."""
        yield self.module.state.read_once()
        return TdExit.external_interrupt()
