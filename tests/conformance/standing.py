"""What a call may change beside an S-EPT entry, by name: for rows of calls that act on none.

A note says `op_state becomes FAILED_IMPORT` or `num_vcpus +1`. What it says is so afterwards; and where the call refuses, nothing else of
what is listed here has changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from tests.conformance.situation import NEW
from tests.conformance.world import HKID, OTHER, World

Standing = dict[str, object]

_LOOKS: dict[str, Callable[[World], object]] = {
    "lifecycle": lambda world: world.tdr.lifecycle.name,
    "fatal": lambda world: int(world.tdr.fatal),
    "chldcnt": lambda world: world.tdr.chldcnt.peek(),
    "tdcx_pages": lambda world: len(world.tdr.tdcx),
    "keys_missing": lambda world: len(world.tdr.keys_missing),
    "op_state": lambda world: world.tdcs.op_state.name,
    "td_epoch": lambda world: world.tdcs.epoch.peek().epoch,
    "refcount": lambda world: sum(world.tdcs.epoch.peek()[1:]),
    "num_vcpus": lambda world: world.tdcs.num_vcpus.peek(),
    "num_assoc_vcpus": lambda world: world.tdcs.num_assoc_vcpus.peek(),
    "max_vcpus": lambda world: world.tdcs.max_vcpus,
    "hp_lock_timeout": lambda world: world.tdcs.hp_lock_timeout_ns // 1000,
    "notify_enables": lambda world: world.tdcs.notify_enables,
    "vcpu_state": lambda world: world.vcpu.state.peek().name,
    "assoc_lpid": lambda world: world.vcpu.assoc_lpid.peek(),
    "tdvps_pages": lambda world: 1 + len(world.vcpu.tdcx),
    "guest_rax": lambda world: world.vcpu.guest_rax,
    "mig_epoch": lambda world: world.tdcs.migration.mig_epoch,
    "mig_count": lambda world: world.tdcs.migration.mig_count.peek(),
    "dirty_count": lambda world: world.tdcs.migration.dirty_count.peek(),
    "total_mb_count": lambda world: world.tdcs.migration.total_mb_count.peek(),
    "num_migrated_vcpus": lambda world: world.tdcs.migration.num_migrated_vcpus.peek(),
    "num_migs": lambda world: world.tdcs.migration.num_migs,
    "export_count": lambda world: world.tdcs.migration.export_count,
    "import_count": lambda world: world.tdcs.migration.import_count,
    "dec_key_set": lambda world: int(world.tdcs.migration.dec_key_set),
    "migsc_started": lambda world: int(world.tdcs.migration.forward(0).initialized),
    "backward_migsc_started": lambda world: int(world.tdcs.migration.backward.initialized),
    "hkid_state": lambda world: world.module.kot.hkids[HKID].state.name,
    "new_hkid_state": lambda world: world.module.kot.hkids[HKID + 1].state.name,
    "to_write_back": lambda world: len(world.module.kot.hkids[HKID].to_write_back),
    "new_page": lambda world: world.pamt(NEW).kind.name,
    "other_page": lambda world: world.module.pamt.leaf(OTHER).kind.name,
    "tdr_page": lambda world: world.pamt(world.tdr.pfn).kind.name,
}

_TOLD = re.compile(rf"\b(?P<name>{'|'.join(_LOOKS)}) (?:becomes (?P<value>-?\w+)|(?P<by>[+-]\d+))")


def standing(world: World) -> Standing:
    """How things stand now."""
    return {name: look(world) for name, look in _LOOKS.items()}


def wrongly_changed(note: str, before: Standing, now: Standing, *, refused: bool) -> Iterator[str]:
    """What is not as the note says; after a refusal also what it does not say and has changed."""
    told = set()
    for match in _TOLD.finditer(note):
        name = match["name"]
        told.add(name)
        changed = now[name] != before[name]
        if match["value"] is not None:
            met = changed and str(now[name]) == match["value"]
        else:
            was, is_ = before[name], now[name]
            met = isinstance(was, int) and isinstance(is_, int) and is_ - was == int(match["by"])
        if not met:
            yield f"{match[0]!r}, but it was {before[name]} and is {now[name]}"
    for name in before if refused else ():
        if name not in told and now[name] != before[name]:
            yield f"a refusal leaves {name} {before[name]}, but it is {now[name]}"
