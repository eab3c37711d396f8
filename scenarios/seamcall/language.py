"""How a line is written: one grammar for the terminal and for scripts.

    [WHO] VERB {NAME=VALUE | WORD}            # up to the end of the line is a comment

WHO acts: `lp3`, a logical processor where the host calls, or `vcpu0`, a guest; the host, on an LP that is idle, if nobody is
named. VERB is a command or a leaf. A VALUE is a number (`0x40000000`, `2M`, a sum such as `1G+4K`), a name, a level, `on` or
`off`. Bare WORDs need no name: the name of a TD or vCPU is one, and numbers fill the leaf's operands in their order, as in
`demote 1G 2M`, which is `demote gpa=1G level=2M`.

Everything that cannot be read raises `ScenarioError` with the column, counted from 1, and what was probably meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from scenarios.errors import ScenarioError, nearest, shown
from scenarios.units import parse_size

WORD_BITS: Final = 64
LINE_MAX: Final = 2_000
"""Characters of a line; a longer one is a slip."""

ACTOR: Final = re.compile(r"(lp|vcpu)\d+", re.ASCII)
_HEX: Final = re.compile(r"0[xX][0-9a-fA-F_]{1,24}", re.ASCII)


class Word(NamedTuple):
    """A part of a line, and its column from 1."""

    text: str
    column: int = 1

    def wrong(self, message: str, remedy: str = "") -> ScenarioError:
        """What is wrong with the line because of this word, ready to be raised."""
        return ScenarioError(message, "", 0, self.column, "", remedy)

    def unknown(self, what: str, names: Iterable[str]) -> ScenarioError:
        """The same for a name that nobody has."""
        return self.wrong(f"no {what} {shown(self.text)}", nearest(self.text, names))


class Line(NamedTuple):
    """A line, taken apart but not yet understood."""

    text: str
    who: Word | None
    verb: Word
    words: tuple[Word, ...]
    named: tuple[tuple[Word, Word], ...]
    column: int
    """Of the text's first character."""

    def named_value(self, name: str) -> Word | None:
        """The value of `name=value`, if the line has it."""
        return next((value for known, value in self.named if known.text == name), None)


def read_line(text: str, *, column: int = 1) -> Line | None:
    """Take a line apart; None if nothing is on it.

    Args: column: of the text's first character.
    Raises: ScenarioError: for `name=` without a value, a name given twice, an actor without a verb.
    """
    if len(text) > LINE_MAX:
        raise ScenarioError(f"a line of more than {LINE_MAX} characters", "", 0, column)
    words: list[Word] = []
    named: list[tuple[Word, Word]] = []
    for token in re.finditer(r"\S+", _uncommented(text)):
        at = column + token.start()
        name, equals, value = token[0].partition("=")
        if not equals:
            words.append(Word(name, at))
            continue
        if not name or not value:
            raise Word(token[0], at).wrong("expected name=value", "no blanks around =")
        if any(known.text == name.lower() for known, _ in named):
            raise Word(name, at).wrong(f"{name} is given twice", "keep one of them")
        named.append((Word(name.lower(), at), Word(value, at + len(name) + 1)))
    if not words:
        if named:
            raise named[0][0].wrong(
                "a line begins with what to do", "for example: block gpa=0x40000000 level=2M"
            )
        return None
    who = words.pop(0) if ACTOR.fullmatch(words[0].text.lower()) else None
    if not words:
        assert who is not None
        raise who.wrong(f"what does {who.text} do?", f"for example: {example_for(who.text)}")
    if who is not None:
        who = Word(who.text.lower(), who.column)
    start = column + len(text) - len(text.lstrip())
    return Line(text.strip(), who, words[0], tuple(words[1:]), tuple(named), start)


def example_for(actor: str) -> str:
    """A line that this actor could say."""
    return f"{actor} track" if actor.startswith("lp") else f"{actor} touch gpa=0x40000000"


def _uncommented(text: str) -> str:
    """The text without a comment: `#` begins one at the start of a word only."""
    found = re.search(r"(?:^|\s)#", text)
    return text[: found.start()] if found else text


def number(word: Word) -> int:
    """What fits a register: hexadecimal, a size, or a sum of both.

    Raises: ScenarioError: it is no number, or has more than 64 bits.
    """
    total = 0
    for term in word.text.split("+"):
        if _HEX.fullmatch(term):
            total += int(term.replace("_", ""), 16)
            continue
        try:
            total += int(term) if term.isdecimal() and len(term) <= 20 else parse_size(term)
        except ValueError:
            raise word.wrong(
                f"{shown(word.text)} is no number", "write 0x40000000, 2M, 4096 or a sum such as 1G+4K"
            ) from None
    if total >> WORD_BITS:
        raise word.wrong(f"{shown(word.text)} does not fit a register", f"a register has {WORD_BITS} bits")
    return total


def looks_like_number(text: str) -> bool:
    """Whether a bare word is meant as a number."""
    return text[:1].isdigit()


def switch(word: Word) -> bool:
    """`on` or `off`."""
    known = {"on": True, "off": False, "1": True, "0": False}
    if word.text.lower() not in known:
        raise word.wrong(f"expected on or off (got {shown(word.text)})")
    return known[word.text.lower()]


def count(word: Word, most: int) -> int:
    """How many times. Raises: ScenarioError: not a number from 1 to `most`."""
    if not word.text.isdecimal() or not 1 <= int(word.text[:9]) <= most:
        raise word.wrong(f"expected a number from 1 to {most} (got {shown(word.text)})")
    return int(word.text)
