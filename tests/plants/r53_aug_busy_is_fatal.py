"""R53: TDH.MEM.PAGE.AUG or SEPT.ADD is busy, and KVM takes that for an error.

Source: b0327bb2e7e0 "KVM: TDX: Retry locally in TDX EPT violation handler on RET_PF_RETRY" and the RFC before it, "SEPT
SEAMCALL retry proposal": busy must map to RETRY.
"""

from mmu.errno import Errno
from sim import replaces
from tdx.kvm import sept


@replaces(sept.TdxSept._installed)
def _installed(self, result, leaf):
    """Every status but success is a bug."""
    return -Errno.EIO if self.tdx.bug_on(result, leaf) else 0
