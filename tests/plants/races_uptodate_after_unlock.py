"""A page of guest_memfd is marked up to date when its folio has been unlocked already.

Source: virt/kvm/guest_memfd.c, kvm_gmem_get_pfn(): the page is prepared and marked before folio_unlock(); reference 3.3
(F27e), 11.4 ("folio state: folio lock").
"""

from mmu import gmem
from mmu.errno import Errno
from sim import replaces


@replaces(gmem._get_pfn)
def _get_pfn(file, file_cell, slot, gfn, index):
    """F27c to F27e."""
    folio = yield from file.inode.get_folio(index)
    if isinstance(folio, Errno):
        return folio
    fresh = not (yield folio.uptodate.read())
    yield folio.lock.unlock()
    if fresh:
        yield folio.uptodate.write(True)
    return folio.pfn + index - folio.index, 0
