"""Operands and the registers that carry them: one vocabulary for both directions.

A leaf says of each input register what it carries (`seamcall(rcx="page_info", rdx="td+allow_existing")`); a name with `?` may be
NULL_PA, one after `+` is bit 0 of the word. `DECODE` makes operands of a register's word without judging them: what no typed
operand can express (reserved bits, an address that is not a page's) becomes an operand that the leaf is sure to refuse, with the
status that the module has for it. `OperandCheck` is for callers who write Python and expect Python's errors.
Source: reference 3.4, 5, 8; tdx_api_defs.h (page_info_api_input_t, td_handle_and_flags_t).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from tdx.module.status import NULL_PA
from vcpu.addresses import LEVELS, PAGE_SHIFT, PAGE_SIZE, PG_LEVEL_4K, Gpa, Pfn, PgLevel

BAD_PFN = Pfn(-1)
"""Stands for a word that is no page address: the PAMT refuses it as OPERAND_INVALID."""
GPA_END = 1 << 52
BIT_63 = 1 << 63
RESERVED_FLAGS = 0xFFE | 0xFFF << 52
"""In a word of TDR address and flags: all but bit 0 and the address."""

VCPU_HINT = 1 << 52
VCPU_RESUME_L1 = 1 << 53
"""Flags beside the TDVPR's address in RCX of TDH.VP.ENTER (vcpu_and_flags_t)."""
HKID_SHIFT = 46
HKID_BITS = GPA_END - (1 << HKID_SHIFT)
"""The upper bits of a physical address, which the key id takes from it."""


@dataclass(frozen=True, slots=True)
class Td:
    """How a host names a TD: the frame of its TDR. It is only a number; the module checks what it finds there."""

    tdr_pfn: Pfn
    name: str = "td"


def page(word: int) -> Pfn:
    """The frame at a page address."""
    return BAD_PFN if word & (PAGE_SIZE - 1) or word >= GPA_END else Pfn(word >> PAGE_SHIFT)


def _page_info(word: int) -> dict[str, Any]:
    level = (word & 7) + 1
    return {"gpa": Gpa(word & ~7), "level": LEVELS[level] if level < len(LEVELS) else level}


def _sept_page(word: int) -> Pfn | None:
    return None if word == NULL_PA else page(word & ~BIT_63)


def _td_and_flag(flag: str) -> Callable[[int], dict[str, Any]]:
    def decode(word: int) -> dict[str, Any]:
        pfn = BAD_PFN if word & RESERVED_FLAGS else page(word & ~1)
        return {"td": Td(pfn), flag: bool(word & 1)}

    return decode


def _hpa_info(word: int) -> dict[str, Any]:
    level = (word & 7) + 1
    return {"pfn": page(word & ~7), "level": LEVELS[level] if level < len(LEVELS) else level}


def _vcpu_and_flags(word: int) -> dict[str, Any]:
    flags = {"host_recoverability_hint": bool(word & VCPU_HINT), "resume_l1": bool(word & VCPU_RESUME_L1)}
    return {"tdvpr_pfn": page(word & ~(VCPU_HINT | VCPU_RESUME_L1)), **flags}


def _pfn_and_hkid(word: int) -> dict[str, Any]:
    address = word & ~HKID_BITS
    return {"pfn": page(address), "hkid": (word & HKID_BITS) >> HKID_SHIFT}


DECODE: dict[str, Callable[[int], dict[str, Any]]] = {
    "page_info": _page_info,
    "hpa_info": _hpa_info,
    "gpa": lambda word: {"gpa": Gpa(word)},
    "td": lambda word: {"td": Td(page(word))},
    "pfn": lambda word: {"pfn": page(word)},
    "sept_pfn?": lambda word: {"pfn": _sept_page(word)},
    "l2_1_pfn?": lambda word: {"l2_1_pfn": _sept_page(word)},
    "l2_2_pfn?": lambda word: {"l2_2_pfn": _sept_page(word)},
    "l2_3_pfn?": lambda word: {"l2_3_pfn": _sept_page(word)},
    "pamt_pfn0": lambda word: {"pamt_pfn0": page(word)},
    "pamt_pfn1": lambda word: {"pamt_pfn1": page(word)},
    "source_pfn": lambda word: {"source_pfn": page(word)},
    "tdvpr_pfn": lambda word: {"tdvpr_pfn": page(word)},
    "vcpu_and_flags": _vcpu_and_flags,
    "pfn_and_hkid": _pfn_and_hkid,
}
"""What a register carries, to its operands by name; `td+flag` and any other name (a plain number) need no row."""


def decode(carries: str, word: int) -> dict[str, Any]:
    """The operands in a register's word."""
    known = DECODE.get(carries)
    if known is not None:
        return known(word)
    if carries.startswith("td+"):
        return _td_and_flag(carries[3:])(word)
    return {carries: word}


def encode(carries: str, operands: Mapping[str, Any]) -> int:
    """The register's word for typed operands; 0 for a register that carries nothing."""
    if not carries:
        return 0
    if carries == "page_info":
        return page_info(operands["gpa"], operands.get("level", PG_LEVEL_4K))
    if carries == "hpa_info":
        return page_info(operands["pfn"] << PAGE_SHIFT, operands.get("level", PG_LEVEL_4K))
    if carries == "vcpu_and_flags":
        hint, resume_l1 = operands.get("host_recoverability_hint"), operands.get("resume_l1")
        flags = (VCPU_HINT if hint else 0) | (VCPU_RESUME_L1 if resume_l1 else 0)
        return int(operands["tdvpr_pfn"]) << PAGE_SHIFT | flags
    if carries == "pfn_and_hkid":
        return int(operands["pfn"]) << PAGE_SHIFT | int(operands["hkid"]) << HKID_SHIFT
    name, _, flag = carries.rstrip("?").partition("+")
    value = operands.get("pfn" if name == "sept_pfn" else name)
    if isinstance(value, Td):
        return value.tdr_pfn << PAGE_SHIFT | bool(flag and operands.get(flag))
    if "pfn" in name:
        return NULL_PA if value is None and carries.endswith("?") else int(value or 0) << PAGE_SHIFT
    return int(value) if isinstance(value, int) else 0


def page_info(gpa: int, level: PgLevel | int) -> int:
    """GPA and level in one word, as in RCX of the memory calls."""
    return int(gpa) | int(level) - 1


def mapping_and_flags(gpa: int, level: PgLevel, *, pending: bool) -> int:
    """What the guest's attribute calls return in RCX: the page around `gpa`, its level, and bit 62 if it is pending."""
    return gpa & -level.size | level.tdx | pending << 62


class OperandCheck:
    """Sees that typed operands can be what they are called, before the call makes its first step."""

    __slots__ = ("_leaf", "_needed", "names")

    def __init__(self, leaf: str, body: Callable[..., object], *not_operands: str) -> None:
        parameters = {
            name: parameter
            for name, parameter in signature(body).parameters.items()
            if name not in not_operands
        }
        self._leaf = leaf
        self.names = frozenset(parameters)
        """All operands by name."""
        self._needed = [
            name for name, parameter in parameters.items() if parameter.default is Parameter.empty
        ]

    def __call__(self, operands: Mapping[str, Any]) -> None:
        """Raises: TypeError: an operand that the leaf does not have, or that is missing, or a TD that is no `Td`. ValueError: a level
        that does not exist, an address or frame out of range, a guest address that is not aligned to the level's size.
        """
        leaf = self._leaf
        for name in operands:
            if name not in self.names:
                raise TypeError(f"{leaf}: no operand {name!r}; there are {', '.join(sorted(self.names))}")
        for name in self._needed:
            if name not in operands:
                raise TypeError(f"{leaf}: operand {name!r} is missing")
        level = operands.get("level")
        if level is not None and not isinstance(level, PgLevel):
            known = ", ".join(known.name for known in PgLevel)
            raise ValueError(f"{leaf}: {level!r} is no level; there are {known}")
        for name, value in operands.items():
            if name == "td":
                if not isinstance(value, Td):
                    raise TypeError(f"{leaf}: td is {value!r}, not a Td")
            elif name == "gpa":
                if not 0 <= value < GPA_END:
                    raise ValueError(f"{leaf}: gpa {value:#x} is no guest physical address of 52 bits")
                if level is not None and value & (level.size - 1):
                    raise ValueError(
                        f"{leaf}: gpa {value:#x} is not aligned to {level.name} ({level.size:#x})"
                    )
            elif name == "data":
                if not 0 <= value < 1 << 64:
                    raise ValueError(f"{leaf}: data {value:#x} does not fit into 8 bytes")
            elif name.endswith("pfn") and value is not None and not 0 <= value < GPA_END >> PAGE_SHIFT:
                raise ValueError(f"{leaf}: {name} {value:#x} is no page frame number")
