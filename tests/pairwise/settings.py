"""Pairs in more settings: L2 VMs, an interrupt that waits, a tree that is wanted.

What `tests.pairwise.search` leaves the same everywhere is the case here. A setting is one starting state, by name, with what it has
beyond that (`dress`), and some calls; each two of them are searched to the end, under the module's rules. What a call returns is
compared with what the same calls return in the plain state: no L2 VMs, nothing that waits, release 1.5.01.

The settings are chosen, not closed under calls as the states of the plain search are: what is reached from them is not searched again.
A shutdown of the module is an answer here (`SHUTDOWN`); it is a finding unless its setting says that it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations_with_replacement, product
from typing import Any

from sim import Steps
from tdx.module import LEAVES, SeamcallReturn
from tdx.module.exits import TdcallResult
from tdx.module.profile import TDX_1_5_01, Profile
from tdx.module.status import ModuleShutdown, Status
from tdx.module.tdcall import TDCALLS
from tests.pairwise.calls import Call, text_of
from tests.pairwise.search import Dress, InState, as_it_is, search_state
from tests.pairwise.states import State
from tests.pairwise.world import World

SHUTDOWN = "SHUTDOWN"

Answer = SeamcallReturn | TdcallResult
Again = Callable[[Mapping[str, Any], Answer], Mapping[str, Any] | None]
"""The operands with which a call is made again after its host or guest has taken an interrupt, out of those that it had and
its answer; None is: it is not."""


def _not_again(_operands: Mapping[str, Any], _answer: Answer) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Act(Call):
    """A call in a setting: if an interrupt ended it, it may be made again; a shutdown of the module is an answer."""

    again: Again = field(default=_not_again)

    def steps(self, world: World, who: str) -> Steps[str]:
        """As `Call.steps`; the answers of all that were made, in order, those of lists without their entries'."""
        return self._made(world, who, self.operands(world, who))

    def _made(self, world: World, who: str, operands: Mapping[str, Any]) -> Steps[str]:
        leaf = TDCALLS[self.name] if self.is_guest else LEAVES[self.name]
        texts = []
        more: Mapping[str, Any] | None = {}
        while more is not None:
            operands = {**operands, **more}
            try:
                answer: Answer = yield from leaf.call(world.module, **operands)
            except ModuleShutdown:
                return SHUTDOWN
            texts.append(text_of(answer))
            more = self.again(operands, answer) if _was_interrupted(answer) else None
            take_interrupt(world, "guest" if self.is_guest else who)
        return ", then ".join(texts)


def _was_interrupted(answer: Answer) -> bool:
    if isinstance(answer, TdcallResult):
        return answer.interrupted
    return answer.status is Status.TDX_INTERRUPTED_RESUMABLE


def no_interrupt() -> bool:
    """Nothing waits."""
    return False


def take_interrupt(world: World, who: str) -> None:
    """Who made the call handles what waited for his LP."""
    world.lps[who].interrupt_pending = no_interrupt


def interrupted(world: World) -> None:
    """An interrupt waits for each LP that makes a call."""
    for lp in world.lps.values():
        lp.interrupt_pending = lambda: True


def both(*dresses: Dress) -> Dress:
    """One after the other."""

    def dress(world: World) -> None:
        for one in dresses:
            one(world)

    return dress


@dataclass(frozen=True, slots=True)
class Setting:
    """One starting state with its calls: each two of them and each with itself, or each with each of `against`."""

    name: str
    state: State
    calls: tuple[Act, ...]
    dress: Dress = as_it_is
    against: tuple[Act, ...] = ()
    profile: Profile = TDX_1_5_01
    plain_state: State | None = None
    plain_dress: Dress = as_it_is
    """What it is compared with, if that is not its `state` undressed."""
    known: Mapping[frozenset[str], str] = field(default_factory=dict)
    """By the keys of two calls: why they may shut the module down."""

    @property
    def pairs(self) -> Iterator[tuple[Act, Act]]:
        """What is searched."""
        return (
            product(self.calls, self.against)
            if self.against
            else combinations_with_replacement(self.calls, 2)
        )


@dataclass(slots=True)
class SettingResult:
    """All pairs of one setting."""

    setting: str
    state: str
    pairs: int = 0
    executions: int = 0
    steps: int = 0
    exhausted: bool = True
    returned: dict[str, set[str]] = field(default_factory=dict)
    """By label of the call."""
    plain: dict[str, set[str]] = field(default_factory=dict)
    """What the same calls return without the setting."""
    findings: dict[str, str] = field(default_factory=dict)
    """By text, the pair."""
    known: dict[str, str] = field(default_factory=dict)
    """Shutdowns that are known: the pair, and why."""

    @property
    def news(self) -> dict[str, list[str]]:
        """What each call may return that it does not without the setting."""
        news = {label: sorted(found - self.plain[label]) for label, found in self.returned.items()}
        return {label: found for label, found in news.items() if found}


def search_setting(setting: Setting) -> SettingResult:
    """Exhaust every pair of a setting, and the same pairs without it."""
    state = f"{setting.state}" + (f", {setting.profile.name}" if setting.profile is not TDX_1_5_01 else "")
    result = SettingResult(setting.name, state)
    for first, second in setting.pairs:
        found = search_state(first, second, setting.state, setting.profile, setting.dress)
        plain = _search_plain(first, second, setting.plain_state or setting.state, setting.plain_dress)
        _collect(result.returned, first, second, found)
        _collect(result.plain, first, second, plain)
        result.pairs += 1
        result.executions += found.executions + plain.executions
        result.steps += found.steps + plain.steps
        result.exhausted &= found.exhausted and plain.exhausted
        pair = f"{first.key} x {second.key}"
        for finding in (*found.findings, *plain.findings):
            result.findings.setdefault(finding, pair)
        if any(SHUTDOWN in (outcome.first, outcome.second) for outcome in found.outcomes):
            why = setting.known.get(frozenset((first.key, second.key)))
            if why is None:
                result.findings.setdefault("the module shuts down", pair)
            else:
                result.known[pair] = why
    return result


@cache
def _search_plain(first: Act, second: Act, state: State, dress: Dress) -> InState:
    return search_state(first, second, state, dress=dress)


def _collect(into: dict[str, set[str]], first: Call, second: Call, found: InState) -> None:
    for outcome in found.outcomes:
        into.setdefault(first.label, set()).add(outcome.first)
        into.setdefault(second.label, set()).add(outcome.second)


def line_of(result: SettingResult) -> str:
    """What was found in a setting, for who watches."""
    lines = [f"{result.setting}: {result.state}: {result.pairs} pairs, {result.executions} executions"]
    lines += [f"    {label}: {', '.join(found)}" for label, found in result.news.items()]
    lines += [f"    known: {pair}: {why}" for pair, why in result.known.items()]
    lines += [f"    FINDING {finding}: {pair}" for finding, pair in result.findings.items()]
    if not result.exhausted:
        lines.append("    not searched to the end")
    return "\n".join(lines)
