"""Keys of the migration calls beside the list: sessions, streams, tokens, bundles of metadata, and going on after an interrupt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tdx.module.migration import MAX_EXPORT_COUNT, MAX_MIGS, OUT_OF_ORDER
from tdx.module.migration_data import (
    Mbmd,
    MbType,
    MemoryBundle,
    StateBundle,
    TokenBuffer,
)
from tdx.module.objects import MIGRATABLE
from tests.conformance.keys_more import only
from tests.conformance.keys_more_pages import fill_page
from tests.conformance.sessions import started
from tests.conformance.situation import MIG_EPOCH, Situation, Words
from tests.conformance.vocabulary import key
from tests.conformance.world import World
from vcpu.addresses import Pfn

STATE_CALLS = ("TDH.EXPORT.STATE.", "TDH.IMPORT.STATE.")
MEM_CALLS = ("TDH.EXPORT.MEM", "TDH.IMPORT.MEM")
TOKEN_CALLS = ("TDH.EXPORT.TRACK", "TDH.EXPORT.ABORT", "TDH.IMPORT.TRACK", "TDH.IMPORT.ABORT")
NOT_SHARED = 32 << 46
COMMAND = 1 << 63
Context = dict[str, Any]


# The TD's side of a session.


@key("migratable", _0="", _1="")
def migratable(want: Situation, value: str, how: str) -> None:
    """ATTRIBUTES.MIGRATABLE."""
    if value == "0":
        want.then(lambda world: setattr(world.tdcs, "attributes", world.tdcs.attributes & ~MIGRATABLE))


@key("streams", none="0", one="1", two="2", max="512")
def streams(want: Situation, value: str, how: str) -> None:
    """How many streams the TD has, the backward one included."""
    assert int(how) <= MAX_MIGS
    want.then(lambda world: setattr(world.tdcs.migration, "num_migs", int(how)))


@key("dec_key", set="", not_set="")
def dec_key(want: Situation, value: str, how: str) -> None:
    """Whether the migration TD has written a key since the last session began."""
    if value == "not_set":
        want.hand(lambda world, _words, _context: setattr(world.tdcs.migration, "_dec_key", None))


@key("exported_pages", _0="", _1="")
def exported_pages(want: Situation, value: str, how: str) -> None:
    """MIG_COUNT."""
    want.hand(lambda world, _words, _context: setattr(world.tdcs.migration.mig_count, "v", int(value)))


@key("dirty_pages", _0="", _1="")
def dirty_pages(want: Situation, value: str, how: str) -> None:
    """DIRTY_COUNT."""
    want.hand(lambda world, _words, _context: setattr(world.tdcs.migration.dirty_count, "v", int(value)))


@key("export_sessions", some="", max="")
def export_sessions(want: Situation, value: str, how: str) -> None:
    """EXPORT_COUNT."""
    count = MAX_EXPORT_COUNT if value == "max" else 1
    want.then(lambda world: setattr(world.tdcs.migration, "export_count", count))


@key("mig_epoch", some="", last="")
def mig_epoch(want: Situation, value: str, how: str) -> None:
    """The migration epoch: the last one before the start token, or another."""
    epoch = OUT_OF_ORDER - 1 if value == "last" else MIG_EPOCH
    want.then(lambda world: setattr(world.tdcs.migration, "mig_epoch", epoch))


@key("stream_state", started="", not_started="")
def stream_state(want: Situation, value: str, how: str) -> None:
    """Whether this session has used the first forward stream before."""

    def change(world: World, _words: Words, _context: Context) -> None:
        if value == "started":
            started(world)
        else:
            world.tdcs.migration.forward(0).initialized = False

    want.hand(change)


@key("backward_stream", started="", not_started="")
def backward_stream(want: Situation, value: str, how: str) -> None:
    """The same of the backward one."""
    if value == "started":
        want.then(_start_backward)


def _start_backward(world: World) -> None:
    migration = world.tdcs.migration
    importing = ".IMPORT." in world.want.call.name
    migration.backward.start(migration.enc_working_key if importing else migration.dec_working_key)


@key("vcpu_exported", _0="", _1="")
def vcpu_exported(want: Situation, value: str, how: str) -> None:
    """Whether the vCPU was exported in this session already."""
    want.then(lambda world: setattr(world.vcpu, "export_count", int(value)))


@key("vcpus_arrived", none="", all="")
def vcpus_arrived(want: Situation, value: str, how: str) -> None:
    """NUM_MIGRATED_VCPUS, of one that the TD has."""
    want.then(lambda world: setattr(world.tdcs.migration.num_migrated_vcpus, "v", int(value == "all")))


# Operands.


@key("mbmd_buffer", ok="", bad="private small misaligned", zero="", nonzero="")
def mbmd_buffer(want: Situation, value: str, how: str) -> None:
    """R8: where the MBMD lies or goes."""
    only(want, *STATE_CALLS, *MEM_CALLS, *TOKEN_CALLS)
    changes: dict[str, Callable[[int], int]] = {
        "private": lambda word: word & ~(0x3F << 46) | NOT_SHARED,
        "small": lambda word: word & (1 << 52) - 1 | 47 << 52,
        "misaligned": lambda word: word | 64,
    }
    if how:
        want.patch(lambda _world, words: words.update(r8=changes[how](words["r8"])))
    elif value == "zero":
        want.patch(lambda _world, words: words.update(r8=0))


@key(
    "page_list",
    ok="",
    bad="reserved high short private",
    unsound="reserved high private",
    not_shared="private",
    short="short",
    long="",
)
def page_list(want: Situation, value: str, how: str) -> None:
    """R9 of the STATE calls."""
    only(want, *STATE_CALLS)
    changes: dict[str, Callable[[int], int]] = {
        "reserved": lambda word: word | 8,
        "high": lambda word: word | 1 << 52,
        "short": lambda word: word & (1 << 55) - 1,
        "private": lambda word: word & ~(0x3F << 46) | NOT_SHARED,
        "": lambda word: word + (1 << 55),
    }
    if value != "ok":
        want.patch(lambda _world, words: words.update(r9=changes[how](words["r9"])))


@key("r10", ok="", bad="index reserved", nonzero="index reserved")
def r10(want: Situation, value: str, how: str) -> None:
    """R10: a stream that there is not, or a reserved bit."""
    only(want, *STATE_CALLS, *MEM_CALLS, *TOKEN_CALLS)
    bits = {"index": 9, "reserved": 1 << 16, "": 0}[how]
    want.patch(lambda _world, words: words.update(r10=words["r10"] | bits))


@key("command", none="", in_order_done="")
def command(want: Situation, value: str, how: str) -> None:
    """R10 of EXPORT.TRACK: whether the start token is wanted."""
    only(want, "TDH.EXPORT.TRACK")
    if value == "in_order_done":
        want.patch(lambda _world, words: words.update(r10=COMMAND))


@key("mac_list_1", ok="", bad="")
def mac_list_1(want: Situation, value: str, how: str) -> None:
    """R12, which lists of more than 256 entries need."""
    only(want, *MEM_CALLS)
    if value == "bad":
        want.patch(lambda _world, words: words.update(r12=NOT_SHARED))


@key("buffer_entry", ok="", private="")
def buffer_entry(want: Situation, value: str, how: str) -> None:
    """The migration buffer that the host lists for the first entry."""
    only(want, *MEM_CALLS)
    if value == "private":
        want.hand(lambda _world, _words, context: _make_private(context["bundle"]))


def _make_private(bundle: MemoryBundle) -> None:
    bundle.buffers[0] = replace(bundle.buffers[0], pfn=Pfn(NOT_SHARED >> 12), invalid=False)


@key("first_entry", zero="", later="")
def first_entry(want: Situation, value: str, how: str) -> None:
    """Where in the list a new call begins; there are two entries."""
    only(want, *MEM_CALLS)
    want.list_entries = 2
    if value == "later":
        want.patch(lambda _world, words: words.update(rcx=words["rcx"] | 1 << 3))


@key("new_pages", listed="", none="", in_place="")
def new_pages(want: Situation, value: str, how: str) -> None:
    """IMPORT.MEM: pages for the TD, from a list; or without a list the migration buffer's own."""
    only(want, "TDH.IMPORT.MEM")
    if value == "listed":
        return
    want.patch(lambda _world, words: words.update(r13=(1 << 64) - 1))
    if value == "in_place":
        new = want.new_page
        assert new is not None
        frame = Pfn(new)
        want.hand(lambda _world, _words, context: setattr(context["bundle"].buffers[0], "pfn", frame))


@key("contents", zero="", some="")
def contents(want: Situation, value: str, how: str) -> None:
    """What the first page holds: on its way, or where it is exported from."""
    only(want, *MEM_CALLS)
    if value == "some" and want.call.name == "TDH.IMPORT.MEM":
        want.hand(_send_contents)
    elif value == "some":
        want.then(fill_page)


def _send_contents(world: World, _words: Words, context: Context) -> None:
    migration = world.tdcs.migration
    bundle = MemoryBundle.sent_to(migration, context["gpa_list"], {0: ((16, 0x77),)})
    context["bundle"] = bundle
    world.module.memory.qword((int(world.want.new_page or 0) << 12) + 8).v = 0x55


# What the other side has sent.


MbmdChange = Callable[[World, Mbmd], Mbmd]

_SPOILT: dict[str, MbmdChange] = {
    "kind": lambda _world, mbmd: replace(
        mbmd, kind=MbType.EPOCH_TOKEN if mbmd.kind != MbType.EPOCH_TOKEN else MbType.MEM
    ),
    "stream": lambda _world, mbmd: replace(mbmd, migs_index=1),
    "counter": lambda _world, mbmd: replace(mbmd, mb_counter=mbmd.mb_counter + 1),
    "epoch": lambda _world, mbmd: replace(
        mbmd, mig_epoch=max(mbmd.mig_epoch - 1, 0) if mbmd.mig_epoch else 1
    ),
    "count": lambda _world, mbmd: replace(mbmd, value=mbmd.value + 1),
    "mac": lambda _world, mbmd: replace(mbmd, mac=()),
}


def _respell(how: str) -> Callable[[World, Words, Context], None]:
    """Change the MBMD of whatever comes with the call."""

    def change(world: World, _words: Words, context: Context) -> None:
        holder: TokenBuffer | StateBundle | MemoryBundle = context.get("token") or context["bundle"]
        if how == "nothing":
            holder.mbmd = None
            return
        assert holder.mbmd is not None
        holder.mbmd = _SPOILT[how](world, holder.mbmd)

    return change


@key(
    "token",
    ok="",
    none="nothing",
    invalid="nothing kind stream counter epoch count",
    not_abort="nothing kind stream",
    bad_mac="mac",
    start="",
)
def token(want: Situation, value: str, how: str) -> None:
    """The token that comes with TRACK and ABORT; `start`: the one that ends the in-order phase."""
    only(want, *TOKEN_CALLS)
    if how:
        want.hand(_respell(how))
    elif value == "start":
        want.hand(_start_token)


def _start_token(world: World, _words: Words, context: Context) -> None:
    token_ = context["token"].mbmd
    token_.mig_epoch = OUT_OF_ORDER
    token_.mac = token_.mac_with(world.tdcs.migration.forward(0).key)


@key("token_buffer", ok="", absent="")
def token_buffer(want: Situation, value: str, how: str) -> None:
    """Whether anybody wants to see the token that the call makes."""
    only(want, *TOKEN_CALLS)
    if value == "ok":
        want.hand(lambda _world, _words, context: context.setdefault("token", TokenBuffer()))


@key("arriving", ok="", invalid="nothing kind stream counter epoch", bad_mac="mac", stale="counter")
def arriving(want: Situation, value: str, how: str) -> None:
    """The MBMD that comes with an import."""
    only(want, "TDH.IMPORT.STATE.", "TDH.IMPORT.MEM")
    if how:
        want.hand(_respell(how))


@key("arriving_count", ok="", wrong="count")
def arriving_count(want: Situation, value: str, how: str) -> None:
    """What an MBMD says beside its counters: entries of the list, forward streams of the source."""
    only(want, "TDH.IMPORT.STATE.IMMUTABLE", "TDH.IMPORT.MEM")
    if how:
        want.hand(_respell(how))


@key(
    "metadata",
    ok="",
    no_vcpus="NUM_VCPUS=0",
    too_many_vcpus="NUM_VCPUS=577",
    partitioned="NUM_L2_VMS=1",
    wide="GPAW=1",
)
def metadata(want: Situation, value: str, how: str) -> None:
    """What the immutable metadata say of the TD; their MAC is right."""
    only(want, "TDH.IMPORT.STATE.IMMUTABLE")
    if how:
        want.hand(lambda world, _words, context: _say(world, context["bundle"], how))


def _say(world: World, bundle: StateBundle, how: str) -> None:
    name, _, number = how.partition("=")
    bundle.metadata = {**bundle.metadata, name: int(number)}
    mbmd = bundle.mbmd
    assert mbmd is not None
    mbmd.mac = mbmd.mac_with(world.tdcs.migration._dec_key, bundle.payload(bundle.pages))


@key("nop_entry", ok="", bad="reserved level", not_private="not_private")
def nop_entry(want: Situation, value: str, how: str) -> None:
    """An entry that asks for nothing, whose word is looked at all the same; but not its address."""
    only(want, "TDH.IMPORT.MEM", "TDH.EXPORT.")
    want.list_op = "nop"
    want.list_spoilt = how


@key("mac_of_nop", ok="", bad="")
def mac_of_nop(want: Situation, value: str, how: str) -> None:
    """The MAC of an entry that asks for nothing."""
    only(want, "TDH.IMPORT.MEM")
    want.list_op = "nop"
    want.bad_mac = value == "bad"
