"""R85: KVM_TDX_INIT_MEM_REGION asks whether the TD is already finalized before it takes the locks that make it stay so.

Source: b6408b6cec5d "KVM: SEV: Protect *all* of sev_mem_enc_register_region() with kvm->lock"; the same mistake, in TDX's
ioctl of the same purpose.
"""

from sim import replaces
from tdx.kvm import life
from tdx.kvm.state import TdState
from tdx.module import tdh_mr_extend
from vcpu.addresses import gpa_of


@replaces(life.init_mem_region)
def init_mem_region(tdx, vcpu, gfns, *, measure=True):
    """Test, lock, populate and measure."""
    kvm = tdx.kvm
    if (yield tdx.state.read()) is TdState.RUNNABLE:  # planted: belongs behind the locks
        return -22
    yield kvm.lock.lock()
    yield kvm.slots_lock.lock()
    yield kvm.srcu.read_lock()
    if vcpu.arch.mirror_root is None:
        yield from life.kvm_mmu_load(kvm, vcpu)
    code = 0
    for gfn in gfns.frames():
        code = yield from life._populate(tdx, vcpu, gfn)
        if code:
            break
        if measure:
            for offset in range(0, 4096, life.EXTEND_BYTES):
                result = yield from tdh_mr_extend(tdx.module, td=tdx.td, gpa=gpa_of(gfn) + offset)
                life.must(tdx, "TDH.MR.EXTEND", result)
    yield kvm.srcu.read_unlock()
    yield kvm.slots_lock.unlock()
    yield kvm.lock.unlock()
    return code
