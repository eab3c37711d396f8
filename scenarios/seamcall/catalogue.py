"""The leaves as a user names them, and the operands they take: read off the module's tables, nothing is listed here by hand.

A leaf has its full name, its number, and every ending of its name that no other leaf has: `demote`, `page.demote`. Where an
ending fits several, the one of TDH.MEM is meant (`track` is TDH.MEM.TRACK), and if there is no such one, the user has to say more.

Operands come from what the leaf says of its registers (`Leaf.inputs`, see `tdx.module.operands`) and from those of its
parameters that travel in memory or not at all, which are given by name (`attributes`, `max_vcpus`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from inspect import Parameter, getdoc, signature
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeAlias

import tdx.module
from scenarios.errors import ScenarioError, nearest, shown
from scenarios.seamcall.language import Word
from tdx.module import LEAVES
from tdx.module.operands import decode
from tdx.module.tdcall import TDCALLS

Kind: TypeAlias = Literal[
    "gpa", "gpa_of_page", "level", "td", "vcpu", "page", "page?", "flag", "number", "value"
]

CONTEXT: Final = frozenset(
    {"lp", "guest", "version", "interrupt_pending", "package", "vcpu", "rip", "td", "registers"}
)
"""Parameters that the session supplies; `version` has an operand of its own."""

PLAIN: Final = frozenset({"int", "bool", "int | None", "bool | None"})
"""Types of operands that a line can express."""

REGISTERS: Final = ("rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13")


class LeafLike(Protocol):
    """What is asked of a leaf of either side."""

    @property
    def name(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def inputs(self) -> Mapping[str, str]: ...
    @property
    def parameters(self) -> frozenset[str]: ...


class OperandInfo(NamedTuple):
    """One operand: its name for the user, the register that carries it ("" if none does), what it is, and its lowest bit."""

    name: str
    register: str
    kind: Kind
    bit: int = 0


HOST: Final[Mapping[str, LeafLike]] = LEAVES
"""The host's calls by name."""
GUEST: Final[Mapping[str, LeafLike]] = TDCALLS
"""The guest's calls by name."""


def find_leaf(word: Word, leaves: Mapping[str, LeafLike], also: Iterable[str] = ()) -> LeafLike:
    """The leaf that a user means.

    Args: also: other names that could have stood here, for the remedy.
    Raises: ScenarioError: nobody has that name, or several have.
    """
    text = word.text.upper()
    if text in leaves:
        return leaves[text]
    if text.isdecimal():
        numbered = [leaf for leaf in leaves.values() if leaf.number == int(text[:9])]
        if not numbered:
            raise word.wrong(f"no modelled leaf has the number {text}", "`help` lists the leaves")
        return numbered[0]
    endings = endings_of(tuple(leaves))
    found = endings.get(text, ())
    if len(found) > 1:
        found = tuple(name for name in found if name.startswith("TDH.MEM.")) or found
    if len(found) > 1:
        raise word.wrong(
            f"{word.text} may be any of {', '.join(found)}",
            f"write {' or '.join(shortest(name, leaves) for name in found)}",
        )
    if not found:
        names = [*also, *(ending.lower() for ending in endings)]
        close = get_close_matches(word.text.lower()[:80], names, n=1)
        remedy = f"did you mean {close[0]}?" if close else "`help` lists everything"
        raise word.wrong(f"no such leaf or command: {shown(word.text)}", remedy)
    return leaves[found[0]]


@cache
def endings_of(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Every ending of the names, at a dot, to the names that end so."""
    endings: dict[str, tuple[str, ...]] = {}
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            ending = ".".join(parts[start:])
            endings[ending] = (*endings.get(ending, ()), name)
    return endings


def shortest(name: str, leaves: Iterable[str]) -> str:
    """The shortest ending that only this leaf has, in small letters: what `help` proposes to type."""
    endings = endings_of(tuple(leaves))
    mine = [ending for ending, names in endings.items() if names == (name,)]
    return min(mine, key=len, default=name).lower()


def operands_of(leaf: LeafLike) -> list[OperandInfo]:
    """What a user may give the leaf by name, in the order in which bare numbers fill it."""
    found: list[OperandInfo] = []
    carried: set[str] = set()
    for register, carries in leaf.inputs.items():
        names = decode(carries, 0)
        carried |= set(names)
        found += [_carried(register, carries, name, names) for name in names]
    if "version" in leaf.parameters:
        found.append(OperandInfo("version", "rax", "number"))
    for name, parameter in _parameters(leaf).items():
        if name in leaf.parameters - carried - CONTEXT and parameter.annotation in PLAIN:
            found.append(OperandInfo(name, "", "value"))
    return found


def _carried(register: str, carries: str, name: str, beside: Mapping[str, Any]) -> OperandInfo:
    """One operand of a register. Args: beside: all that the register carries, as decoded from 0."""
    if name == "gpa":
        return OperandInfo(name, register, "gpa_of_page" if "level" in beside else "gpa")
    if name == "level":
        return OperandInfo(name, register, "level")
    if name == "td":
        return OperandInfo(name, register, "td")
    if name == "tdvpr_pfn":
        return OperandInfo("vcpu", register, "vcpu")
    if "pfn" in name:
        return OperandInfo(name.replace("pfn", "page"), register, "page?" if "?" in carries else "page")
    kind: Kind = "flag" if isinstance(beside[name], bool) else "number"
    lowest = next((bit for bit in range(64) if decode(carries, 1 << bit)[name] != beside[name]), 0)
    return OperandInfo(name, register, kind, lowest)


def function_of(leaf: LeafLike) -> Callable[..., Any] | None:
    """The leaf as Python code calls it: the function of its name, in the package or in its own file."""
    name = leaf.name.lower().replace(".", "_")
    own: Any = getattr(tdx.module, name, None) or getattr(
        sys.modules.get(f"tdx.module.leaves.{name}"), name, None
    )
    return own  # type: ignore[no-any-return]


def _parameters(leaf: LeafLike) -> Mapping[str, Parameter]:
    function = function_of(leaf)
    return signature(function).parameters if function is not None else {}


def described(leaf: LeafLike) -> str:
    """What the leaf's own docstring says of it."""
    function = function_of(leaf)
    return (getdoc(function) or "") if function is not None else ""


def out_of_reach(leaf: LeafLike) -> str:
    """The operand that the leaf needs and no line can express (a list in memory, say); "" if there is none."""
    carried = {name for carries in leaf.inputs.values() for name in decode(carries, 0)}
    for name, parameter in _parameters(leaf).items():
        needed = (
            name in leaf.parameters and name not in carried | CONTEXT and parameter.default is parameter.empty
        )
        if needed and parameter.annotation not in PLAIN:
            return f"{name} ({parameter.annotation})"
    return ""


def operand_named(leaf: LeafLike, word: Word) -> OperandInfo | str:
    """The operand, or the register, of that name.

    Raises: ScenarioError: the leaf has none of that name.
    """
    if word.text in (*REGISTERS, "rax"):
        return word.text
    known = operands_of(leaf)
    for operand in known:
        if operand.name == word.text:
            return operand
    names = [operand.name for operand in known]
    raise ScenarioError(
        f"{leaf.name} has no operand {word.text}",
        "",
        0,
        word.column,
        "",
        nearest(word.text, names) or "it takes none",
    )
