"""Which local variables of a suspended generator still matter: those that some path reads before it assigns them.

Textbook backward data flow over the bytecode (Aho, Lam, Sethi, Ullman, section 9.2.5). An instruction of an unknown kind that
names a variable counts as a read, so the answer may be too large, never too small. Variables of closures always matter.
"""

from __future__ import annotations

import dis
from functools import cache
from types import CodeType

_LEAVES = {"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
_JUMPS_ALWAYS = {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP"}
_JUMPS = {*dis.hasjrel, *dis.hasjabs}


@cache
def live_after(code: CodeType) -> dict[int, frozenset[str]]:
    """For the offset of every instruction, the local variables that matter once it is done."""
    steps = list(dis.get_instructions(code))
    following = _successors(code, steps)
    reads = [_read(step) for step in steps]
    live_before: list[frozenset[str]] = [frozenset()] * len(steps)
    live: list[frozenset[str]] = [frozenset()] * len(steps)
    changed = True
    while changed:
        changed = False
        for i in reversed(range(len(steps))):
            after = frozenset().union(*[live_before[successor] for successor in following[i]])
            killed = {steps[i].argval} if steps[i].opname == "STORE_FAST" else set()
            before = (after - killed) | reads[i]
            if before != live_before[i] or after != live[i]:
                live_before[i], live[i] = before, after
                changed = True
    if "locals" in code.co_names:
        return {step.offset: frozenset(code.co_varnames) for step in steps}
    return {step.offset: live[i] for i, step in enumerate(steps)}


def _successors(code: CodeType, steps: list[dis.Instruction]) -> list[list[int]]:
    """Where control may go from each instruction, its exception handler included."""
    index = {step.offset: i for i, step in enumerate(steps)}
    following = []
    for i, step in enumerate(steps):
        successors = [] if step.opname in _LEAVES | _JUMPS_ALWAYS or i + 1 == len(steps) else [i + 1]
        if step.opcode in _JUMPS:
            successors.append(index[step.argval])
        following.append(successors)
    for entry in dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]
        for offset, i in index.items():
            if entry.start <= offset < entry.end:
                following[i].append(index[entry.target])
    return following


def _read(step: dis.Instruction) -> frozenset[str]:
    if "FAST" not in step.opname or step.opname == "STORE_FAST":
        return frozenset()
    names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
    return frozenset(name for name in names if isinstance(name, str))
