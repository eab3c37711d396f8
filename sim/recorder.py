"""The trace recorder: what happened, step by step, and a digest of it."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.access import Access
    from sim.kernel import Kernel
    from sim.thread import Thread


class Recorder:
    """Attach with `kernel.check(recorder)`. Keeps the last `keep` steps as text, and a digest over all of them."""

    def __init__(self, keep: int = 1000) -> None:
        self.keep = keep
        self.lines: list[str] = []
        self._digest = blake2b(digest_size=16)

    def __call__(self, kernel: Kernel, thread: Thread, access: Access) -> None:
        line = f"{kernel.steps} {kernel._now} {thread.name} {access!r} = {plain(access._value)}"
        self._digest.update(line.encode())
        stack = thread.stack()
        self.lines.append(f"{line}  [{stack[-1] if stack else 'end'}]")
        if len(self.lines) > 2 * self.keep:
            del self.lines[: -self.keep]

    def digest(self) -> str:
        """The same for two executions exactly if they took the same steps with the same values at the same times."""
        return self._digest.hexdigest()


def plain(value: Any) -> str:
    """A value as text without addresses: equal values give equal text on every machine."""
    if value is None or isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return hex(value) if value > 9 else str(value)
    text = str(value)
    return type(value).__name__ if " at 0x" in text or "object>" in text else text
