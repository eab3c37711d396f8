"""Wrong input, told so that its author can put it right: where it is, what it should be, what was probably meant.

One message names one mistake. A file with several mistakes raises `ScenarioErrors`, which is a `ScenarioError` too, so
that a caller who only wants to say "wrong input" catches one type, and `.errors` lists the single mistakes either way.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ScenarioError(Exception):
    """You gave a scenario, an option or a path that cannot be used; the text says where and what to write instead.

    Every argument goes to `Exception` by position, because SimPy rebuilds a failed process's exception from `args`.
    `line` and `column` count from 1; 0 means "the input as a whole".
    """

    def __init__(
        self, message: str, file: str = "", line: int = 0, column: int = 0, path: str = "", remedy: str = ""
    ) -> None:
        super().__init__(message, file, line, column, path, remedy)
        self.message = message
        self.file = file
        self.line = line
        self.column = column
        self.path = path
        self.remedy = remedy

    @property
    def errors(self) -> tuple[ScenarioError, ...]:
        """The single mistakes: this one."""
        return (self,)

    def as_dict(self) -> dict[str, str | int]:
        """The mistake as JSON's own types, for `--json`."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "path": self.path,
            "message": self.message,
            "remedy": self.remedy,
        }

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}:{self.column}"
        text = ": ".join(part for part in (place, self.path, self.message) if part)
        return f"{text}; {self.remedy}" if self.remedy else text


class ScenarioErrors(ScenarioError):
    """All mistakes of one input, in the order of the file."""

    def __init__(self, errors: Iterable[ScenarioError]) -> None:
        found = tuple(errors)
        assert found, "a list of mistakes names at least one"
        first = found[0]
        super().__init__(first.message, first.file, first.line, first.column, first.path, first.remedy)
        self.args = (found,)
        self._errors = found

    @property
    def errors(self) -> tuple[ScenarioError, ...]:
        """The single mistakes, in the order of the file."""
        return self._errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self._errors)


def shown(value: object, limit: int = 60) -> str:
    """`value` as a message quotes it: printable, on one line, cut at `limit` characters."""
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def nearest(name: object, names: Iterable[str], *, listing: int = 12) -> str:
    """What to write instead of `name`: the nearest of `names`, or all of them while they are few."""
    known = list(dict.fromkeys(names))
    if not known:
        return ""
    close = difflib.get_close_matches(str(name)[:80], known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    if len(known) > listing:
        return "known: " + ", ".join(known[:listing]) + ", ..."
    return "known: " + ", ".join(known)
