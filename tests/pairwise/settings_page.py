"""All settings, their share of a run in several processes, and their section of docs/seamcall-pairs.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.pairwise.page import codes
from tests.pairwise.settings import Setting, SettingResult, search_setting
from tests.pairwise.settings_interrupts import INTERRUPT_SETTINGS
from tests.pairwise.settings_l2 import L2_SETTINGS

SETTINGS: tuple[Setting, ...] = (*L2_SETTINGS, *INTERRUPT_SETTINGS)

SECTION = """## In other settings

Chosen starting states with L2 VMs, an interrupt that waits for every LP, or a release in which who wants the tree is heard; some
calls in each, every two that could disturb each other, in every interleaving. Shown is what a call may return that it does not in
the same state without the setting (no L2 VMs, no interrupt, 1.5.01); `SHUTDOWN` is Intel's FATAL_ERROR(). A call that an interrupt
ended is made again once it was taken: *then*. What is reached from there is not searched again.

| setting | state | pairs | executions | new answers |
|---|---|---:|---:|---|
{rows}

{pairs} pairs in {settings} settings, {executions} executions, {steps} steps. Rules of the module broken: {findings}.

The module shuts down in some orders of:

{known}
"""


def search_setting_numbered(number: int) -> SettingResult:
    """Exhaust one setting; for workers."""
    return search_setting(SETTINGS[number])


def section(results: Sequence[SettingResult]) -> str:
    """What the page says of them."""
    return SECTION.format(
        rows="\n".join(map(_row, results)),
        pairs=sum(result.pairs for result in results),
        settings=len(results),
        executions=sum(result.executions for result in results),
        steps=sum(result.steps for result in results),
        findings=sum(len(result.findings) for result in results) or "none",
        known="\n".join(_known(results)),
    )


def _row(result: SettingResult) -> str:
    news = "<br>".join(f"{label}: {codes(found, ', ')}" for label, found in result.news.items())
    return f"| {result.setting} | {result.state} | {result.pairs} | {result.executions} | {news} |"


def _known(results: Iterable[SettingResult]) -> list[str]:
    """By reason: the pairs."""
    pairs: dict[str, list[str]] = {}
    for result in results:
        for pair, why in result.known.items():
            pairs.setdefault(why, []).append(pair)
    return [f"- {'; '.join(dict.fromkeys(found))}. {why}" for why, found in pairs.items()]
