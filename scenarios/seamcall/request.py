"""From a line to registers: what a call is made with, what stands where, and the defaults of what was left out.

A default is what a host would most likely put there: the only TD, the first free page of the right size, the level of the entry
where the walk to the address ends. Every operand is shown with the call, defaults included. `rcx=0x...` puts any word into a
register, whatever the operands say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from scenarios.errors import ScenarioError, nearest
from scenarios.seamcall import catalogue
from scenarios.seamcall.catalogue import Kind, LeafLike, OperandInfo
from scenarios.seamcall.language import Line, Word, looks_like_number, number, switch
from scenarios.seamcall.words import address
from scenarios.seamcall.world import World
from tdx.module import objects
from tdx.module.dispatch import VERSION_SHIFT, Registers
from tdx.module.operands import decode
from tdx.module.sept_states import NEXT_STATE
from tdx.module.status import NULL_PA
from vcpu.addresses import LEVELS, PAGE_SHIFT, PG_LEVEL_2M, PG_LEVEL_4K, PgLevel, gfn_of

CREATES: Final = {"TDH.MNG.CREATE": "td", "TDH.VP.CREATE": "vcpu"}
"""Leaves that make something which then has a name."""
OWN_PAGES: Final = "TDH.PHYMEM."
"""Leaves of this family are about a page that somebody has: no free one will do."""
HOST_PAGE: Final = 0x100
"""A frame outside the TDMR: a page of the host's own, as the source of what is copied in."""
BITS: Final = {
    "attributes": {
        name: getattr(objects, name)
        for name in ("DEBUG", "SEPT_VE_DISABLE", "MIGRATABLE")
        if hasattr(objects, name)
    }
}
"""Names of bits, by operand."""
LEVEL_NAMES: Final = {level.short.upper(): level for level in PgLevel}
LEVEL_BITS: Final = 7


class About(NamedTuple):
    """The S-EPT entry that a call is about."""

    td: str
    gpa: int
    level: int


@dataclass
class Request:
    """A call, ready to be made."""

    leaf: LeafLike | None
    """None for what is no call: a memory access of a guest, an interrupt."""
    registers: Registers
    direct: dict[str, Any]
    """Operands that no register carries."""
    told: list[tuple[str, str]]
    """Operands by name, as they are shown."""
    about: About | None = None
    vcpu: str = ""
    """The vCPU that it is about, if it is about one."""
    names: dict[str, int] = field(default_factory=dict)
    """Names that come into being with it, and their frames."""
    verb: str = "touch"
    """What it is called if it is no call."""


class Maker:
    """Makes requests in a world.

    Args: td: the TD meant where none is named. taken: frames that calls in the middle are about to use.
    """

    def __init__(self, world: World, td: str, taken: set[int]) -> None:
        self.world = world
        self.td = td
        self.taken = taken

    def request(self, leaf: LeafLike, line: Line, *, inside: str = "") -> Request:
        """The call that a line makes. Args: inside: the TD in which the caller runs, if it is a guest.

        Raises: ScenarioError: an operand that the leaf does not have, a name that nobody has, no number, nothing where a
            value is needed.
        """
        operands = catalogue.operands_of(leaf)
        given, raw = self._given(leaf, operands, line)
        made = _Making(self, leaf, line, given, inside)
        words = {register: number(word) for register, word in raw.items()}
        for operand in operands:
            if operand.register not in raw:
                made.put(operand, words)
        rax = words.pop("rax", leaf.number | made.version << VERSION_SHIFT)
        request = Request(leaf, Registers(rax, **words), made.direct, made.told)
        request.told += [(register, f"{number(word):#x}") for register, word in raw.items()]
        request.names = made.names
        request.vcpu = made.vcpu
        request.about = self._about(leaf, request.registers, inside)
        return request

    def _given(
        self, leaf: LeafLike, operands: list[OperandInfo], line: Line
    ) -> tuple[dict[str, Word], dict[str, Word]]:
        """Operands and raw registers that the line has."""
        given: dict[str, Word] = {}
        raw: dict[str, Word] = {}
        for name, value in line.named:
            operand = catalogue.operand_named(leaf, name)
            if isinstance(operand, str):
                raw[operand] = value
            else:
                given[operand.name] = value
        numeric = [operand for operand in operands if operand.kind not in {"td", "vcpu", "flag"}]
        for word in line.words:
            kind = self._kind_of(word)
            fitting = numeric if kind is None else [operand for operand in operands if operand.kind == kind]
            free = [operand for operand in fitting if operand.name not in given]
            if not free:
                raise word.wrong(f"{leaf.name} has no place for {word.text}", _usage(leaf, operands))
            given[free[0].name] = word
        return given, raw

    def _kind_of(self, word: Word) -> str | None:
        """`td` or `vcpu` for a name of one; None for what fills the next operand."""
        text = word.text.lower()
        for kind, names in (("td", self.world.td_pages), ("vcpu", self.world.vcpu_pages)):
            if text in names or (text.startswith(kind) and text[len(kind) :].isdecimal()):
                return kind
        if looks_like_number(text) or text in {"auto", "none"}:
            return None
        raise word.unknown("such TD, vCPU or number:", [*self.world.td_pages, *self.world.vcpu_pages])

    def _about(self, leaf: LeafLike, registers: Registers, inside: str) -> About | None:
        """The entry that the registers name; None for a call that is about none."""
        gpa: int | None = None
        level = 1
        td = inside or self.td
        for register, carries in leaf.inputs.items():
            word = getattr(registers, register)
            carried = decode(carries, word)
            if "gpa" in carried:
                gpa = word & ~LEVEL_BITS
                level = int(carried.get("level", PG_LEVEL_4K))
            elif "td" in carried:
                td = self.world.td_name(word >> PAGE_SHIFT)
        return None if gpa is None else About(td, gpa, level)


def _usage(leaf: LeafLike, operands: list[OperandInfo]) -> str:
    names = ", ".join(operand.name for operand in operands)
    return f"it takes {names}" if names else f"{leaf.name} takes no operands"


class _Making:
    """One request on the way: a word of a register after the other."""

    def __init__(
        self, maker: Maker, leaf: LeafLike, line: Line, given: Mapping[str, Word], inside: str
    ) -> None:
        self.maker = maker
        self.world = maker.world
        self.leaf = leaf
        self.verb = line.verb
        self.given = given
        self.inside = inside
        self.direct: dict[str, Any] = {}
        self.told: list[tuple[str, str]] = []
        self.names: dict[str, int] = {}
        self.vcpu = ""
        self.version = 0
        self._gpa = 0
        self._level: int = PG_LEVEL_4K
        self._used: set[int] = set()
        self._words: dict[Kind, Callable[[OperandInfo, Word | None], tuple[int, str]]] = {
            "gpa": self._address,
            "gpa_of_page": self._address_of_page,
            "level": self._level_bits,
            "td": self._td,
            "vcpu": self._vcpu,
            "page": self._page,
            "page?": self._page,
            "flag": self._flag,
            "number": self._number,
        }

    def put(self, operand: OperandInfo, words: dict[str, int]) -> None:
        """Put one operand where it belongs."""
        word = self.given.get(operand.name)
        if operand.kind == "value":
            if word is not None:
                self.direct[operand.name] = plain_value(operand.name, word)
                self.told.append((operand.name, word.text))
        elif operand.name == "version":
            if word is not None:
                self.version = number(word)
                self.told.append(("version", str(self.version)))
        else:
            bits, text = self._words[operand.kind](operand, word)
            words[operand.register] = words.get(operand.register, 0) | bits << operand.bit
            if text:
                self.told.append((operand.name, text))

    def _missing(self, name: str, remedy: str) -> ScenarioError:
        return ScenarioError(f"{self.leaf.name} needs {name}", "", 0, self.verb.column, "", remedy)

    # Every kind: the bits, and the text that is shown ("" for nothing).

    def _address(self, operand: OperandInfo, word: Word | None) -> tuple[int, str]:
        if word is None:
            raise self._missing(operand.name, f"for example {operand.name}=0x40000000")
        self._gpa = number(word)
        return self._gpa, f"{self._gpa:#x}"

    def _address_of_page(self, operand: OperandInfo, word: Word | None) -> tuple[int, str]:
        bits, text = self._address(operand, word)
        if bits & LEVEL_BITS and word is not None:
            raise word.wrong(
                f"bits 2:0 of {operand.register.upper()} are the level's",
                f"write {operand.register}=... to set them",
            )
        return bits, text

    def _level_bits(self, operand: OperandInfo, word: Word | None) -> tuple[int, str]:
        level: PgLevel | None
        if word is None or word.text.lower() == "auto":
            level = self._level_reached()
            bits = level.tdx
        else:
            level = LEVEL_NAMES.get(word.text.upper())
            if level is None and not word.text.isdecimal():
                raise word.unknown("level", [*LEVEL_NAMES, "0 to 7"])
            bits = level.tdx if level is not None else number(word)
            if bits > LEVEL_BITS:
                raise word.wrong(f"a level has 3 bits (got {word.text})", "0 is 4K, 1 is 2M, 2 is 1G")
        self._level = bits + 1
        return bits, level.short if level is not None else str(bits)

    def _level_reached(self) -> PgLevel:
        """The level at which the walk to the address ends now."""
        td = self.inside or self.maker.td
        word = self.given.get("td")
        if word is not None and word.text.lower() in self.world.td_pages:
            td = word.text.lower()
        tdr = self.world.tdr(td) if td in self.world.td_pages else None
        found = self.world.entry_at(tdr, gfn_of(self._gpa), PG_LEVEL_4K) if tdr is not None else None
        return found[0] if found is not None else PG_LEVEL_4K

    def _td(self, operand: OperandInfo, word: Word | None) -> tuple[int, str]:
        return self._named(operand, word, "td", self.world.td_pages, self.maker.td)

    def _vcpu(self, operand: OperandInfo, word: Word | None) -> tuple[int, str]:
        known = self.world.vcpu_pages
        bits, text = self._named(operand, word, "vcpu", known, next(iter(known)) if len(known) == 1 else "")
        self.vcpu = text if text in known or text in self.names else ""
        return bits, text

    def _named(
        self, operand: OperandInfo, word: Word | None, kind: str, known: Mapping[str, int], default: str
    ) -> tuple[int, str]:
        """A TD or vCPU by name, or the address of a page that may be one."""
        if CREATES.get(self.leaf.name) == kind:
            name = word.text.lower() if word is not None else self.world.new_name(kind)
            if name not in known and name.startswith(kind) and name[len(kind) :].isdecimal():
                self.names[name] = self._free(None, operand)
                return self.names[name] << PAGE_SHIFT, name
        elif word is None:
            name = default
            if not name:
                remedy = nearest("", known) if known else "build it first: `help build`"
                raise self._missing(f"{operand.name}=", remedy)
        else:
            name = word.text.lower()
        if name in known:
            return known[name] << PAGE_SHIFT, name
        assert word is not None
        if not looks_like_number(word.text):
            raise word.unknown({"td": "TD", "vcpu": "vCPU"}[kind], known)
        return number(word), f"{number(word):#x}"

    def _page(self, operand: OperandInfo, word: Word | None) -> tuple[int, str]:
        text = word.text.lower() if word is not None else self._default_page(operand)
        if text == "none":
            return NULL_PA, "none" if word is not None else ""
        if text == "auto":
            pfn = self._free(self._data_size(), operand)
            return pfn << PAGE_SHIFT, address(pfn)
        if text == "host":
            return HOST_PAGE << PAGE_SHIFT, address(HOST_PAGE)
        for names in (self.world.td_pages, self.world.vcpu_pages):
            if text in names:
                return names[text] << PAGE_SHIFT, f"{address(names[text])} ({text})"
        assert word is not None
        if not looks_like_number(text):
            raise word.unknown("page", ["auto", "none", "host", *self.world.td_pages, *self.world.vcpu_pages])
        return number(word), f"{number(word):#x}"

    def _default_page(self, operand: OperandInfo) -> str:
        if self.leaf.name.startswith(OWN_PAGES):
            raise self._missing(f"{operand.name}=", "the address of a page that somebody has")
        if operand.name == "source_page":
            return "host"
        if operand.name.startswith("pamt_"):
            return "auto" if self.world.module.profile.dynamic_pamt else "none"
        return "none" if operand.kind == "page?" and operand.name != "page" else "auto"

    def _data_size(self) -> PgLevel | None:
        """The size of the page that the call makes the guest's; None if it wants one for a structure of the module."""
        after = NEXT_STATE.get(self.leaf.name, {}).values()
        if not any(state.is_leaf for state in after):
            return None
        return min(LEVELS[self._level] if self._level < len(LEVELS) else PG_LEVEL_4K, PG_LEVEL_2M)

    def _free(self, data: PgLevel | None, operand: OperandInfo) -> int:
        pfn = self.world.free_page(self.maker.taken | self._used, data=data)
        if pfn is None:
            raise self._missing(f"{operand.name}=", "no page of that size is free")
        self._used.add(pfn)
        return pfn

    def _flag(self, operand: OperandInfo, word: Word | None) -> tuple[int, str]:
        return (0, "") if word is None else (int(switch(word)), word.text.lower())

    def _number(self, operand: OperandInfo, word: Word | None) -> tuple[int, str]:
        if word is not None:
            bits = switch(word) if word.text.lower() in {"on", "off"} else number(word)
            return int(bits), word.text
        if operand.name == "hkid":
            hkid = self._hkid()
            return hkid, str(hkid)
        return 0, ""

    def _hkid(self) -> int:
        """A free key id for a new TD; for any other call the one of the TD."""
        tdr = self.world.tdr(self.maker.td) if self.maker.td in self.world.td_pages else None
        return self.world.free_hkid() if self.leaf.name in CREATES or tdr is None else tdr.hkid


def plain_value(name: str, word: Word) -> Any:
    """An operand that no register carries: a switch, named bits, or a number."""
    if word.text.lower() in {"on", "off"}:
        return switch(word)
    names = BITS.get(name, {})
    total = 0
    for part in word.text.split("+"):
        if names and not looks_like_number(part) and part.upper() not in names:
            raise word.unknown(f"bit of {name} called", names)
        total |= names[part.upper()] if part.upper() in names else number(Word(part, word.column))
    return total
