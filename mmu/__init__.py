"""KVM's memory management unit: the TDP MMU with mirrored page tables, memslots, attributes and guest_memfd.

What is modelled. The *data*, one module each: `spte` (an entry is the real 64-bit number), `page_table` (tables, their
words, use after free), `caches` (what a fault allocates beforehand), `memslots` (ranges, lpage_info, the published set),
`attributes` (private or shared, by frame), `gmem` (guest_memfd: folios, bindings, truncation), `host_memory` (who owns a
frame; the VMM's own mappings), `errno`. The *paths*, named after what they do: `fault.py` resolves a fault, `tdp_mmu.py`
walks and writes entries, `zap.py` removes, `invalidate.py` opens and closes invalidation windows, `conversion.py` turns
shared memory private and back; each step there carries its id in the reference (F21, C6, ...). A path knows one hook for
the table behind a mirror, defined on old and new SPTE, and nothing of TDX's rules.

What is not, and why. The shadow MMU and nested guests: a TD has neither. Rmaps: only the shadow MMU has them. SMM's
second address space: TDs have no SMM. Swap, migration and KSM: guest_memfd has none, and for shared memory an unmap with
a new fault is the same to KVM. Page contents are `vcpu.memory`'s. What a word, a lock or a grace period is, is `sim`'s.

Words are made when they are first looked at, so that a world costs what it uses, not what it spans.

Sources: Linux, arch/x86/kvm/mmu/ and virt/kvm/, as of 7.0/7.1, with older and proposed behaviour as profiles;
Documentation/virt/kvm/locking.rst. Who may import whom: mmu imports sim and vcpu; tdx and scenarios import mmu.
"""
