"""A pCPU's TLB: cached translations of guest physical addresses, in 4K, 2M and 1G entries.

Entries are tagged with an address space (a TD's private half, or a VM's EPT), filled by walks and by nothing else, and
dropped by flushes of this pCPU only: nobody can flush another CPU's TLB, which is why shootdowns exist. A pCPU touches
its TLB alone, so it is not a cell; its contents are what the `stale-tlb` checker looks at.
Not modelled: eviction (a real TLB forgets earlier, never later), linear-address tags, cached non-leaf entries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vcpu.addresses import Gfn, Pfn, PgLevel


class Translation(NamedTuple):
    """A cached mapping. `gfn` and `pfn` are the first of the mapping; `gfn` carries the shared bit if the access did.

    `filled` is the step of the walk that read it, for the ledger.
    """

    gfn: Gfn
    pfn: Pfn
    level: PgLevel
    writable: bool
    executable: bool
    filled: int = 0

    def frame(self, gfn: int) -> Pfn:
        """The host frame behind a guest frame of this mapping."""
        return Pfn(self.pfn + gfn - self.gfn)

    def allows(self, access: str) -> bool:
        """Whether an access of this kind (read, write, execute) may use it."""
        return access == "read" or (self.writable if access == "write" else self.executable)


class Tlb:
    """Translations by address space."""

    __slots__ = ("_spaces", "flushes")

    def __init__(self) -> None:
        self._spaces: dict[str, dict[int, Translation]] = {}
        self.flushes = 0

    def lookup(self, space: str, gfn: int) -> Translation | None:
        """The cached translation of a frame, of whatever size."""
        entries = self._spaces.get(space)
        if not entries:
            return None
        for level in (1, 2, 3):
            found = entries.get(gfn >> 9 * (level - 1) << 3 | level)
            if found is not None:
                return found
        return None

    def fill(self, space: str, translation: Translation) -> None:
        """Cache the result of a walk."""
        level = translation.level
        key = translation.gfn >> 9 * (level - 1) << 3 | level
        self._spaces.setdefault(space, {})[key] = translation

    def flush(self, space: str) -> None:
        """Forget one address space (INVEPT single context, or the module at VP.ENTER)."""
        self._spaces.pop(space, None)
        self.flushes += 1

    def flush_all(self) -> None:
        """Forget everything (INVEPT global)."""
        self._spaces.clear()
        self.flushes += 1

    def entries(self) -> Iterator[tuple[str, Translation]]:
        """Everything cached, for observers."""
        for space, entries in self._spaces.items():
            for translation in entries.values():
                yield space, translation
