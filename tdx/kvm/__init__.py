"""KVM's side of TDX: what vmx/tdx.c does between the common MMU and the module.

What is modelled, of generation v7. The mirror's hooks with their handling of BUSY (`sept`), removal by BLOCK, TRACK, kick,
REMOVE (`no_vcpus`), the exit handlers (`vcpu_ops`, `ept_violation`), building a TD and taking it down (`life`).
The guest's own calls reach the module through `vcpu_ops` as well: a guest is not KVM, but this is where it is run.

What is not. Dynamic PAMT, huge private pages and their splits, TD attributes other than SEPT_VE_DISABLE, MSR and CPUID
emulation, MMIO by TDVMCALL, TDX metadata beyond locks and times.

Source: arch/x86/kvm/vmx/tdx.c as cited by the reference (K7). Imports sim, vcpu, mmu and tdx.module.
"""
