"""TDX around the MMU: Intel's module, and KVM's use of it.

What is modelled. `tdx.module` is the TDX module as a host and a guest see it: leaf calls, their locks, checks and
statuses, and the tables behind them. `tdx.kvm` is KVM's side: exits, the hook behind the mirror page table, kicks and
retries, building and tearing down a TD.

What is not. Attestation, migration, TD partitioning (L2 guests), service TDs, shared-memory I/O.

Who may import whom. `tdx.module` imports `sim` and `vcpu.addresses` and nothing else: it is the other side of the trust
boundary and must not know who calls it. `tdx.kvm` imports everything to its left and `tdx.module`.
"""
