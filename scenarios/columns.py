"""A finding as people read it: what went wrong, who did what in columns, the schedule, and how to see it again.

One column a thread, time runs down. A step is told with the kernel's function and the step's id in the reference, the word
and both its values (`before -> after`, or `= value` for a read), and the locks held. Which steps are told is
`scenarios.relevance`'s choice. `mail` is at most 75 columns wide, so that a list's quoting does not break it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any

from scenarios.campaign.case import Opened
from scenarios.film import Film, Place, Step, film
from scenarios.relevance import Line, last_changes, lines_of
from scenarios.words import told

MAIL_WIDTH = 75
COLUMN_MIN = 30
NUMBER = 6
"""The width of the step's number, at the left."""

GLUE = "\N{NO-BREAK SPACE}"
"""Between what stays on one line; printed as a space."""

HEAD, TAIL = 12, 44
"""Of a longer list of steps, so many of the first and of the last are shown."""

FRAMES = 4
"""Frames of a stack that are shown; the JSON has all."""

CHANGES = 6
"""Last changes that are shown, the latest."""

MEANING = {
    "stale-tlb": "A guest access was served by a cached translation that a completed zap, protect, split or flush had promised away.",
    "stale-spte": "A present SPTE is still reachable after the operation that had to remove it has returned.",
    "uaf-table": "A freed page table is used or still referenced.",
    "uaf-page": "A freed frame is used or still referenced.",
    "uaf-object": "A freed kernel object is used or still referenced.",
    "lost-bit": "An accessed, dirty or writable transition is missing from the ledger.",
    "overwrite": "An entry was changed by a thread that does not own it, or newer rights were replaced by older ones.",
    "wrong-level": "There is a leaf at a level that walk, folio, attributes or mitigation forbid.",
    "diverged": "Mirror and S-EPT disagree while nothing is frozen.",
    "kvm-bug": "A KVM_BUG_ON or WARN of the model fired.",
    "td-dead": "The TD was killed by something that a legal guest or user may do.",
    "content-lost": "Private content or a measurement changed without the guest's request, or reached the host unreset.",
    "refcount": "References, pins or counts are out of balance.",
    "leak": "Something is still owned that nobody can give back.",
    "lock-rule": "A rule of locking was broken.",
    "cache-alias": "Dirty lines are left under an old key.",
    "phase": "An operation was done in a phase of life that forbids it.",
    "data-race": "Two accesses of one word, at least one of them a write and one plain, are not ordered.",
    "deadlock": "Threads wait for each other, or for something that nobody will do.",
    "livelock": "Threads go round without progress.",
    "starvation": "A thread is kept from going on, without bound.",
    "unmet": "Something that the scenario or the model expects was not met.",
}
"""One sentence a kind (DESIGN.md section 4)."""


def mail(opened: Opened, finding: dict[str, Any]) -> str:
    """The finding as a block of at most 75 columns, fit for a mail to a list."""
    return block(opened, finding, width=MAIL_WIDTH)


def block(opened: Opened, finding: dict[str, Any], *, width: int, made: Film | None = None) -> str:
    """The finding as text. `made` is its execution, if the caller has replayed it already."""
    if finding["schedule"] and made is None:
        made = film(opened, finding["schedule"], seed=finding["seed"])
    lines = [*_heading(opened, finding, width), "", *_more(finding, width)]
    if made is not None:
        lines += [*_last_changes(made, finding, width), *columns(made, finding, width), ""]
    lines += _how_to_replay(finding, width)
    return "\n".join(line.rstrip() for line in lines).replace(GLUE, " ").rstrip() + "\n"


def columns(made: Film, finding: dict[str, Any], width: int) -> list[str]:
    """The steps that matter, one column a thread; in one column, with names, if there are more threads than fit."""
    lines = lines_of(made.steps, finding)
    if not lines:
        return []
    present = {line.first.thread for line in lines}
    threads = [thread.name for thread in made.recording.kernel.threads if thread.name in present]
    fitting = max(2, (width - NUMBER) // COLUMN_MIN)
    if len(threads) > fitting:
        at = dict.fromkeys(threads, 0)
        heads = [f"{len(threads)} threads"]
    else:
        at = {name: index for index, name in enumerate(threads)}
        heads = threads
    column = (width - NUMBER) // len(heads) - 1
    rows = [f"{'step':<{NUMBER}}" + " ".join(f"{head:<{column}}" for head in heads)]
    for number, thread, text in _cells(lines, len(made.steps), names=len(threads) > fitting):
        indent = " " * (NUMBER + at[thread] * (column + 1)) if thread else ""
        room = column if thread else width
        for i, part in enumerate(wrap(text, room, subsequent_indent="    ", break_on_hyphens=False)):
            rows.append((f"{number:<{NUMBER}}" + indent[NUMBER:] if not i else indent) + part)
    return rows


def _cells(lines: Sequence[Line], steps: int, *, names: bool) -> Iterator[tuple[str, str, str]]:
    """(step's number, thread, text) row by row: a head for each change of function or locks, then the steps."""
    hidden = len(lines) - HEAD - TAIL
    if hidden > 1:
        yield from _grouped(lines[:HEAD], names=names)
        left_out = f"... {hidden} more of {steps} steps ..."
        yield "", "", left_out
        lines = lines[-TAIL:]
    yield from _grouped(lines, names=names)


def _grouped(lines: Sequence[Line], *, names: bool) -> Iterator[tuple[str, str, str]]:
    def place(line: Line) -> tuple[str, str]:
        return line.step.thread, line.step.function

    held: dict[str, tuple[str, ...]] = {}
    for (thread, function), group in groupby(lines, key=place):
        who = f"{thread}: " if names else ""
        yield "", thread, f"{who}{function}()"
        for line in group:
            now = line.step.held
            if now != held.get(thread, ()) and not line.is_lock:
                held[thread] = now
                yield "", thread, f"[holds {', '.join(now) or 'nothing'}]"
            yield str(line.step.number), thread, f"  {_told(line)}"


def _told(line: Line) -> str:
    step, word = line.step, line.step.target
    parts = [",".join(step.ids[:2]), f"{step.verb} {word}"]
    if step.blocked:
        parts[-1] += " ... waits"
    elif not step.happened:
        parts[-1] += f" <=={GLUE}here"
    elif step.is_word and line.last.changed:
        parts[-1] += f": {told(word, line.first.before)} -> {told(word, line.last.after)}"
    elif step.is_word:
        parts[-1] += f" = {told(word, step.after)}"
    if line.times > 1:
        parts[-1] += f"{GLUE}(x{line.times})"
    return (
        " ".join(part for part in parts if part).replace("gfn ", f"gfn{GLUE}").replace("pfn ", f"pfn{GLUE}")
    )


def _heading(opened: Opened, finding: dict[str, Any], width: int) -> Iterator[str]:
    scenario = opened.scenario
    yield from wrap(f"{finding['kind']}: {finding['title']}", width, subsequent_indent="  ")
    patches = ", ".join(patch.name for patch in opened.case.patches)
    patched = f", patched by {patches}" if patches else ""
    yield from wrap(
        f"scenario {scenario.name}, design {scenario.design}{patched}", width, subsequent_indent="  "
    )
    yield ""
    yield from wrap(MEANING[finding["kind"]], width)
    for name, value in finding["details"].items():
        yield from wrap(
            f"{name.replace('_', ' ')}: {value}", width, initial_indent="  ", subsequent_indent="    "
        )
    for stack in finding["where"]:
        frames = stack.split(" < ")
        more = [f"... {len(frames) - FRAMES} more"] if len(frames) > FRAMES else []
        text = " < ".join([*frames[:FRAMES], *more])
        yield from wrap(f"at {text}", width, initial_indent="  ", subsequent_indent="    ")


def _last_changes(made: Film, finding: dict[str, Any], width: int) -> Iterator[str]:
    """Where what the finding speaks of was last changed: the promise, and what broke it."""
    changes = last_changes(made.steps, finding)[-CHANGES:]
    if not changes:
        return
    yield "Last changes of what this is about:"
    for step in changes:
        yield from wrap(
            f"{step.target}: {told(step.target, step.before)} -> {told(step.target, step.after)}",
            width,
            initial_indent="  ",
            subsequent_indent="    ",
        )
        ids = f" ({', '.join(step.ids)})" if step.ids else ""
        by = f"by {step.thread} in step {step.number}, {_model_place(step)}{ids}"
        yield from wrap(by, width, initial_indent="    ", subsequent_indent="      ")
    yield ""


def _model_place(step: Step) -> Place | str:
    return step.stack[0] if step.stack else "at its end"


def _more(finding: dict[str, Any], width: int) -> Iterator[str]:
    """The race that decides, and the timing witness, where there are any."""
    for name, label in (("nearest", "The race"), ("witness", "In a timing run")):
        text = finding.get(name, {}).get("text", "")
        if text:
            yield from wrap(f"{label}: {text}", width, subsequent_indent="  ")
            yield ""


def _how_to_replay(finding: dict[str, Any], width: int) -> Iterator[str]:
    if not finding["schedule"]:
        return
    if "execution" in finding:
        first = f"first in execution {finding['execution']} of share {finding['share']}"
        yield f"Found {finding['count']} x in its hunt, {first}."
    yield from wrap(
        f"Schedule (seed {finding['seed']}): {finding['schedule']}",
        width,
        subsequent_indent="  ",
        break_on_hyphens=False,
    )
    if finding["replay"]:
        yield f"Replay: {finding['replay']}"
