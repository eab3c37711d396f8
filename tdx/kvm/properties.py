"""What must be true of a VM at quiescence: the reference's Q1 to Q5, each stated once.

`watch` registers them for the end of an execution. They peek; they never yield.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mmu.page_table import KvmMmuPage
from mmu.spte import is_frozen_spte, is_last_spte, is_shadow_present_pte, spte_to_pfn
from mmu.vm import Kvm
from sim import Broken, Kernel
from tdx.kvm.state import KvmTdx
from tdx.module import PageType
from tdx.module.invariants import INVARIANTS
from tdx.module.septe import SeptState

Property = Callable[[], "Broken | None"]


def watch(kernel: Kernel, kvm: Kvm, tdx: KvmTdx | None) -> None:
    """Judge the VM when all threads have ended, unless it died of a bug or was destroyed."""

    def living(check: Callable[[], Broken | None]) -> Property:
        return lambda: None if kvm.vm_bugged or kvm.destroyed else check()

    kernel.at_end("no reachable SPTE is frozen", living(partial(no_frozen_spte, kvm)), kind="overwrite")
    kernel.at_end("no invalidation window is open", partial(no_open_window, kvm), kind="refcount")
    kernel.at_end(
        "page statistics equal the leafs there are", living(partial(stats_match, kvm)), kind="refcount"
    )
    if kvm.has_private_mem:
        kernel.at_end(
            "a frame is mapped only as what its attribute says",
            living(partial(mappings_match_attributes, kvm)),
            kind="stale-spte",
        )
    kernel.at_end("no lock is held", partial(no_lock_held, kvm), kind="lock-rule")
    kernel.at_end(
        "every page of guest_memfd has its file's reference and no other",
        living(partial(gmem_references, kvm)),
        kind="refcount",
    )
    kernel.at_end(
        "a root has one reference for each vCPU that has it loaded, and one for the MMU",
        living(partial(root_references, kvm)),
        kind="refcount",
    )
    kernel.at_end("every frame of a page table is a table's", partial(table_frames, kvm), kind="leak")
    if tdx is not None:
        kernel.at_end(
            "mirror and S-EPT agree", living(partial(mirror_matches_sept, kvm, tdx)), kind="diverged"
        )
        kernel.at_end("a destroyed TD owns no page", partial(nothing_left, kvm, tdx), kind="leak")
        for text, make in INVARIANTS.items():
            kernel.at_end(text, make(tdx.module), kind="refcount" if "count" in text else "diverged")
        kvm.host_memory.on_free.append(partial(frames_freed, tdx))


def tables(kvm: Kvm) -> list[KvmMmuPage]:
    """Every table reachable from a valid root."""
    todo = [root for root in kvm.tdp_mmu_roots if not root.invalid.peek()]
    found = []
    while todo:
        sp = todo.pop()
        found.append(sp)
        for _, spte in sp.present():
            if not is_last_spte(spte, sp.level):
                child = kvm.page_tables.find(spte_to_pfn(spte))
                if child is not None:
                    todo.append(child)
    return found


def no_frozen_spte(kvm: Kvm) -> Broken | None:
    """Q2."""
    for sp in tables(kvm):
        for index, cell in sp.cells.items():
            if is_frozen_spte(cell.peek()):
                return Broken(gfn=hex(sp.gfn_of(index)), table=sp)
    return None


def no_open_window(kvm: Kvm) -> Broken | None:
    """Q3."""
    open_windows = kvm.mmu_invalidate_in_progress.peek(), kvm.mn_active_invalidate_count.peek()
    return Broken(in_progress=open_windows[0], mn_active=open_windows[1]) if any(open_windows) else None


def stats_match(kvm: Kvm) -> Broken | None:
    """Q4, for leafs. An invalid root that still owes its zap still counts."""
    if any(root.invalid.peek() for root in kvm.tdp_mmu_roots):
        return None
    counted = sum(is_last_spte(spte, sp.level) for sp in tables(kvm) for _, spte in sp.present())
    kept = sum(kvm.page_tables.pages.values())
    return Broken(leafs=counted, statistics=kept) if counted != kept else None


def mappings_match_attributes(kvm: Kvm) -> Broken | None:
    """I10: outside of a window a mirror leaf is for a private frame, a direct leaf of a private-capable slot for a shared one.

    Without a mirror one table maps both, and nothing can be told from it.
    """
    if not kvm.has_mirror:
        return None
    for sp in tables(kvm):
        for index, spte in sp.present():
            gfn = sp.gfn_of(index) & ~kvm.direct_bits
            if is_last_spte(spte, sp.level) and kvm.attributes.peek_private(gfn) != sp.is_mirror:
                slot = kvm.slot_of(gfn)
                if slot is not None and slot.has_gmem:
                    return Broken(
                        gfn=hex(gfn), mapped_by=sp.kind, attribute="shared" if sp.is_mirror else "private"
                    )
    return None


def no_lock_held(kvm: Kvm) -> Broken | None:
    """Nobody left a lock behind."""
    locks = (kvm.mmu_lock, kvm.slots_lock, kvm.lock, kvm.tdp_mmu_pages_lock, kvm.mn_invalidate_lock)
    held = [f"{lock} by {lock.holders()[0]}" for lock in locks if lock.holders()]
    return Broken(held=", ".join(held)) if held else None


def gmem_references(kvm: Kvm) -> Broken | None:
    """A fault that ends drops the reference that it took, however it ends."""
    for slot in kvm.slots():
        file = slot.gmem.file.peek() if slot.gmem is not None else None
        for folio in file.inode.folios() if file is not None else ():
            refs = kvm.host_memory.refs(folio.pfn)
            if refs != 1:
                return Broken(folio=folio, references=refs)
    return None


def root_references(kvm: Kvm) -> Broken | None:
    """kvm_tdp_mmu_get_root and _put_root balance."""
    for root in kvm.tdp_mmu_roots:
        loaded = sum(root in (vcpu.arch.root, vcpu.arch.mirror_root) for vcpu in kvm.vcpus)
        expected = loaded + (not root.invalid.peek() or root.scheduled_root_to_zap.peek())
        if root.root_count.peek() != expected:
            return Broken(root=root, references=root.root_count.peek(), expected=expected)
    return None


def table_frames(kvm: Kvm) -> Broken | None:
    """A table that was unlinked is freed, one that was never linked is given back."""
    frames = kvm.host_memory.frames_of("mmu_shadow_page_cache")
    linked = kvm.page_tables.live + len(kvm.tdp_mmu_roots)
    return Broken(frames=frames, linked=linked) if frames != linked else None


def frames_freed(tdx: KvmTdx, pfn: int, pages: int) -> None:
    """Frames go back to the host (`HostMemory.on_free`): the module must not know them any more (races.md R65)."""
    if tdx.kvm.vm_bugged:
        return
    for frame in range(pfn, pfn + pages):
        kind = tdx.module.pamt_type(frame)
        if kind is PageType.PT_NDA:
            continue
        tdx.kvm.kernel.find(
            "uaf-table" if kind is PageType.PT_EPT else "uaf-page",
            f"a frame is freed while the module uses it as {kind.name}",
            pfn=hex(frame),
        )


def mirror_matches_sept(kvm: Kvm, tdx: KvmTdx) -> Broken | None:
    """Q1: a present mirror leaf has an unblocked S-EPT leaf with the same pfn, and the other way round."""
    mirrored: dict[int, int] = {}
    for sp in tables(kvm):
        if sp.is_mirror:
            for index, spte in sp.present():
                if is_shadow_present_pte(spte) and is_last_spte(spte, sp.level):
                    mirrored[sp.gfn_of(index)] = spte_to_pfn(spte)
    for gfn, _, state, pfn in tdx.module.leaves(tdx.td):
        if state in (SeptState.BLOCKED, SeptState.PENDING_BLOCKED):
            return Broken(gfn=hex(gfn), sept=state.name)
        expected = mirrored.pop(gfn, None)
        if expected != pfn:
            return Broken(
                gfn=hex(gfn), sept_pfn=hex(pfn), mirror_pfn=expected if expected is None else hex(expected)
            )
    for missing, frame in mirrored.items():
        return Broken(gfn=hex(missing), mirror_pfn=hex(frame), sept="FREE")
    return None


def nothing_left(kvm: Kvm, tdx: KvmTdx) -> Broken | None:
    """After vm_destroy the module knows no page of the TD."""
    if not kvm.destroyed:
        return None
    left = [entry.kind.name for entry in tdx.module.pamt.assigned()]
    return Broken(pages=len(left), kinds=", ".join(sorted(set(left)))) if left else None
