"""The keys of conditions: what each value asks of the world.

One function for each key, registered with the values it knows. A value may be had in several ways (an address is bad because it is
misaligned, or because its key bits are set): all of them are tried, and all must agree. A key or value without a row here makes a
table's row not expressible, never wrong.
`op_state`, `track_op` and `import` speak of one thing and are solved together (`op_states`).
Source: reference section 0.1, and the section of each check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product

from tdx.module import OpState, SeptState
from tests.conformance.calls import IMPORT, TRACK_OP, Call
from tests.conformance.situation import NotExpressible, Situation
from tests.conformance.table import Term

BENIGN = frozenset(
    (
        *(
            "ok",
            "free",
            "none",
            "zero",
            "enough",
            "reached",
            "supported",
            "ready",
            "not_fatal",
            "keys_configured",
        ),
        *("nda", "nonnull", "other_hpa", "private", "shared_hpa"),
    )
)
"""Values that say that nothing is wrong: `key!=ok` is all the others, `key!=busy` is these."""
KINDS = frozenset(("stop_entry",))
"""Keys whose values are kinds: none of them is benign."""
ONLY_IF_NAMED = frozenset(("nop",))
"""Values that no negation means: a NOP is skipped before anything is looked at."""
Prepare = Callable[[Situation, str, str], None]
IN_ORDER_IMPORT = (OpState.MEMORY_IMPORT, OpState.STATE_IMPORT)
OP_STATE_KEYS = ("op_state", "track_op", "import")


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of one key, had in one way."""

    key: str
    value: str
    how: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}" + (f" ({self.how})" if self.how else "")

    def prepare(self, want: Situation) -> None:
        """Make the situation so. Raises: NotExpressible."""
        KEYS[self.key].prepare(want, self.value, self.how)


@dataclass(frozen=True, slots=True)
class Key:
    """A key with its values, each with the ways to have it; a measure has numbers instead."""

    name: str
    values: dict[str, tuple[str, ...]]
    prepare: Prepare
    against: str = ""
    """Of a measure: what its number is compared with; "0" for plain numbers."""
    least: int = 0
    """Of a measure: the smallest distance there is."""

    def choices(self, term: Term) -> list[Choice]:
        """All that `term` allows. Raises: NotExpressible."""
        if self.against:
            return [Choice(self.name, value, "") for value in self._measured(term)]
        found = [Choice(self.name, value, how) for value in self._named(term) for how in self.values[value]]
        if term.op == "!=":
            excluded = {how or value.upper() for value in term.values for how in self.values[value]}
            found = [choice for choice in found if (choice.how or choice.value.upper()) not in excluded]
        if not found:
            raise NotExpressible(f"{term}: leaves no value of {self.name}")
        return found

    def _named(self, term: Term) -> list[str]:
        unknown = [value for value in term.values if value not in self.values]
        if unknown:
            raise NotExpressible(
                f"{term}: {self.name} has no value {unknown[0]}; {_nearest(unknown[0], self.values)}"
            )
        if term.op == "=":
            return list(term.values)
        if all(value.isdigit() for value in term.values):
            numbers = [value for value in self.values if value.isdigit()]
            return [
                value
                for value in numbers
                if all(_compares(int(value), term.op, int(at)) for at in term.values)
            ]
        if term.op != "!=":
            raise NotExpressible(f"{term}: {self.name} is no number")
        others = [value for value in self.values if value not in term.values and value not in ONLY_IF_NAMED]
        if self.name in KINDS:
            return others
        benign = [value for value in others if value in BENIGN]
        if BENIGN & set(term.values):
            return [value for value in others if value not in BENIGN]
        return benign or others

    def _measured(self, term: Term) -> list[str]:
        distances = {self._distance(term, value) for value in term.values}
        if term.op in ("=", "!="):
            near = {d for at in distances for d in (at - 1, at, at + 1)}
            wanted = distances if term.op == "=" else near - distances
        else:
            (at,) = distances if len(distances) == 1 else (max(distances),)
            wanted = {">": {at + 1, at + 2}, ">=": {at, at + 1}, "<": {at - 1}, "<=": {at, at - 1}}[term.op]
        possible = sorted(d for d in wanted if d >= self.least)
        if not possible:
            raise NotExpressible(f"{term}: cannot be")
        return [str(distance) for distance in possible]

    def _distance(self, term: Term, value: str) -> int:
        if value == self.against:
            return 0
        if self.against == "0" and value.isdigit():
            return int(value)
        raise NotExpressible(f"{term}: {self.name} is compared with {self.against}")


KEYS: dict[str, Key] = {}
"""Every key there is, by name."""


def key(*names: str, **values: str) -> Callable[[Prepare], Prepare]:
    """Register a key; each value names its ways, separated by blanks. Further names mean the same."""

    def register(prepare: Prepare) -> Prepare:
        ways = {value.lstrip("_"): tuple(how.split()) or ("",) for value, how in values.items()}
        for name in names:
            KEYS[name] = Key(name, ways, prepare)
        return prepare

    return register


def measure(name: str, *, against: str, least: int = 0) -> Callable[[Callable[[Situation, int], None]], None]:
    """Register a key that is compared: it is told the distance from what it is compared with."""

    def register(prepare: Callable[[Situation, int], None]) -> None:
        def measured(want: Situation, value: str, _how: str) -> None:
            prepare(want, int(value))

        KEYS[name] = Key(name, {}, measured, against, least)

    return register


def _compares(number: int, op: str, at: int) -> bool:
    return {"!=": number != at, ">": number > at, ">=": number >= at, "<": number < at, "<=": number <= at}[
        op
    ]


def _nearest(word: str, words: Iterable[str]) -> str:
    known = list(words)
    near = get_close_matches(word, known, 1, 0.6)
    return f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"


def combinations(terms: Sequence[Term]) -> Iterator[tuple[Choice, ...]]:
    """Every way to make all terms hold, those about the op_state left out. Raises: NotExpressible."""
    choices = []
    for term in terms:
        if term.key in OP_STATE_KEYS:
            continue
        known = KEYS.get(term.key)
        if known is None:
            raise NotExpressible(f"{term}: no key {term.key}; {_nearest(term.key, (*KEYS, *OP_STATE_KEYS))}")
        choices.append(known.choices(term))
    return product(*choices)


# The op_state.


def op_states(call: Call, terms: Sequence[Term], state: SeptState) -> list[OpState]:
    """The op_states to try: all that the terms name, or one of each kind that leaves the other checks benign.

    Raises: NotExpressible: there is none.
    """
    mine = [term for term in terms if term.key in OP_STATE_KEYS]
    named = next((term for term in mine if term.key == "op_state"), None)
    allowed = _named_op_states(call, named) if named else [one for one in OpState if one in call.op_states]
    for term in mine:
        if term.key != "op_state":
            kind = TRACK_OP if term.key == "track_op" else IMPORT
            wanted = _flag(term)
            allowed = [one for one in allowed if (one in kind) == wanted]
    keys = {term.key for term in mine}
    if not named:
        if (
            "track_op" not in keys
            and call.needs_tracking
            and state.is_tlb_tracking_required
            and not state.is_blocked
        ):
            allowed = [one for one in allowed if one not in TRACK_OP]
        if "import" not in keys and any(one not in IMPORT for one in allowed):
            allowed = [one for one in allowed if one not in IMPORT]
        if call.name == "TDH.IMPORT.MEM" and _may_change_pages(terms):
            allowed = [one for one in allowed if one in IN_ORDER_IMPORT]
        allowed = _one_of_each_kind(allowed)
    if not allowed:
        raise NotExpressible(
            f"{call.name} is allowed in no op_state with {';'.join(map(str, mine)) or 'no tracking'}"
        )
    return allowed


def _may_change_pages(terms: Sequence[Term]) -> bool:
    """Whether a list entry may ask for what only the in-order phase of an import allows."""
    return any(term.key == "op" and (term.op, term.values) != ("=", ("migrate",)) for term in terms)


def _named_op_states(call: Call, term: Term) -> list[OpState]:
    names: frozenset[OpState] = frozenset()
    for value in term.values:
        if value == "not_allowed":
            names |= set(OpState) - call.op_states
        elif value == "allowed":
            names |= call.op_states
        elif value in OpState.__members__:
            names |= {OpState[value]}
        else:
            raise NotExpressible(f"{term}: no op_state {value}; {_nearest(value, OpState.__members__)}")
    if term.op == "!=":
        names = call.op_states - names
    elif term.op != "=":
        raise NotExpressible(f"{term}: op_state is no number")
    return sorted(names)


def _flag(term: Term) -> bool:
    if term.op not in ("=", "!=") or len(term.values) != 1 or term.values[0] not in ("0", "1"):
        raise NotExpressible(f"{term}: {term.key} is 0 or 1")
    return (term.values[0] == "1") == (term.op == "=")


def _one_of_each_kind(op_states: Sequence[OpState]) -> list[OpState]:
    """Phases of an export and import are kinds of their own; the first of a kind stands for it."""
    kinds: dict[object, OpState] = {}
    for one in op_states:
        is_phase = OpState.LIVE_EXPORT < one <= OpState.POST_EXPORT or one in IMPORT
        kinds.setdefault(one if is_phase else (one in TRACK_OP), one)
    return list(kinds.values())
