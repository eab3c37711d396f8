"""Processors: addresses, pCPUs with a TLB each, vCPUs with modes and requests, and the guests that run on them.

What is modelled. `addresses` gives numbers their meaning. A `Pcpu` has interrupts that are on or off, IPIs that wait for
them, a TLB and a run queue; a `Vcpu` has `mode`, `requests` and `cpu` as the words KVM's protocols are built on.
`kvm_make_all_cpus_request` is reference 7.2, `run` is the loop V1 to V15, `guest` runs programs whose page contents are
versions (`memory`). More vCPUs than pCPUs take turns by time slices, and migrate to idle pCPUs.

What is not. Instructions other than memory accesses, ACCEPT, MapGPA and HLT; interrupt injection and the APIC (V2, V8);
a scheduler beyond first come, first served; TLB eviction; A/D assists (they come with dirty logging).

Sources: virt/kvm/kvm_main.c, arch/x86/kvm/x86.c, kernel/smp.c as cited by the reference; Intel SDM vol. 3C.
This layer calls upwards only through the tables in `ops`. It imports sim alone.
"""
