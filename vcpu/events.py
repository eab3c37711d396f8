"""Events of the vCPU layer, under the kernel's tracepoint names (arch/x86/kvm/trace.h)."""

from __future__ import annotations

from sim import Event


class KvmEntry(Event):
    """A vCPU enters the guest (trace_kvm_entry, step V10)."""

    name = "kvm_entry"
    vcpu_id: int
    rip: int


class KvmExit(Event):
    """A vCPU left the guest (trace_kvm_exit, step V11); info1 is the exit qualification, info2 TDX's extended one."""

    name = "kvm_exit"
    vcpu_id: int
    exit_reason: str
    guest_rip: int
    info1: int
    info2: int


class RemoteRequest(Event):
    """kvm_make_all_cpus_request was called; `kicked` counts the pCPUs that were sent an IPI."""

    name = "kvm.request_made"
    request: str
    kicked: int


class GuestTouched(Event):
    """A guest access was served; `version` is the content seen or written."""

    name = "guest.page_touched"
    vcpu_id: int
    gpa: int
    access: str
    pfn: int
    pg_level: int
    version: int
