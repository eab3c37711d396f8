"""What a hunt came through, and what it never did: places, SEAMCALL statuses, steps of the reference."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scenarios.campaign.case import repository_root
from scenarios.campaign.step_ids import step_ids, yielding_ids

if TYPE_CHECKING:
    from sim import Access, Kernel, Thread

MODEL = ("vcpu", "mmu", "tdx")
_PLACE = re.compile(r"""(?:\breached\(|\bmet=)\s*"([^"]+)\"""")
_STATUS = re.compile(r"\bStatus\.([A-Z][A-Z0-9_]+)")


class Tracer:
    """A check that notes which lines an execution stood at; `ids` turns them into steps of the reference."""

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()

    def __call__(self, kernel: Kernel, thread: Thread, access: Access) -> None:
        self.lines.update((frame.f_code.co_filename, frame.f_lineno) for frame in thread.frames())

    def ids(self) -> set[str]:
        """The steps seen."""
        return {name for file, line in self.lines for name in step_ids(file).get(line, ())}


def coverage(
    counters: dict[str, int],
    met: Iterable[str],
    wanted: Iterable[str],
    ids: set[str],
    pairs: Mapping[str, int],
    traced: int,
) -> dict[str, Any]:
    """The coverage part of summary.json, in a fixed order.

    Args:
        counters: of the executions, without those of building their worlds.
        ids, pairs: of the `traced` executions only.
    """
    seen = set(met)
    known = set(_places()) | set(wanted)
    leafs = sorted(
        {name.split(".", 1)[1] for name in counters if name.startswith("seamcall.") and _leaf_file(name)}
    )
    root = Path(repository_root())
    steps = yielding_ids(tuple(str(root / package) for package in MODEL))
    return {
        "places": {
            "met": {name: counters.get(name, 0) for name in sorted(seen)},
            "never": sorted(known - seen),
        },
        "seamcalls": {leaf: _statuses(leaf, counters) for leaf in leafs},
        "steps": {"seen": sorted(ids & steps), "never": sorted(steps - ids)},
        "pairs": {"seen": dict(pairs), "one_way": _one_way(pairs)},
        "executions_traced": traced,
    }


def coverage_lines(told: dict[str, Any]) -> list[str]:
    """For people: what was never exercised."""
    places, steps = told["places"], told["steps"]
    lines = [
        f"places met    {', '.join(places['met']) or 'none'}",
        f"never met     {', '.join(places['never']) or 'none'}",
    ]
    for leaf, figures in told["seamcalls"].items():
        if figures["never"]:
            lines.append(f"never status  {leaf}: {', '.join(figures['never'])}")
    lines.append(
        f"steps seen    {len(steps['seen'])} of {len(steps['seen']) + len(steps['never'])} "
        f"(in {told['executions_traced']} traced executions); never: {' '.join(steps['never']) or 'none'}"
    )
    lines.append(
        f"pairs seen    {len(told['pairs']['seen'])} places followed by a conflicting one of another thread; "
        f"{len(told['pairs']['one_way'])} of them never the other way round"
    )
    return lines


def _one_way(pairs: Mapping[str, int]) -> list[str]:
    """The pairs that were only seen in one order: a lock forbids the other one, or the hunt never tried it."""
    found = []
    for pair in pairs:
        places, on, family = pair.rpartition(" on ")
        first, _, second = places.partition(" -> ")
        if f"{second} -> {first}{on}{family}" not in pairs:
            found.append(pair)
    return found


@cache
def _places() -> tuple[str, ...]:
    root = Path(repository_root())
    texts = (path.read_text(encoding="utf-8") for package in MODEL for path in (root / package).rglob("*.py"))
    return tuple(sorted({name for text in texts for name in _PLACE.findall(text)}))


def _leaf_file(counter: str) -> Path | None:
    leaf = counter.split(".", 1)[1]
    path = Path(repository_root()) / "tdx" / "module" / "leaves" / (leaf.lower().replace(".", "_") + ".py")
    return path if path.is_file() else None


def _statuses(leaf: str, counters: dict[str, int]) -> dict[str, Any]:
    prefix = f"seamcall.{leaf}"
    met = {
        name.removeprefix(f"{prefix}."): n
        for name, n in sorted(counters.items())
        if name.startswith(f"{prefix}.")
    }
    file = _leaf_file(prefix)
    assert file is not None
    can = {*_STATUS.findall(file.read_text(encoding="utf-8")), "TDX_OPERAND_BUSY"} - {"TDX_SUCCESS"}
    return {"calls": counters.get(prefix, 0), "statuses": met, "never": sorted(can - set(met))}
