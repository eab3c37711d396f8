"""What a call is, seen from its registers: leaf number, what they carry, which levels and op_states are legal.

Written down from the reference (0, 6.2, 8) and from Intel's op_state_lookup.c, not taken from the model, so that the model's own tables
are among what is checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from tdx.module import OpState, SeptState
from tdx.module.objects import Lifecycle
from vcpu.addresses import LEVELS, PG_LEVEL_1G, PG_LEVEL_2M, PG_LEVEL_4K, PgLevel

S = SeptState
ONLY_4K = (PG_LEVEL_4K,)
UP_TO_2M = (PG_LEVEL_4K, PG_LEVEL_2M)
UP_TO_1G = (PG_LEVEL_4K, PG_LEVEL_2M, PG_LEVEL_1G)
RESIZED = (PG_LEVEL_2M, PG_LEVEL_1G)
ALL = LEVELS[1:]
TABLES = LEVELS[2:]

OP_STATE_DIGITS = "0123456789a"


def _op_states(digits: str) -> frozenset[OpState]:
    return frozenset(OpState(OP_STATE_DIGITS.index(digit)) for digit in digits)


ANY_OP_STATE = _op_states(OP_STATE_DIGITS)


@dataclass(frozen=True, slots=True)
class Call:
    """One leaf. Registers are named as the model's: `rcx` ... `r13`."""

    name: str
    leaf: int
    op_states: frozenset[OpState] = ANY_OP_STATE
    """Those in which it may be called."""
    levels: tuple[PgLevel, ...] = ()
    """Legal levels of the entry; empty if it acts on none."""
    benign: SeptState = S.MAPPED
    """A state of the entry on which it succeeds."""
    tdr: str = ""
    """The register with the TDR's address, if one has it."""
    tdvpr: str = ""
    """The register with the TDVPR's address, if one has it."""
    gpa: str = "page_info"
    """What RCX carries: `page_info`, a `gpa` alone, a `list` of GPAs, or the TDR or another page."""
    page: str = ""
    """The register with a new page, if one has it."""
    flags: bool = False
    """Whether RDX has flags beside the TDR."""
    versions: int = 1
    """How many versions there are."""
    needs_tracking: bool = False
    """Whether the range must be blocked and tracked while the TD may run."""
    lifecycle: Lifecycle = Lifecycle.KEYS_CONFIGURED
    """The life-cycle state that the call wants."""

    @property
    def is_guest(self) -> bool:
        """Whether it is a TDCALL."""
        return self.name.startswith("TDG.")

    @property
    def has_list(self) -> bool:
        """Whether it works on a list of GPAs."""
        return self.gpa == "list"


_RESIZE = _op_states("1234589")
_ON = _op_states("123456789a")
_WRITE = _op_states("1236789a")


def _td(name: str, leaf: int, op_states: str, **options: object) -> Call:
    """A call on a TD alone: RCX is the TDR."""
    return Call(name, leaf, _op_states(op_states), tdr="rcx", gpa="", **options)  # type: ignore[arg-type]


def _vcpu(name: str, leaf: int, op_states: str, register: str = "rcx", **options: object) -> Call:
    """A call on a vCPU."""
    return Call(name, leaf, _op_states(op_states), tdvpr=register, gpa="", **options)  # type: ignore[arg-type]


_ALL = OP_STATE_DIGITS

_CALLS = (
    Call(
        "TDH.MEM.SEPT.ADD", 3, _op_states("1236789"), TABLES, S.FREE, "rdx", page="r8", flags=True, versions=2
    ),
    Call("TDH.MEM.SEPT.REMOVE", 30, _ON, TABLES, S.NL_BLOCKED, "rdx", versions=2, needs_tracking=True),
    Call("TDH.MEM.SEPT.RD", 25, _ON, ALL, S.MAPPED, "rdx", flags=True),
    Call("TDH.MEM.PAGE.ADD", 2, _op_states("1"), ONLY_4K, S.FREE, "rdx", page="r8"),
    Call("TDH.MEM.PAGE.AUG", 6, _op_states("1239"), UP_TO_2M, S.FREE, "rdx", page="r8"),
    Call("TDH.MEM.PAGE.REMOVE", 29, _op_states("1234589a"), UP_TO_1G, S.BLOCKED, "rdx", needs_tracking=True),
    Call("TDH.MEM.PAGE.RELOCATE", 5, _RESIZE, ONLY_4K, S.BLOCKED, "rdx", page="r8", needs_tracking=True),
    Call("TDH.MEM.PAGE.PROMOTE", 23, _RESIZE, RESIZED, S.NL_BLOCKED, "rdx", versions=2, needs_tracking=True),
    Call(
        "TDH.MEM.PAGE.DEMOTE",
        15,
        _RESIZE,
        RESIZED,
        S.BLOCKED,
        "rdx",
        page="r8",
        flags=True,
        needs_tracking=True,
    ),
    Call("TDH.MEM.RANGE.BLOCK", 7, _RESIZE, ALL, S.MAPPED, "rdx"),
    Call("TDH.MEM.RANGE.UNBLOCK", 39, _RESIZE, ALL, S.BLOCKED, "rdx"),
    Call("TDH.MEM.RD", 12, _ON, UP_TO_1G, S.MAPPED, "rdx", gpa="gpa"),
    Call("TDH.MEM.WR", 14, _WRITE, UP_TO_1G, S.MAPPED, "rdx", gpa="gpa"),
    Call("TDH.MR.EXTEND", 16, _op_states("1"), UP_TO_1G, S.MAPPED, "rdx", gpa="gpa"),
    _td("TDH.MEM.TRACK", 38, "123456789"),
    Call("TDG.MEM.PAGE.ACCEPT", 6, ANY_OP_STATE, UP_TO_2M, S.PENDING),
    Call("TDG.MEM.PAGE.ATTR.RD", 23, ANY_OP_STATE, UP_TO_1G, S.MAPPED, gpa="gpa"),
    Call("TDG.MEM.PAGE.ATTR.WR", 24, ANY_OP_STATE, UP_TO_1G, S.MAPPED),
    Call("TDG.VP.VMCALL", 0, gpa=""),
    Call("TDG.VP.VEINFO.GET", 3, gpa=""),
    Call("TDH.EXPORT.BLOCKW", 65, _op_states("3"), ONLY_4K, S.MAPPED, "rdx", gpa="list"),
    Call("TDH.EXPORT.RESTORE", 66, _op_states("2"), ONLY_4K, S.EXPORTED_BLOCKEDW, "rdx", gpa="list"),
    Call("TDH.EXPORT.MEM", 68, _op_states("345"), ONLY_4K, S.BLOCKEDW, "rdx", gpa="list"),
    Call("TDH.EXPORT.UNBLOCKW", 75, _op_states("2345"), ONLY_4K, S.BLOCKEDW, "rdx"),
    Call("TDH.IMPORT.MEM", 83, _op_states("6789"), ONLY_4K, S.FREE, "rdx", gpa="list"),
    _td("TDH.MR.FINALIZE", 17, "1"),
    _td("TDH.MNG.CREATE", 9, _ALL),
    _td("TDH.MNG.KEY.CONFIG", 8, _ALL, lifecycle=Lifecycle.HKID_ASSIGNED),
    Call("TDH.MNG.ADDCX", 1, _op_states("0"), tdr="rdx", gpa="", page="rcx"),
    _td("TDH.MNG.INIT", 21, "0"),
    _td("TDH.MNG.VPFLUSHDONE", 19, _ALL),
    _td("TDH.MNG.KEY.FREEID", 20, _ALL, lifecycle=Lifecycle.BLOCKED),
    Call("TDH.MNG.KEY.RECLAIMID", 27, gpa=""),
    _td("TDH.MNG.RD", 11, "123456789a", versions=2),
    _td("TDH.MNG.WR", 13, "1236789a"),
    Call("TDH.VP.CREATE", 10, _op_states("17"), tdr="rdx", gpa="", page="rcx"),
    _vcpu("TDH.VP.ADDCX", 4, "17", "rdx", page="rcx"),
    _vcpu("TDH.VP.INIT", 22, "1"),
    _vcpu("TDH.VP.FLUSH", 18, _ALL),
    _vcpu("TDH.VP.RD", 26, "123456789a", versions=2),
    _vcpu("TDH.VP.WR", 43, "1236789a"),
    _vcpu("TDH.VP.ENTER", 0, "239"),
    Call("TDH.PHYMEM.PAGE.RECLAIM", 28, gpa="", lifecycle=Lifecycle.TEARDOWN),
    Call("TDH.PHYMEM.PAGE.RDMD", 24, gpa=""),
    Call("TDH.PHYMEM.PAGE.WBINVD", 41, gpa=""),
    Call("TDH.PHYMEM.CACHE.WB", 40, gpa=""),
    _td("TDH.EXPORT.PAUSE", 70, "3"),
    _td("TDH.EXPORT.TRACK", 71, "34"),
    _td("TDH.EXPORT.ABORT", 64, "345"),
    _td("TDH.EXPORT.STATE.IMMUTABLE", 72, "29"),
    _td("TDH.EXPORT.STATE.TD", 73, "4"),
    _vcpu("TDH.EXPORT.STATE.VP", 74, "4"),
    _td("TDH.IMPORT.ABORT", 80, "678a"),
    _td("TDH.IMPORT.END", 81, "89"),
    _td("TDH.IMPORT.COMMIT", 82, "8"),
    _td("TDH.IMPORT.TRACK", 84, "67"),
    _td("TDH.IMPORT.STATE.IMMUTABLE", 85, "0"),
    _td("TDH.IMPORT.STATE.TD", 86, "6"),
    _vcpu("TDH.IMPORT.STATE.VP", 87, "7"),
    Call("TDH.MIG.STREAM.CREATE", 96, _op_states("012"), tdr="rdx", gpa="", page="rcx"),
)

CALLS = {call.name: call for call in _CALLS}
"""Every call that the reference's tables speak of, by name."""

TRACK_OP = _op_states("239")
"""`track_op` of the reference, section 6.2."""
IMPORT = _op_states("6789")
"""`import` of the reference, section 6.2."""
