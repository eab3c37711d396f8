"""What if KVM gave an S-EPT page back without TDH.PHYMEM.PAGE.RECLAIM? The module still knows it as a table.

The plant of `uaf-table` on the module's side, at teardown; r65_sept_table_freed_early frees a table of a living TD.
Source: races.md R65 (tdx_sept_free_private_spt).
"""

from sim import replaces
from tdx.kvm.sept import TdxSept


@replaces(TdxSept.free_external_spt)
def free_external_spt(sept, gfn, level, sp):
    """Says that it worked."""
    return 0
    yield
