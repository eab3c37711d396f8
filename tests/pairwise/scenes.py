"""All explorations that are no pairs of the table, and their section of docs/seamcall-pairs.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

from tests.pairwise import dpamt_settings, guest_settings, life_settings
from tests.pairwise.explored import Explored

SECTION = """## Dynamic PAMT, guests, and the ends of a TD

Worlds that are no pairs of the table above, each searched to the end under the same rules, and written down in
`tests/pairwise/dpamt_settings.py`, `guest_settings.py` and `life_settings.py`: page pairs that come and go (releases 1.5.28 and 1.5.01
with Dynamic PAMT; at rest a pair's count is the number of pages in use), guests that touch, take #VE, accept and leave inside
TDH.VP.ENTER, and teardown by registers. {worlds} worlds, {executions} executions, {exhausted} of them to the end. Alarms: {alarms}.

Known, and seen where they must be: TDH.PHYMEM.PAMT.REMOVE is not ordered with calls that reach a 4K page by its own entry alone. They
lose the entry while they hold it (`uaf-object`), or count their page out too late, which shuts the module down (`td-dead`).

| world | executions | comes to | known findings |
|---|---:|---|---|
{rows}
"""
OUTCOMES_SHOWN = 4
"""More are only counted."""
Run = Callable[[], Explored]


@cache
def all_runs() -> tuple[Run, ...]:
    """What is searched, in a fixed order."""
    dpamt = [
        meeting.exploration.run
        for profile in dpamt_settings.PROFILES
        for meeting in dpamt_settings.meetings(profile)
    ]
    shutdowns = [partial(dpamt_settings.after_shutdown, profile) for profile in dpamt_settings.PROFILES]
    guests = [exploration.run for exploration in guest_settings.explorations()]
    lives = [exploration.run for exploration in life_settings.explorations()]
    draws = (guest_settings.held_back, guest_settings.let_out, guest_settings.not_by_mtf)
    return (*dpamt, *shutdowns, *guests, *draws, *lives)


def run_numbered(number: int) -> Explored:
    """One of them, for a worker process."""
    return all_runs()[number]()


def line_of(found: Explored) -> str:
    """For who watches the search."""
    lines = [f"{found.name}: {found.executions} executions, {len(found.outcomes)} outcomes"]
    lines += [f"    known: {kind}" for kind in found.expected]
    lines += [f"    FINDING {alarm}" for alarm in found.alarms]
    if not found.exhausted:
        lines.append("    not searched to the end")
    return "\n".join(lines)


def section(found: Sequence[Explored]) -> str:
    """The page's section."""
    return SECTION.format(
        worlds=len(found),
        executions=sum(one.executions for one in found),
        exhausted="all" if all(one.exhausted for one in found) else "not all",
        alarms=", ".join(alarm for one in found for alarm in one.alarms) or "none",
        rows="\n".join(_rows(found)),
    )


def _rows(found: Sequence[Explored]) -> Iterator[str]:
    """A row for each world; releases in which it comes to the same share one."""
    alike: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[tuple[str, Explored]]] = {}
    for one in found:
        release, colon, world = one.name.partition(": ")
        if not colon or not release[0].isdigit():
            release, world = "", one.name
        alike.setdefault((world, one.outcomes, one.expected), []).append((release, one))
    for (world, *_), same in alike.items():
        releases = ", ".join(release for release, _ in same if release)
        yield _row(f"{world} ({releases})" if releases else world, [one for _, one in same])


def _row(world: str, same: Sequence[Explored]) -> str:
    found = same[0]
    shown = "<br>".join(f"`{outcome}`" for outcome in found.outcomes[:OUTCOMES_SHOWN])
    if len(found.outcomes) > OUTCOMES_SHOWN:
        shown += f"<br>and {len(found.outcomes) - OUTCOMES_SHOWN} more"
    executions = sum(one.executions for one in same)
    cells = (world, str(executions), shown, ", ".join(found.expected))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
