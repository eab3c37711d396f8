"""What the module logs: the entry and the return of every SEAMCALL."""

from __future__ import annotations

from sim import Event


class SeamcallEntered(Event):
    """A SEAMCALL begins (kernel: trace_tdx_seamcall_enter of the TDX tracing patches)."""

    name = "tdx_seamcall"
    fn: str
    rcx: int
    rdx: int
    r8: int


class SeamcallReturned(Event):
    """A SEAMCALL returned (kernel: trace_tdx_seamcall_exit of the TDX tracing patches)."""

    name = "tdx_seamret"
    fn: str
    err: str
    rcx: int
    rdx: int
