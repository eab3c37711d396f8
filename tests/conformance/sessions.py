"""The protocol calls of a migration in a world of their own: streams, tokens and bundles that the other side would have sent.

Each function brings the world as far as its call needs, and returns what lies in shared memory.
Source: reference 6.2 and 16; what a bundle must say is `tdx.module.migration_data`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim import Steps
from tdx.module import TdExit
from tdx.module.migration import MigrationKey, MigStream
from tdx.module.migration_data import Mbmd, MbType, StateBundle, TokenBuffer
from tdx.module.migration_state import PAGES, immutable_of, mutable_of, vcpu_state_of
from tests.conformance.world import World

SharedMemory = dict[str, Any]


def started(world: World) -> MigStream:
    """The first forward stream, in use by this session."""
    migration = world.tdcs.migration
    stream = migration.forward(0)
    importing = ".IMPORT." in world.want.call.name
    stream.start(migration.dec_working_key if importing else migration.enc_working_key)
    return stream


def fresh_key(world: World) -> MigrationKey:
    """What the migration TD writes before a session."""
    key = MigrationKey("the other side's next key")
    world.tdcs.migration.write_key(key)
    return key


def _with_stream(world: World) -> SharedMemory:
    started(world)
    return {}


def _to_begin(world: World) -> SharedMemory:
    """Nothing is left of the session before."""
    fresh_key(world)
    world.tdcs.migration.mig_count.v = 0
    return {}


def _abort_token(world: World) -> SharedMemory:
    """The destination has given up: its token comes on the backward stream."""
    token = Mbmd(MbType.ABORT_TOKEN, 0, 0, 0, 1)
    token.mac = token.mac_with(world.tdcs.migration.dec_working_key)
    return {"token": TokenBuffer(token)}


def _epoch_token(world: World) -> SharedMemory:
    """The source has begun its next migration epoch."""
    migration = world.tdcs.migration
    stream = started(world)
    token = Mbmd(MbType.EPOCH_TOKEN, 0, 0, migration.mig_epoch + 1, 1, migration.total_mb_count.peek() + 1)
    token.mac = token.mac_with(stream.key)
    return {"token": TokenBuffer(token)}


def _bundle(
    key: MigrationKey | None, kind: MbType, mig_epoch: int, value: int, metadata: Any
) -> SharedMemory:
    bundle = StateBundle(metadata=metadata, pages=PAGES[kind])
    bundle.mbmd = Mbmd(kind, 0, 0, mig_epoch, 1, value)
    bundle.mbmd.mac = bundle.mbmd.mac_with(key, bundle.payload(bundle.pages))
    return {"bundle": bundle}


def _immutable_state(world: World) -> SharedMemory:
    metadata = world.run(immutable_of(world.tdcs))
    world.vcpu.assoc_lpid.v = -1
    return _bundle(fresh_key(world), MbType.IMMUTABLE_TD_STATE, 0, 1, metadata)


def _td_state(world: World) -> SharedMemory:
    stream = started(world)
    epoch = world.tdcs.migration.mig_epoch
    return _bundle(stream.key, MbType.MUTABLE_TD_STATE, epoch, 0, mutable_of(world.tdcs))


def _vcpu_state(world: World) -> SharedMemory:
    stream = started(world)
    epoch = world.tdcs.migration.mig_epoch
    return _bundle(stream.key, MbType.MUTABLE_VCPU_STATE, epoch, 0, vcpu_state_of(world.vcpu))


def _guest_leaves(world: World) -> SharedMemory:
    """A guest that an interrupt takes out at once."""

    def guest() -> Steps[TdExit]:
        yield world.module.state.read_once()
        return TdExit.external_interrupt()

    return {"guest": guest}


SESSIONS: dict[str, Callable[[World], SharedMemory]] = {
    "TDH.VP.ENTER": _guest_leaves,
    "TDH.EXPORT.TRACK": _with_stream,
    "TDH.EXPORT.STATE.IMMUTABLE": _to_begin,
    "TDH.EXPORT.STATE.TD": _with_stream,
    "TDH.EXPORT.ABORT": _abort_token,
    "TDH.IMPORT.TRACK": _epoch_token,
    "TDH.IMPORT.STATE.IMMUTABLE": _immutable_state,
    "TDH.IMPORT.STATE.TD": _td_state,
    "TDH.IMPORT.STATE.VP": _vcpu_state,
}
"""Call to what it needs; the others need nothing."""
