"""`help`: what a leaf does, takes and locks, what a state or a status means; from the module's tables and docstrings.

The locks of a leaf are the rows of `seamcall_locks.csv`, the published table that the conformance run holds the module to.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Final

from scenarios.seamcall import words
from scenarios.seamcall.catalogue import (
    GUEST,
    HOST,
    LeafLike,
    OperandInfo,
    described,
    find_leaf,
    operands_of,
    out_of_reach,
    shortest,
)
from scenarios.seamcall.language import Word
from tdx.module.sept_states import ALLOWED_OP_STATES, NEXT_STATE, OpState
from tdx.module.septe import SeptState
from tdx.module.status import BUSY, NON_RECOVERABLE, Status

LOCKS_TABLE: Final = Path(__file__).with_name("seamcall_locks.csv")
KINDS: Final = {
    "gpa": "an address",
    "gpa_of_page": "the address of the entry",
    "level": "4K, 2M, 1G, ... or a number; default: where the walk to the address ends",
    "td": "a TD, or the address of a page that may be one; default: the first",
    "vcpu": "a vCPU, or the address of a page that may be one",
    "page": "the address of a page, or auto: the first free one",
    "page?": "the address of a page, auto, or none",
    "flag": "on or off",
    "number": "a number",
    "value": "on, off or a number; no register carries it",
}
LINES: Final = """\
A line is [WHO] VERB OPERANDS, as in `block gpa=0x40000000 level=2M`, `lp4 track` or `vcpu0 accept 0x40000000`.
Numbers without a name fill the operands in their order; what is left out gets a default, which is shown.""".splitlines()


def explain(asked: Sequence[Word], commands: Mapping[str, tuple[str, str]]) -> list[str]:
    """The answer to `help`, or to `help WORD`. Args: commands: verb to how it is written and what it is for."""
    if not asked:
        return _overview(commands)
    word = asked[0]
    text = word.text
    if text.lower() in commands:
        usage, about = commands[text.lower()]
        return [usage, f"  {about}"]
    if text.lower() == "touch":
        return [
            "vcpu0 touch GPA [read|write|execute]",
            "  a memory access of the guest, through the TLB of its LP",
        ]
    if text.lower() == "states":
        return [line for state in SeptState for line in _state(state)[:1]]
    if text.upper() in SeptState.__members__:
        return _state(SeptState[text.upper()])
    if text.upper() in Status.__members__:
        return _status(Status[text.upper()])
    names = [*commands, "touch", "states", *SeptState.__members__]
    if text.upper().startswith("TDX_"):
        raise word.unknown(
            "status", get_close_matches(text.upper(), Status.__members__, n=1) or ["TDX_SUCCESS"]
        )
    return _leaf(find_leaf(word, {**GUEST, **HOST}, names))


def _overview(commands: Mapping[str, tuple[str, str]]) -> list[str]:
    width = 16
    lines = [*LINES, ""]
    lines += [
        f"  {usage}\n{'':{width + 4}}{about}" if len(usage) > width else f"  {usage:<{width}}  {about}"
        for usage, about in commands.values()
    ]
    lines += [
        f"  {'touch GPA':<{width}}  a memory access of a guest",
        f"  {'quit':<{width}}  end the session",
        "",
    ]
    lines = [part for line in lines for part in line.split("\n")]
    for title, leaves in (("the host's calls", HOST), ("a guest's calls", GUEST)):
        short = sorted(shortest(name, [*HOST, *GUEST]) for name in leaves)
        lines += words.wrapped(f"{title + ':':<18}", short)
    return [*lines, "", "`help LEAF`, `help states`, `help BLOCKED`, `help TDX_OPERAND_BUSY` say more."]


def _state(state: SeptState) -> list[str]:
    rwx = "".join(letter if state.rwx >> bit & 1 else "-" for bit, letter in enumerate("RWX"))
    facts = [
        "leaf" if state.is_leaf else "no leaf",
        rwx,
        "the guest may accept it" if state.is_guest_acceptable else "",
        "tracked before it is taken away" if state.is_tlb_tracking_required else "",
        "migration only" if state.is_migration else "",
    ]
    lines = [f"{state.name:<33} {', '.join(fact for fact in facts if fact)}"]
    leading = [
        (leaf, after)
        for leaf, rows in NEXT_STATE.items()
        for before, after in rows.items()
        if before is state
    ]
    lines += words.wrapped(
        "  leads to   ", [f"{leaf} -> {after.name}" for leaf, after in leading if after is not state]
    )
    lines += words.wrapped("  allows     ", [leaf for leaf, after in leading if after is state])
    return lines


def _status(status: Status) -> list[str]:
    kind = (
        "an error"
        if status.is_error
        else "success"
        if status is Status.TDX_SUCCESS
        else "a warning: the call says more than success"
    )
    lines = [f"{status.name} = {status.value:#018x}, {kind}"]
    if status in BUSY:
        lines.append("  somebody else was in the way: the same call may succeed later")
    elif status.is_error:
        lines.append(
            "  bit 62 is set: retrying alone does not help"
            if status & NON_RECOVERABLE
            else "  bit 62 is clear: worth another try"
        )
    lines.append("  bits 31:0 name the operand at fault, a level, or an exit reason")
    return lines


def _leaf(leaf: LeafLike) -> list[str]:
    guest = leaf.name in GUEST
    lines = [
        f"{leaf.name}, {'TDCALL' if guest else 'SEAMCALL'} leaf {leaf.number}; {shortest(leaf.name, [*HOST, *GUEST])}"
    ]
    lines += [f"  {line}".rstrip() for line in described(leaf).splitlines()]
    operands = operands_of(leaf)
    if operands:
        lines.append("operands")
        width = max(len(operand.name) for operand in operands)
        lines += [
            f"  {operand.name:<{width}}  {_carried(operand):<10} {KINDS[operand.kind]}"
            for operand in operands
        ]
    missing = out_of_reach(leaf)
    if missing:
        lines.append(f"  it needs {missing}, which no line can express: it is called from Python")
    rows = NEXT_STATE.get(leaf.name)
    if rows:
        lines.append("S-EPT states")
        width = max(len(state.name) for state in rows)
        lines += [f"  {before.name:<{width}} -> {after.name}" for before, after in rows.items()]
    allowed = ALLOWED_OP_STATES.get(leaf.name)
    if allowed is not None:
        every = allowed == set(OpState)
        names = ["any"] if every else [state.name for state in sorted(allowed)]
        lines += words.wrapped("op_state of the TD: ", names)
    locks = _locks().get(leaf.name)
    if locks:
        lines.append("locks, in the order in which they are taken")
        lines += [f"  {line}" for line in locks]
    return lines


def _carried(operand: OperandInfo) -> str:
    if not operand.register:
        return "-"
    return operand.register if not operand.bit else f"{operand.register} bit {operand.bit}"


@cache
def _locks() -> dict[str, list[str]]:
    """Leaf to its rows of the table, as text."""
    found: dict[str, list[str]] = {}
    with LOCKS_TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            busy = f"else {row['error_on_busy']}" if row["error_on_busy"].startswith("TDX_") else ""
            note = f" ({row['note']})" if row["note"] else ""
            found.setdefault(row["seamcall"], []).append(
                f"{row['object']:<22} {row['mode']:<9} {busy}{note}".rstrip()
            )
    return found
