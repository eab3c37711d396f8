"""Keys of the migration calls: the list of GPAs, what is asked for, epochs."""

from __future__ import annotations

from tests.conformance.situation import EPOCH, MIG_EPOCH, NotExpressible, Situation
from tests.conformance.vocabulary import Prepare, key, measure

RESERVED_BIT = 1 << 61


def _needs_list(want: Situation) -> None:
    if not want.call.has_list:
        raise NotExpressible(f"{want.call.name} takes no list of GPAs")


@key("gpa_list", ok="", bad="format reserved backwards not_shared")
def gpa_list(want: Situation, value: str, how: str) -> None:
    """The list-info word in RCX."""
    _needs_list(want)
    changes = {
        "format": lambda word: word | 1,
        "reserved": lambda word: word | 1 << 52,
        "backwards": lambda word: word | 1 << 3,
        "not_shared": lambda word: word & ~(0x3F << 46) | 32 << 46,
    }
    if how:
        want.patch(lambda _world, words: words.update(rcx=changes[how](words["rcx"])))


@key(
    "list_entry",
    ok="",
    nop="",
    cancel="",
    nop_or_cancel="nop cancel",
    migrate="",
    remigrate="",
    bad="reserved level not_private",
    invalid="reserved level not_private",
)
def list_entry(want: Situation, value: str, how: str) -> None:
    """What the first list entry asks for."""
    _needs_list(want)
    if value in ("bad", "invalid"):
        want.list_spoilt = how
    elif value != "ok":
        want.list_op = how or value


@key("op", migrate="", remigrate="", cancel="", nop="")
def operation(want: Situation, value: str, how: str) -> None:
    """The operation of the list entry."""
    _needs_list(want)
    want.list_op = value


@key("pending", _0="", _1="")
def pending(want: Situation, value: str, how: str) -> None:
    """Whether the source says that the page is pending."""
    _needs_list(want)
    want.list_pending = value == "1"


@measure("entries_left", against="0")
def entries_left(want: Situation, count: int) -> None:
    """How many list entries come after the one that is processed."""
    _needs_list(want)
    want.list_entries = count + 1


NOT_SHARED = 32 << 46
"""A private key id: no address of shared memory has it."""


def _operand(register: str, bits: int, *calls: str) -> Prepare:
    """A key that spoils an operand of the MEM calls."""

    def prepare(want: Situation, value: str, how: str) -> None:
        if want.call.name not in calls:
            raise NotExpressible(f"{want.call.name} takes no such operand")
        if value == "bad":
            want.patch(lambda _world, words: words.update({register: words[register] & ~(0x3F << 46) | bits}))

    return prepare


EXPORT_MEM, IMPORT_MEM = "TDH.EXPORT.MEM", "TDH.IMPORT.MEM"
key("mbmd", ok="", bad="")(_operand("r8", NOT_SHARED, EXPORT_MEM, IMPORT_MEM))
key("mig_buff_list", "mig_buffer_list", ok="", bad="")(_operand("r9", NOT_SHARED, EXPORT_MEM, IMPORT_MEM))
key("stream", "migs_index", "migs_i", ok="", bad="")(_operand("r10", 9, EXPORT_MEM, IMPORT_MEM))
key("mac_list", ok="", bad="")(_operand("r11", NOT_SHARED, EXPORT_MEM, IMPORT_MEM))
key("new_page_list", ok="", bad="")(_operand("r13", NOT_SHARED, IMPORT_MEM))


@key("mig_buff", "mig_buffer", ok="", null="", invalid="")
def mig_buffer(want: Situation, value: str, how: str) -> None:
    """The first migration buffer of the list."""
    _needs_list(want)
    want.no_buffer = value != "ok"


@key("page_mac", ok="", bad="")
def page_mac(want: Situation, value: str, how: str) -> None:
    """The MAC of the first page."""
    if want.call.name != IMPORT_MEM:
        raise NotExpressible(f"{want.call.name} compares no MACs")
    want.bad_mac = value == "bad"


@measure("removed_epoch", against="mig_epoch", least=-MIG_EPOCH)
def removed_epoch(want: Situation, distance: int) -> None:
    """In which migration epoch the page was removed, compared with the present one."""
    want.removed_epoch = MIG_EPOCH + distance


@measure("last_import_epoch", against="mig_epoch", least=-MIG_EPOCH)
def last_import_epoch(want: Situation, distance: int) -> None:
    """In which migration epoch the page was imported, compared with the present one."""
    want.import_epoch = MIG_EPOCH + distance


@key("bw_epoch_tracked", _0="just_blocked still_inside", _1="left long_ago")
def bw_epoch_tracked(want: Situation, value: str, how: str) -> None:
    """Whether no LP can have cached write access any more, as BW_EPOCH and the REFCOUNTs say."""
    blocked_in = EPOCH - 1
    mine, others = ((0, 1), (1, 0)) if blocked_in & 1 else ((1, 0), (0, 1))
    want.bw_epoch, want.refcounts = {
        "just_blocked": (EPOCH, (0, 0)),
        "still_inside": (blocked_in, mine),
        "left": (blocked_in, others),
        "long_ago": (EPOCH - 2, (1, 1)),
    }[how]


@key("mig_lock", "mig", free="", busy="")
def mig_lock(want: Situation, value: str, how: str) -> None:
    """The lock of the migration context."""
    if value == "busy":
        want.then(lambda world: setattr(world.tdcs.migration.lock, "v", 1))


@key("migsc", "migsc_lock", free="", busy="")
def migsc(want: Situation, value: str, how: str) -> None:
    """The lock bit of the stream."""
    if value == "busy":
        want.then(lambda world: setattr(world.tdcs.migration.forward(0).lock, "v", 1))
