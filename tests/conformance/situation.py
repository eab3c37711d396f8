"""What a case wants of its world, before there is one.

A `Situation` starts benign: every check of the call would pass. The keys of a condition (`vocabulary`) change fields, or leave something to
be done to the built world (`then`) or to the registers (`patch`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tdx.module import TDCX_PAGES, TDX_1_5_01, OpState, Profile, SeptState
from tdx.module.objects import Lifecycle
from tests.conformance.calls import Call
from vcpu.addresses import PG_LEVEL_4K, PG_LEVEL_256T, PgLevel

if TYPE_CHECKING:
    from tests.conformance.world import World

Words = dict[str, int]
"""Registers by name, as they go in."""

EPOCH = 6
"""TD_EPOCH of every world that does not say otherwise."""
MIG_EPOCH = 5
"""And its migration epoch."""


GIB = 1 << 18
"""Frames in 1 GiB. What may be busy stands in a range of 1 GiB of its own: walks lock the 1G entry too."""
NEW = 3 * GIB
"""What a call is given that wants a page; nobody's."""


class NotExpressible(Exception):
    """What a row asks for cannot be had. Args: why."""


@dataclass
class Situation:
    """One case. `level` and `state` are the entry's."""

    call: Call
    level: PgLevel = PG_LEVEL_4K
    state: SeptState = SeptState.MAPPED
    op_state: OpState = OpState.INITIALIZED
    profile: Profile = TDX_1_5_01
    version: int = 0

    lifecycle: Lifecycle = Lifecycle.KEYS_CONFIGURED
    fatal: bool = False
    tdcx_pages: int = TDCX_PAGES
    debug: bool = False

    bepoch: int = EPOCH - 1
    """BEPOCH of the mapped page and of the S-EPT page below: blocked one epoch ago, so that it is tracked by now."""
    refcounts: tuple[int, int] = (0, 0)
    bw_epoch: int = EPOCH - 1

    above: SeptState | None = None
    """If the walk is to stop above: the state of the entry where it does."""
    seen: SeptState | None = None
    """If the entry is to change between walk and lock: its state at the walk."""
    accept_counter: int = 0
    """How far an earlier ACCEPT of a 2M page has come."""
    children: str = "all_free"
    """What the S-EPT page below holds."""
    child: int = 0
    """Index of the child that is special."""

    l2_vms: int = 0
    aliases: int = 0
    """How many of them have an alias of the range, from VM 1 on."""
    l2_pages: int = 0
    """For how many of them the call is given a page, from VM 1 on."""
    names_page: bool = False
    """Whether the case itself says what page the call is given."""
    l2_tables: bool = True
    """Whether the L2 trees reach as far down as the L1 tree does."""

    interrupt: bool = False
    removed_epoch: int = MIG_EPOCH - 1
    """What a REMOVED entry remembers."""
    import_epoch: int = MIG_EPOCH - 1
    """When the page was imported, if it is asked."""
    list_op: str = "migrate"
    list_pending: bool = False
    list_entries: int = 1
    list_spoilt: str = ""
    """What is wrong with the list entry, if something is."""
    new_page: int | None = NEW
    """The frame that IMPORT.MEM is given, or None."""

    no_buffer: bool = False
    """Whether the host has no migration buffer for the first entry."""
    bad_mac: bool = False

    done: list[Callable[[World], object]] = field(default_factory=list)
    patches: list[Callable[[World, Words], None]] = field(default_factory=list)
    handed: list[Callable[[World, Words, dict[str, Any]], None]] = field(default_factory=list)

    @property
    def five_levels(self) -> bool:
        """Whether the S-EPT has five levels: only where an entry of 256T is wanted."""
        return self.level == PG_LEVEL_256T

    @property
    def is_inside(self) -> bool:
        """Whether the call comes from a running vCPU."""
        return self.call.is_guest

    def then(self, act: Callable[[World], object]) -> None:
        """Do this to the world once it is built."""
        self.done.append(act)

    def patch(self, change: Callable[[World, Words], None]) -> None:
        """Do this to the registers before the call."""
        self.patches.append(change)

    def hand(self, change: Callable[[World, Words, dict[str, Any]], None]) -> None:
        """Do this to the registers and to what lies in shared memory, last of all."""
        self.handed.append(change)
