"""Tables of what the searches came to: one for a terminal, with seconds, and one for the docs, without.

Executions to the first detection are the same on every machine, seconds are not; so the page in docs/ has no seconds, and
does not change unless the model, a plant or a strategy does. A run that the net of seconds ended is marked by `*`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median_high

from tests.corpus.catalogue import ABSENT, STRATEGIES, Control, Entry
from tests.corpus.search import Attempt, Budget


@dataclass(frozen=True, slots=True)
class Row:
    """An entry and its searches by strategy, one a seed."""

    entry: Entry
    attempts: Mapping[str, Sequence[Attempt]]

    @property
    def fired(self) -> str:
        """The oracles that fired, the most frequent first."""
        kinds = Counter(a.kinds[0] for tries in self.attempts.values() for a in tries if a.found)
        return ", ".join(kind for kind, _ in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))

    @property
    def best(self) -> str:
        """The strategy with the fewest executions to detection; "" if none detects."""
        medians = {strategy: median_executions(tries) for strategy, tries in self.attempts.items()}
        found = {strategy: count for strategy, count in medians.items() if count is not None}
        return min(found, key=lambda strategy: found[strategy]) if found else ""


def median_executions(attempts: Sequence[Attempt]) -> int | None:
    """Median executions to first detection, a miss counting as infinitely many; None if most missed."""
    counts = [a.executions if a.found else 1 << 62 for a in attempts]
    middle = median_high(counts)
    return middle if middle < 1 << 62 else None


def median_seconds(attempts: Sequence[Attempt]) -> float:
    """Median seconds of the searches that detected; of all if none did."""
    return median_high([a.seconds for a in attempts if a.found] or [a.seconds for a in attempts])


def cell(attempts: Sequence[Attempt], budget: Budget, *, seconds: bool) -> str:
    """`12`, `12 (4/5)` where only 4 of 5 seeds detected it, `-` where none did or most did not."""
    hits = sum(a.found for a in attempts)
    middle = median_executions(attempts)
    text = "-" if middle is None else str(middle)
    if 0 < hits < len(attempts):
        text += f" ({hits}/{len(attempts)})"
    if any(not a.found and a.seconds >= budget.seconds for a in attempts):
        text += "*"
    if seconds and hits:
        text += f" {median_seconds(attempts):.1f}s"
    return text


def heading() -> list[str]:
    """The columns of the table of entries."""
    return ["id", "race", "expected", "fired", *STRATEGIES]


def line_of(row: Row, budget: Budget, *, seconds: bool) -> list[str]:
    """The line of one entry."""
    cells = [cell(row.attempts[strategy], budget, seconds=seconds) for strategy in STRATEGIES]
    return [row.entry.id, row.entry.title, ", ".join(row.entry.expected), row.fired or "nothing", *cells]


def widths(entries: Sequence[Entry]) -> list[int]:
    """Of the columns, before any result is there: so that lines can be printed as they come."""
    known = [(entry.id, entry.title, ", ".join(entry.expected)) for entry in entries]
    return [*(max(len(texts[i]) for texts in known) for i in range(3)), 20, *[16] * len(STRATEGIES)]


def controls_table(results: Sequence[tuple[Control, Sequence[Attempt]]]) -> list[list[str]]:
    """Header and one line a control: executions, false alarms, executions cut short."""
    table = [["id", "control", "executions", "false alarms", "cut", "met"]]
    for control, attempts in results:
        alarms = Counter(
            f"{kind}: {title}" for a in attempts for kind, title in zip(a.kinds, a.titles, strict=True)
        )
        met = any(control.reached in a.reached for a in attempts)
        table.append(
            [
                control.id,
                control.title,
                str(sum(a.executions for a in attempts)),
                "; ".join(sorted(alarms)) or "0",
                str(sum(a.cut for a in attempts)),
                control.reached if met else f"never {control.reached}",
            ]
        )
    return table


def as_columns(line: Sequence[str], widths: Sequence[int]) -> str:
    """One line for a terminal."""
    return "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()


def as_text(table: Sequence[Sequence[str]]) -> str:
    """A table for a terminal."""
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join(as_columns(line, widths) for line in table)


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    """A table for the docs."""
    head, *lines = ["| " + " | ".join(line) + " |" for line in table]
    return "\n".join([head, "|" + "---|" * len(table[0]), *lines])


def page(
    rows: Sequence[Row],
    controls: Sequence[tuple[Control, Sequence[Attempt]]],
    budget: Budget,
    seeds: int,
    command: str,
) -> str:
    """docs/race-scoreboard.md."""
    notes = [f"- {row.entry.id}: {row.entry.note}" for row in rows if row.entry.note]
    absent = [["id", "race", "needs"], *([a.id, a.title, a.needs] for a in ABSENT)]
    parts = [
        "# Race scoreboard",
        f"Made by `{command}`: do not edit.",
        (
            f"Executions to the first detection, median of {seeds} seeds (`dpor` has none), of at most {budget.executions} "
            f"executions and {budget.seconds:g} s each. `-`: not found; `(1/{seeds})`: by so many seeds; `*`: the time was up "
            "first, so that another machine may get further. Seconds depend on the machine, and are only printed."
        ),
        as_markdown([heading(), *(line_of(row, budget, seconds=False) for row in rows)]),
        *(["\n".join(notes)] if notes else []),
        "## Negative controls",
        "They look racy and are right. Any alarm is a defect of the checker that raised it.",
        as_markdown(controls_table(controls)),
        "## Not modelled yet",
        as_markdown(absent),
    ]
    return "\n\n".join(parts) + "\n"
