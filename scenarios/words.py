"""Values of the model's words as a KVM developer names them: SPTEs, S-EPT entries, attributes, vCPU modes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from mmu import spte
from mmu.attributes import KVM_MEMORY_ATTRIBUTE_PRIVATE
from sim.recorder import plain
from tdx.module.septe import Septe
from vcpu.addresses import PgLevel
from vcpu.vcpu import Mode

LEVELS: Final = {level.short: int(level) for level in PgLevel}


def told(word: str, value: Any) -> str:
    """`value` of the word of that name, for people; what has no better name is as `plain` writes it."""
    if isinstance(value, int) and not isinstance(value, bool):
        for pattern, tell in _TELL:
            match = pattern.match(word)
            if match:
                return tell(match, value)
    return plain(value)


def _spte(word: re.Match[str], value: int) -> str:
    return spte.describe(value, LEVELS.get(word["level"], 1)) if value else "0"


def _septe(_word: re.Match[str], value: int) -> str:
    return str(Septe(value))


def _attributes(_word: re.Match[str], value: int) -> str:
    return "private" if value & KVM_MEMORY_ATTRIBUTE_PRIVATE else "shared"


def _mode(_word: re.Match[str], value: int) -> str:
    return Mode(value).name if value in set(Mode) else plain(value)


_TELL: Final[list[tuple[re.Pattern[str], Callable[[re.Match[str], int], str]]]] = [
    (re.compile(r"spte\[\S+ (?P<level>\S+) gfn "), _spte),
    (re.compile(r"sept\["), _septe),
    (re.compile(r"mem_attr\["), _attributes),
    (re.compile(r"vcpu\d+\.mode$"), _mode),
]
