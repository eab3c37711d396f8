"""What two places of a scenario say about each other: memory layout, threads against vCPUs, verbs against slots.

Each check yields its mistakes, with their places; it assumes a scenario whose single values are right.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from scenarios.errors import ScenarioError, nearest, shown
from scenarios.schema import THREAD_NAME, GuestStep, HostStep, Scenario, Slot, SlotCreate, selected
from scenarios.units import ADDRESS_LIMIT, PAGE_BYTES, format_address, format_size
from scenarios.yaml_loader import Document, YamlPath

_PRIVATE_MEMORY_VERBS: Final = {
    "accept", "map_gpa", "set_memory_attributes", "punch_hole", "init_mem_region", "finalize",
}  # fmt: skip
_BUILD_VERBS: Final = {"init_mem_region", "finalize"}
_THREAD_HINT: Final = "write vcpu0, vcpu*, vcpu[0-3], host0, host* or host[0-3]"
_GROUP_LIMIT: Final = 4096


def check_thread_names(document: Document) -> Iterator[ScenarioError]:
    """Names in `threads` that are neither a vCPU's nor a host thread's; works on the data as read."""
    threads = document.data.get("threads") if isinstance(document.data, dict) else None
    for name in threads if isinstance(threads, dict) else ():
        path = ("threads", name)
        match = THREAD_NAME.fullmatch(name)
        if match is None:
            yield document.error(path, "unknown thread name", key=True, remedy=_THREAD_HINT)
        elif match[3] is not None and int(match[3]) > int(match[4]):
            yield document.error(path, "expected a range from the lower number to the higher", key=True)


def check(scenario: Scenario, document: Document) -> Iterator[ScenarioError]:
    """All mistakes of a scenario whose values are right one by one."""
    yield from _check_td(scenario, document)
    yield from _check_slots(scenario, document)
    yield from _check_threads(scenario, document)
    yield from _check_steps(scenario, document)
    yield from _check_injections(scenario, document)
    yield from _check_patches(scenario, document)


def _check_td(scenario: Scenario, document: Document) -> Iterator[ScenarioError]:
    td = scenario.td
    if td.max_vcpus is not None and td.max_vcpus < td.vcpus:
        message = f"expected at least td.vcpus, which is {td.vcpus}"
        yield document.error(("td", "max_vcpus"), message, got=True)
    if not td.initial_memory:
        return
    path = ("td", "initial_memory")
    yield from _aligned(document, path, td.initial_memory)
    if td.kind != "tdx":
        yield document.error(path, f"a VM of kind {td.kind} has no measured memory", remedy="remove the key")
        return
    if td.build == "manual":
        yield document.error(path, "is for td.build: auto", remedy="use the step init_mem_region")
        return
    private = next((slot for slot in scenario.memory if slot.initially == "private"), None)
    if private is None:
        yield document.error(
            path, "no slot is initially private", remedy="make one private or remove the key"
        )
    elif td.initial_memory > private.size:
        message = f"more than the {format_size(private.size)} of slot {private.slot}, the first private one"
        yield document.error(path, message, got=True, remedy=f"at most {format_size(private.size)}")


def _aligned(
    document: Document, path: YamlPath, value: int, unit: int = 4096, why: str = ""
) -> Iterator[ScenarioError]:
    if value % unit:
        below, above = value - value % unit, value - value % unit + unit
        near = " or ".join(format_address(choice) for choice in (below, above) if choice)
        message = f"expected a multiple of {format_size(unit)}{why}"
        yield document.error(path, message, got=True, remedy=f"nearest: {near}")


def _check_slots(scenario: Scenario, document: Document) -> Iterator[ScenarioError]:
    total = 0
    seen: dict[int, int] = {}
    for i, slot in enumerate(scenario.memory):
        path = ("memory", i)
        if slot.slot in seen:
            message = f"slot {slot.slot} is already memory.{seen[slot.slot]}"
            free = next(
                n for n in range(len(scenario.memory) + 1) if n not in {s.slot for s in scenario.memory}
            )
            yield document.error((*path, "slot"), message, remedy=f"{free} is free")
        seen.setdefault(slot.slot, i)
        yield from _check_layout(scenario, document, path, slot)
        total += slot.size
        if total > scenario.machine.host_memory >= total - slot.size:
            have = format_size(scenario.machine.host_memory)
            message = f"slots need {format_size(total)}, the host has {have}"
            yield document.error(
                (*path, "size"), message, remedy="raise machine.host_memory or shrink the slots"
            )
        if not scenario.has_private_memory and slot.initially == "private":
            yield document.error(
                (*path, "initially"), "a plain VM has no private memory", remedy="write shared"
            )
        if slot.flags and slot.initially == "private":
            message = "KVM refuses readonly and dirty_log on a slot with private memory"
            yield document.error(
                (*path, "flags"), message, remedy="remove the flags or write initially: shared"
            )
    placed = sorted(enumerate(scenario.memory), key=lambda item: (item[1].base, item[0]))
    for (first, lower), (second, upper) in pairwise(placed):
        if upper.base < lower.end:
            late, other = max(first, second), min(first, second)
            there = scenario.memory[other]
            message = f"overlaps memory.{other}, which is {format_address(there.base)} to {format_address(there.end)}"
            remedy = f"the first free address is {format_address(max(s.end for s in scenario.memory))}"
            yield document.error(("memory", late, "base"), message, got=True, remedy=remedy)


def _check_layout(
    scenario: Scenario, document: Document, path: YamlPath, slot: Slot | SlotCreate
) -> Iterator[ScenarioError]:
    unit = PAGE_BYTES[slot.backing]
    why = f", as backing {slot.backing} needs" if unit > PAGE_BYTES["4K"] else ""
    yield from _aligned(document, (*path, "base"), slot.base, unit, why)
    yield from _aligned(document, (*path, "size"), slot.size, unit, why)
    yield from _below_shared_bit(scenario, document, (*path, "base"), slot.base, slot.end)


def _below_shared_bit(
    scenario: Scenario, document: Document, path: YamlPath, start: int, end: int
) -> Iterator[ScenarioError]:
    limit, what = ADDRESS_LIMIT, "the 52 bits of a physical address"
    if scenario.has_private_memory:
        limit, what = 1 << scenario.td.shared_bit, f"the shared bit, {scenario.td.shared_bit}"
    if end > limit:
        message = f"{format_address(start)} to {format_address(end)} reaches {what}"
        yield document.error(path, message, remedy=f"end at or below {format_address(limit)}")


def _check_threads(scenario: Scenario, document: Document) -> Iterator[ScenarioError]:
    vcpus = scenario.td.vcpus
    for side, programs in (("vcpu", scenario.threads.guest), ("host", scenario.threads.host)):
        ranges: dict[int, str] = {}
        names: dict[int, str] = {}
        for selector in programs:
            path = ("threads", selector)
            numbers = range(0) if selector.endswith("*") else selected(selector, 0)
            if side == "vcpu" and numbers and numbers[-1] >= vcpus:
                last = f"vcpu0 to vcpu{vcpus - 1}" if vcpus > 1 else "vcpu0"
                message = f"no vcpu{numbers[-1]}: td.vcpus is {vcpus}"
                yield document.error(path, message, key=True, remedy=f"use {last} or raise td.vcpus")
                continue
            if len(numbers) > _GROUP_LIMIT:
                yield document.error(path, f"more than {_GROUP_LIMIT} threads", key=True)
                continue
            taken = ranges if selector.endswith("]") else names
            clash = next((taken[n] for n in numbers if n in taken), None)
            if clash is not None:
                message = f"names threads that {clash} names, too"
                yield document.error(path, message, key=True, remedy="let each thread be in one range")
            taken.update(dict.fromkeys(numbers, selector))


def _check_steps(scenario: Scenario, document: Document) -> Iterator[ScenarioError]:
    slots = {slot.slot for slot in scenario.memory}
    steps = list(_all_steps(scenario))
    sizes = {slot.slot: slot.size for slot in scenario.memory}
    spans = [(slot.base, slot.end) for slot in scenario.memory]
    for _, step in steps:
        if step.verb == "memslot_create":
            slots.add(step.args.slot)
            sizes.setdefault(step.args.slot, step.args.size)
            spans.append((step.args.base, step.args.end))
    spans += [
        (step.args.to, step.args.to + sizes[step.args.slot])
        for _, step in steps
        if step.verb == "memslot_move" and step.args.slot in sizes
    ]
    covered = _merged(spans)
    for path, step in steps:
        here = (*path, step.verb)
        yield from _check_kind(scenario, document, here, step)
        args = step.args
        if hasattr(args, "at"):
            yield from _check_range(document, here, args, covered)
        if step.verb in {"memslot_delete", "memslot_move"} and args.slot not in slots:
            known = [str(number) for number in sorted(slots)]
            remedy = f"slots: {', '.join(known[:12])}" if known else "there is no slot"
            yield document.error((*here, "slot"), f"no slot {args.slot}", remedy=remedy)
        elif step.verb == "memslot_move":
            yield from _aligned(document, (*here, "to"), args.to)
            yield from _below_shared_bit(
                scenario, document, (*here, "to"), args.to, args.to + sizes[args.slot]
            )
        elif step.verb == "memslot_create":
            yield from _check_layout(scenario, document, here, args)
        elif step.verb == "prefault" and args.vcpu >= scenario.td.vcpus:
            message = f"no vCPU {args.vcpu}: td.vcpus is {scenario.td.vcpus}"
            yield document.error((*here, "vcpu"), message, remedy=f"0 to {scenario.td.vcpus - 1}")


def _check_range(
    document: Document, path: YamlPath, args: Any, covered: list[tuple[int, int]]
) -> Iterator[ScenarioError]:
    unit = PAGE_BYTES["2M"] if getattr(args, "order", "") == "2M" else PAGE_BYTES["4K"]
    why = ", as order 2M needs" if unit > PAGE_BYTES["4K"] else ""
    yield from _aligned(document, (*path, "at"), args.at, unit, why)
    size_path = (*path, "size") if "size" in args.model_fields_set else path
    yield from _aligned(document, size_path, args.size, unit, why)
    if hasattr(args, "stride"):
        yield from _aligned(document, (*path, "stride"), args.stride)
    if any(start <= args.at and args.end <= end for start, end in covered):
        return
    message = f"{format_address(args.at)} to {format_address(args.end)} is not inside the slots"
    inside = next(((start, end) for start, end in covered if start <= args.at < end), None)
    if inside:
        yield document.error(
            size_path, message, remedy=f"at most {format_size(inside[1] - args.at)} from there"
        )
        return
    spans = ", ".join(f"{format_address(start)} to {format_address(end)}" for start, end in covered[:4])
    yield document.error(
        (*path, "at"), message, remedy=f"slots cover {spans}" if spans else "there is no slot"
    )


def _check_kind(
    scenario: Scenario, document: Document, path: YamlPath, step: GuestStep | HostStep
) -> Iterator[ScenarioError]:
    kind = scenario.td.kind
    if kind == "plain" and step.verb in _PRIVATE_MEMORY_VERBS:
        message = f"a plain VM has no private memory, so no {step.verb}"
        yield document.error(path, message, key=True, remedy="use td.kind tdx or snp, or remove the step")
    elif step.verb in _BUILD_VERBS and kind != "tdx":
        yield document.error(path, f"a VM of kind {kind} is not built so", key=True, remedy="use td.kind tdx")
    elif step.verb in _BUILD_VERBS and scenario.td.build == "auto":
        message = "the TD is built before the threads start"
        yield document.error(path, message, key=True, remedy="set td.build: manual")
    alias = getattr(step.args, "alias", "private")
    if kind == "plain" and alias == "shared":
        message = "a plain VM has one alias of each address"
        yield document.error((*path, "alias"), message, remedy="remove the key")


def _check_injections(scenario: Scenario, document: Document) -> Iterator[ScenarioError]:
    if not any(injection.thread for injection in scenario.inject):
        return
    threads = set(scenario.programs()) | set(scenario.threads.guest) | set(scenario.threads.host)
    for i, injection in enumerate(scenario.inject):
        if injection.thread is not None and injection.thread not in threads:
            remedy = nearest(injection.thread, sorted(threads))
            yield document.error(
                ("inject", i, "thread"), f"no thread {shown(injection.thread)}", remedy=remedy
            )
        if injection.leaf is not None and injection.fault == "alloc_fail":
            message = "an allocation failure is not bound to a leaf"
            yield document.error(("inject", i, "leaf"), message, remedy="remove the key")


def _check_patches(scenario: Scenario, document: Document) -> Iterator[ScenarioError]:
    for i, (patch, file) in enumerate(zip(scenario.patches, scenario.patch_files, strict=True)):
        try:
            exists = file.is_file()
        except (OSError, ValueError):
            exists = False
        if not exists:
            remedy = "the path is relative to the scenario's file"
            yield document.error(("patches", i), f"no file {shown(patch)}", remedy=remedy)


def _all_steps(scenario: Scenario) -> Iterator[tuple[YamlPath, Any]]:
    programs = {**scenario.threads.guest, **scenario.threads.host}
    for selector, steps in programs.items():
        yield from _nested(("threads", selector), steps)


def _nested(path: YamlPath, steps: Any) -> Iterator[tuple[YamlPath, Any]]:
    for i, step in enumerate(steps):
        if step.verb == "repeat":
            yield from _nested((*path, i, "repeat", "do"), step.args.do)
        else:
            yield (*path, i), step


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
