"""What could stand where the cursor is: names for the terminal's TAB key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scenarios.errors import ScenarioError
from scenarios.seamcall.catalogue import GUEST, HOST, LeafLike, endings_of, find_leaf, operands_of
from scenarios.seamcall.commands import COMMANDS
from scenarios.seamcall.guest import ACCESSES
from scenarios.seamcall.language import ACTOR, Word
from scenarios.seamcall.questions import QUESTIONS
from scenarios.seamcall.request import LEVEL_NAMES
from scenarios.seamcall.world import LPS, PAGES_OF_DYNAMIC_PAMT
from tdx.module import PROFILES
from tdx.module.septe import SeptState

if TYPE_CHECKING:
    from scenarios.seamcall.session import Session

WORDS = {
    "show": list(QUESTIONS),
    "interrupt": ["on", "off", "once"],
    "profile": [*PROFILES, *(f"{name}{PAGES_OF_DYNAMIC_PAMT}" for name in PROFILES)],
    "touch": list(ACCESSES),
    "step": ["until"],
    "build": ["mapped", "pending", "pages=", "vcpus="],
}
"""What may follow a command."""


def completions(session: Session, before: str, text: str) -> list[str]:
    """What `text` may become, sorted. Args: before: the line up to `text`."""
    return sorted({name for name in _names(session, before) if name.lower().startswith(text.lower())})


def _names(session: Session, before: str) -> list[str]:
    words = before.split()
    if before.endswith("="):
        return _values(session, words[-1].rstrip("=").lower())
    vcpus, lps = list(session.world.vcpu_pages), [f"lp{n}" for n in range(LPS)]
    who = words.pop(0).lower() if words and ACTOR.fullmatch(words[0].lower()) else ""
    while words and words[0].lower() == "begin":
        words.pop(0)
        if words and ACTOR.fullmatch(words[0].lower()):
            who = words.pop(0).lower()
    leaves = GUEST if who.startswith("vcpu") else HOST if who else {**HOST, **GUEST}
    if not words:
        verbs = [] if who else [*COMMANDS, "quit", *vcpus, *lps]
        return [*verbs, "touch", *(ending.lower() for ending in endings_of(tuple(leaves)))]
    verb = words[0].lower()
    if verb == "help":
        return [
            *COMMANDS,
            "states",
            *SeptState.__members__,
            *(ending.lower() for ending in endings_of(tuple(leaves))),
        ]
    if verb in WORDS or verb in COMMANDS:
        return [*WORDS.get(verb, []), *vcpus, *(lps if verb != "exit" else [])]
    return [*_operands(verb, leaves), *session.world.td_pages, *vcpus]


def _operands(verb: str, leaves: Mapping[str, LeafLike]) -> list[str]:
    """The operands of the leaf, as `name=`; nothing if there is no such leaf."""
    try:
        leaf = find_leaf(Word(verb), leaves)
    except ScenarioError:
        return []
    return [f"{operand.name}=" for operand in operands_of(leaf)]


def _values(session: Session, operand: str) -> list[str]:
    """What an operand of that name may be, where that can be listed."""
    if operand == "level":
        return list(LEVEL_NAMES)
    if operand == "td":
        return list(session.world.td_pages)
    if operand == "vcpu":
        return list(session.world.vcpu_pages)
    return ["auto", "none"] if "page" in operand else []
