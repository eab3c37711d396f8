"""docs/seamcall-pairs.md, and a line for who watches the search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tests.pairwise.calls import CALLS, Call
from tests.pairwise.matrix import LISTED_BUSY, PREVIOUS_EPOCH, matrix, may_lose
from tests.pairwise.quirks import QUIRKS
from tests.pairwise.reach import Reach
from tests.pairwise.search import PairResult, is_busy
from tests.pairwise.states import State, sort_key

LINE = {call.key: call for call in CALLS}
SYMBOLS = {
    "OPERAND_BUSY|RCX": "C",
    "OPERAND_BUSY|RDX": "D",
    "OPERAND_BUSY|R8": "8",
    "OPERAND_BUSY|TDR": "R",
    "OPERAND_BUSY|SEPT_TREE": "T",
    "OPERAND_BUSY|TD_EPOCH": "E",
    "OPERAND_BUSY|OP_STATE": "O",
    "OPERAND_BUSY|GPA_LIST_ENTRY": "G",
    "OPERAND_BUSY|NEW_PAGE_LIST_ENTRY": "N",
    LISTED_BUSY: "L",
    PREVIOUS_EPOCH: "P",
}
TOGETHER, NEVER = "·", " "

HEAD = """# Pairs of SEAMCALLs

What happens when two calls meet on one S-EPT entry, on an entry and its parent, or on one physical page, in module 1.5.01. Every
interleaving of every pair, in every state that can be reached, of `tdx/module`. Generated: do not edit.

    {command}

`make test` does not make all of this: there a fixed slice of pairs and states is searched, each of the module's rules is broken by a
planted error, and every quirk is looked for (`tests/pairwise`, `tests/tdx/module/test_invariants.py`, `test_quirks.py`).

What stays the same everywhere but in the other settings (below): no interrupt is pending, no call of the pair is repeated, no L2 VMs, no Dynamic PAMT, and both calls are
given the same new page. A large page is accepted, and 512 children are merged, in two runs of 256 steps that the real module makes
one by one. States do not tell apart, and no search begins with, host priority left on a free entry (quirks 3 and 6 do), an accept
counter (quirk 15 does), and a REMOVED entry of the current migration epoch. MEM.RD and WR are called on a debug TD, all others
on one that can migrate.
"""

MATRIX = """## Can they run together?

What the call of the **row** may return because of the call of the **column**: busy, and with which operand. `·` the two never
disturb each other; empty: there is no state in which both can be called. Zero-step is VP.ENTER of a vCPU with suspects.

| letter | the row's call returns |
|---|---|
{legend}

{table}
"""

PAIRS = """## Pair by pair

What a call may return *because of the other*, where alone it would have returned something else: busy, or what the other one's change
of the entry makes of it. **Only when they overlap** are pairs of answers that neither order of the two calls gives. A pair that is
not in the table is one whose calls return what they return alone, whatever the other does. Counted are the reachable states
in which both can be called, the groups of them that the two can tell apart, of which one each is searched, and executions.

| one | other | one may get | other may get | only when they overlap | states | groups | executions |
|---|---|---|---|---|---:|---:|---:|
{rows}
"""

LEAVES = """## What each returns alone

In how many reachable states it can be called at its place, and what it returned there.

| call | states | returns |
|---|---:|---|
{rows}
"""

STATES = """## Reachable states

A state is what a call can find: op_state, states of parent and entry, whether what is blocked is tracked, the neighbours, a vCPU
inside. The initial ones (a TD that is being built, one that is being imported, nothing below the parent) were closed under all
calls of the table and under what changes the op_state; for each state there is a path of calls (`tests/pairwise/reach.py`).

| op_state | entry 4K, parent 2M | entry 2M, parent 1G | states of the 4K entry |
|---|---:|---:|---|
{rows}

Reached only by two calls that overlap, and searched too:{beyond}
"""

VERDICT = r"""## Against the reference

Reference 4.4 says for groups of calls what the loser returns; `seamcall_locks.csv` says what each call takes. Of {sides} sides of pairs
{agree} returned exactly what 4.4 says. What differs:

{rows}

Why, as far as it is not plain:

- *IMPORT.MEM.* Before the start token (MEMORY_IMPORT, STATE_IMPORT) an S-EPT entry that is busy does not only fail its list entry: the call
  returns `OPERAND_BUSY\|GPA_LIST_ENTRY` and the import has failed for good. A single SEPT.RD of the entry is enough; CANCEL loses to
  RDMD of the page, too. Source: `tdh_import_mem.c`. The table of locks knows the list entry's status only.
- *PROMOTE with BLOCKW, RESTORE, ACCEPT, ATTR.WR below it.* To meet PROMOTE at a child they must have passed an open parent. Where PROMOTE accepts
  one (op_states without tracking) none of them can be called; where it does not, the blocked parent stops them: they fail their walk.
- *R8 and RCX of pages.* 4.4 speaks of entries. A page is locked beside them: explicitly through its 2M and 1G entries (R8; RCX of the
  physical-page calls), implicitly where an entry names it (RCX). A call that has committed lets the entry go before the page.
"""

QUIRK = """## Quirks

Section 14 of the reference, each in a small world of its own, in every interleaving. Seen in 1.5.01, and in none of the releases that
mend it. A hazard is a dangerous overlap that was shown to happen; harm depends on what runs there.

| row | what | executions | never in |
|---|---|---:|---|
{rows}
"""

FIGURES = """## Figures

{pairs} pairs of {calls} lines ({leaves} leaves), {groups} pairs of calls and states searched to the end, {executions} executions, {classes} classes
of interleavings, {steps} steps. Rules of the module broken: {findings}.
"""


class Side(NamedTuple):
    """One call of a pair."""

    loser: Call
    winner: Call
    changed: frozenset[str]
    states: int


def line_of(result: PairResult) -> str:
    """What was found of a pair, for who watches."""
    changed = " | ".join(", ".join(sorted(part)) or "-" for part in result.changed)
    searched = f"{result.states} states, {result.groups} searched, {result.executions} executions"
    lines = [f"{result.first} x {result.second}: {searched}: {changed}"]
    lines += [
        f"    only when they overlap: {pair[0]} and {pair[1]}: {state}"
        for pair, state in result.unlike_any_order.items()
    ]
    lines += [f"    FINDING {finding}: {state}" for finding, state in result.findings.items()]
    lines += [f"    reached only by both at once: {state}" for state in sorted(result.beyond, key=sort_key)]
    return "\n".join(lines)


def page(
    results: Sequence[PairResult], reaches: Sequence[Reach], command: str, more: Sequence[str] = ()
) -> str:
    """The whole page; `more` are sections about other settings."""
    parts = (
        HEAD.format(command=command),
        _matrix(results),
        PAIRS.format(rows="\n".join(_pair_rows(results))),
        LEAVES.format(rows="\n".join(_alone_rows(results, reaches))),
        STATES.format(rows="\n".join(_state_rows(reaches)), beyond=_beyond(results)),
        _verdict(results),
        *more,
        QUIRK.format(rows="\n".join(_quirk_rows())),
        _figures(results),
    )
    return "\n".join(parts)


def _labels(results: Iterable[PairResult]) -> list[str]:
    """Leaves in the order of the table."""
    used = {LINE[key].label for result in results for key in (result.first, result.second)}
    return list(dict.fromkeys(call.label for call in CALLS if call.label in used))


def sides(results: Iterable[PairResult]) -> Iterator[Side]:
    """Both sides of every pair of different lines, and the one of a line with itself."""
    for result in results:
        calls = LINE[result.first], LINE[result.second]
        if result.first == result.second:
            yield Side(calls[0], calls[0], frozenset(result.changed[0] | result.changed[1]), result.states)
        else:
            for number in (0, 1):
                yield Side(calls[number], calls[1 - number], frozenset(result.changed[number]), result.states)


def _matrix(results: Sequence[PairResult]) -> str:
    labels = _labels(results)
    cells: dict[tuple[str, str], set[str]] = {}
    for side in sides(results):
        if side.states:
            busy = cells.setdefault((side.loser.label, side.winner.label), set())
            busy.update(SYMBOLS[returned] for returned in side.changed if is_busy(returned))
    rows = ["| | " + " | ".join(f"{number}" for number in range(1, len(labels) + 1)) + " |"]
    rows.append("|---|" + "---|" * len(labels))
    for number, row in enumerate(labels, 1):
        found = (cells.get((row, column)) for column in labels)
        shown = (NEVER if cell is None else "".join(sorted(cell)) or TOGETHER for cell in found)
        rows.append(f"| {number} {row} | " + " | ".join(shown) + " |")
    legend = "\n".join(f"| {symbol} | {_code(returned)} |" for returned, symbol in SYMBOLS.items())
    return MATRIX.format(legend=legend, table="\n".join(rows))


def _pair_rows(results: Sequence[PairResult]) -> Iterator[str]:
    """By leaf, not by line: places are put together."""
    together: dict[tuple[str, str], list[PairResult]] = {}
    for result in results:
        together.setdefault((LINE[result.first].label, LINE[result.second].label), []).append(result)
    for (first, second), group in together.items():
        changed: tuple[set[str], set[str]] = (set(), set())
        overlap: set[str] = set()
        for result in group:
            for number in (0, 1):
                changed[number].update(result.changed[number])
            overlap.update(f"{_code(one)} with {_code(other)}" for one, other in result.unlike_any_order)
        if first == second:
            changed = (changed[0] | changed[1], changed[0] | changed[1])
        if changed[0] or changed[1] or overlap:
            counts = (
                sum(values)
                for values in zip(*((r.states, r.groups, r.executions) for r in group), strict=True)
            )
            texts = (first, second, codes(changed[0]), codes(changed[1]), "<br>".join(sorted(overlap)))
            yield f"| {' | '.join(texts)} | {' | '.join(map(str, counts))} |"


def codes(returned: Iterable[str], between: str = "<br>") -> str:
    """For a cell of a table, busy ones first."""
    return between.join(_code(text) for text in sorted(returned, key=lambda text: (not is_busy(text), text)))


def _code(returned: str) -> str:
    """For a cell of a table, which a bar would end."""
    return "`" + returned.replace("|", "\\|") + "`"


def _alone_rows(results: Sequence[PairResult], reaches: Sequence[Reach]) -> Iterator[str]:
    alone: dict[str, set[str]] = {}
    for result in results:
        for key, returned in zip((result.first, result.second), result.alone, strict=True):
            alone.setdefault(key, set()).update(returned)
    for call in CALLS:
        if call.key in alone:
            states = sum(call.fits(state) for reach in reaches for state in reach.states)
            yield f"| {call.key} | {states} | {', '.join(map(_code, sorted(alone[call.key])))} |"


def _state_rows(reaches: Sequence[Reach]) -> Iterator[str]:
    phases = dict.fromkeys(state.phase for reach in reaches for state in reach.states)
    for phase in phases:
        counts = (str(sum(state.phase == phase for state in reach.states)) for reach in reaches)
        entries = Counter(_entry(state) for state in reaches[0].states if state.phase == phase)
        yield f"| {phase} | {' | '.join(counts)} | {', '.join(sorted(filter(None, entries)))} |"


def _entry(state: State) -> str:
    return state.entry.name if state.entry is not None else ""


def _beyond(results: Sequence[PairResult]) -> str:
    """Each with the pairs that lead there."""
    pairs: dict[State, list[str]] = {}
    for result in results:
        for state in result.beyond:
            pairs.setdefault(state, []).append(f"{result.first} and {result.second}")
    return (
        "".join(f"\n- {state}: {'; '.join(pairs[state])}" for state in sorted(pairs, key=sort_key))
        or " none."
    )


def _verdict(results: Sequence[PairResult]) -> str:
    compared = [side for side in sides(results) if side.states]
    agree = 0
    differ: dict[str, dict[str, set[str]]] = {}
    for side in compared:
        busy = {returned for returned in side.changed if is_busy(returned)}
        said, allowed = matrix(side.loser, side.winner), may_lose(side.loser, side.winner)
        agree += busy == said
        for kind, codes in (
            ("seen, and the table of locks does not allow it", busy - allowed),
            ("seen, by the table of locks, and 4.4 does not say it", busy & allowed - said),
            ("said by 4.4, and never seen", said - busy),
        ):
            for code in codes:
                winners = differ.setdefault(kind, {}).setdefault(f"{code}` of `{side.loser.key}", set())
                winners.add(side.winner.key)
    rows = []
    for kind, found in sorted(differ.items()):
        rows.append(f"- {kind}:")
        rows += [
            f"  - `{code}` because of {', '.join(sorted(winners))}" for code, winners in sorted(found.items())
        ]
    return VERDICT.format(sides=len(compared), agree=agree, rows="\n".join(rows) or "nothing.")


def _quirk_rows() -> Iterator[str]:
    for quirk in QUIRKS:
        seen, executions = quirk.seen_in()
        assert seen, quirk.text
        hazard = " (hazard)" if quirk.is_hazard else ""
        yield f"| {quirk.row} | {quirk.text}{hazard} | {executions} | {', '.join(quirk.mended)} |"


def _figures(results: Sequence[PairResult]) -> str:
    return FIGURES.format(
        pairs=sum(result.states > 0 for result in results),
        calls=len(CALLS),
        leaves=len({call.name for call in CALLS}),
        groups=sum(result.groups for result in results),
        executions=sum(result.executions for result in results),
        classes=sum(result.classes for result in results),
        steps=sum(result.steps for result in results),
        findings=sum(len(result.findings) for result in results) or "none",
    )
