"""Releases of the module: what differs between them, one field per difference.

A leaf asks the profile, never the release's name. The base is 1.5.01, whose public source is what the module here is modelled
on; 1.5.28 and 2.0 are that one with the differences that public sources up to 1.5.25 show, release by release, and what
was said of later ones:

- 1.5.05: UNBLOCK's operand, TRACK's overflow;
- 1.5.16: Dynamic PAMT, a switch of every profile here (`dynamic_pamt`; its page count and hint came with 1.5.20);
- 1.5.20: the tree's lock has host priority and PROMOTE takes it exclusive, then without its children's locks; whole writes of an entry
  keep host priority; the zero-step filter takes the tree shared and knows that a pending page brings #VE;
- 1.5.28: DEMOTE is not interrupted in a TD without L2 VMs (FEATURES0 bit 51; kvm@, Jan 2026: "from 1.5.28.00.972 on").

UNSURE, and then as in the release before: whether 1.5.28 changes anything else after 1.5.25. In which release after 1.5.25 a guest
looks at host priority before it locks, and ACCEPT looks at the locked word only (2.0.18 does both; 2.0 is that). Whether a TD
without L2 VMs also escapes TDX_INTERRUPTED_BUSY with bit 51 (assumed). How 2.0 "keeps counters of blocked entries", and
the value of TDX_BLOCKING_DISALLOWED: not modelled. Nor that the list calls of migration obey the tree's host priority as SEPT.ADD,
DEMOTE and PROMOTE do. What NBR is but that BLOCK and TRACK are not needed; its feature bit.

1.0 is known by the facts of reference 15 alone, its source being under a licence of its own. UNSURE, and then as in 1.5.01: which
calls besides RD and WR take its tree shared (none, assumed); which error a state has that is neither wrong by being free nor
by being leaf or table; whether OP_STATE, which 1.0 has a FINALIZED flag for, has a lock; in which operand id BLOCK reports a lost
race (RCX). Its entries keep suppress-#VE set here although the CPU's #VE comes from its being clear: TDH.MEM.SEPT.RD shows that.
Leaves that 1.0 does not have answer as in 1.5.01. Host-priority bits of PAMT entries are set in it, too; nothing looks at them.
Source: reference 15 and 18; intel/tdx-module and its public mirrors, 1.5.01 to 1.5.25.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Profile:
    """One release. The defaults are 1.5.01's."""

    name: str
    relaxed_concurrency: bool = True
    """The S-EPT tree is shared for most calls and entries have locks (FEATURES0 bit 4).

    1.0: every call that changes something takes the tree exclusive, and no entry lock; guests lock entries by bit 8.
    """
    host_priority: bool = True
    """A host call that lost to a guest keeps guests off (FEATURES0 bit 10)."""
    state_incorrect: bool = True
    """A wrong entry state is EPT_ENTRY_STATE_INCORRECT; 1.0 says FREE, NOT_FREE, LEAF or NOT_LEAF instead."""
    pending_ve_by_cpu: bool = False
    """1.0: a PENDING entry has suppress-#VE clear unless SEPT_VE_DISABLE, so that the CPU itself delivers the #VE.

    It does so without a VM exit, and not while the last #VE's information waits to be fetched: then the violation exits.
    """
    resize_always_blocked: bool = False
    """1.0: DEMOTE and PROMOTE want the range blocked and tracked also before the TD is finalized."""
    resize_unblocked: bool = False
    """Planned: DEMOTE and PROMOTE need neither BLOCK nor TRACK before them."""
    demote_interrupts: Literal["always", "l2", "never"] = "always"
    """When DEMOTE looks for interrupts before it commits: also with no L2 VM, only with one (FEATURES0 bit 51), or never."""
    promote_pending: bool = True
    """512 PENDING children may be merged; 1.0 demands that they are all mapped."""
    promote_tree_exclusive: bool = False
    """PROMOTE takes the tree exclusive: 1.0, and from 1.5.20 on, which then takes no child locks."""
    promote_locks_children: bool = True
    promote_ignores_tdhp: bool = False
    """1.5.20: host priority, accessed and dirty bits do not count when children are compared."""
    accept_samples_leaf_before_lock: bool = True
    """ACCEPT remembers from its walk, before it has the lock, whether the entry was a leaf (section 14, row 1)."""
    accept_removed_is_free: bool = False
    """2.0: ACCEPT of a REMOVED entry is an EPT violation, as of a FREE one, and not PAGE_SIZE_MISMATCH."""
    writes_drop_tdhp: bool = True
    """Whoever writes a whole entry wipes host priority that was asked for meanwhile (section 14, row 2)."""
    guest_locks_before_host_priority: bool = True
    """A guest takes the entry's lock and only then looks at host priority (section 14, row 3)."""
    unblock_names_tree: bool = True
    """UNBLOCK reports missing tracking with operand SEPT_TREE; from 1.5.05 on with RCX (section 14, row 8)."""
    tree_host_priority: bool = False
    """1.5.20: the tree's lock has a host-priority bit, which a call that looks for interrupts obeys with INTERRUPTED_BUSY."""
    zero_step_tree_shared: bool = False
    """1.5.20: VP.ENTER's zero-step filter takes the tree shared; before, exclusive (section 14, row 5)."""
    zero_step_pending_faults: bool = True
    """The zero-step filter takes a PENDING page for one that still faults (row 16); 1.0, where the CPU converts the fault into a
    #VE, and 1.5.20 only where it brings none."""
    epoch_overflow_is_fatal: bool = False
    """1.5.05: a TRACK that reaches epoch 2^63 - 1 shuts the module down; before, it was not looked at."""
    dynamic_pamt: bool = False
    """4K PAMT entries exist only where the host has added a page pair for their 2M range (FEATURES0 bit 36)."""

    def with_dynamic_pamt(self) -> Profile:
        """The same release with Dynamic PAMT."""
        return replace(self, name=f"{self.name}+dpamt", dynamic_pamt=True)

    @property
    def features0(self) -> int:
        """TDX_FEATURES0 as far as the modelled differences have bits in it."""
        bits = {
            4: self.relaxed_concurrency,
            9: self.relaxed_concurrency,
            10: self.host_priority,
            16: not self.pending_ve_by_cpu,
            36: self.dynamic_pamt,
            51: self.demote_interrupts == "l2",
        }
        return sum(1 << bit for bit, on in bits.items() if on)


TDX_1_5_01 = Profile("1.5.01")
TDX_1_0 = Profile(
    "1.0",
    relaxed_concurrency=False,
    host_priority=False,
    state_incorrect=False,
    pending_ve_by_cpu=True,
    resize_always_blocked=True,
    demote_interrupts="never",
    promote_pending=False,
    promote_tree_exclusive=True,
    promote_locks_children=False,
    accept_samples_leaf_before_lock=False,
    guest_locks_before_host_priority=False,
    zero_step_pending_faults=False,
)
TDX_1_5_28 = replace(
    TDX_1_5_01,
    name="1.5.28",
    demote_interrupts="l2",
    promote_tree_exclusive=True,
    promote_locks_children=False,
    promote_ignores_tdhp=True,
    writes_drop_tdhp=False,
    unblock_names_tree=False,
    tree_host_priority=True,
    zero_step_tree_shared=True,
    zero_step_pending_faults=False,
    epoch_overflow_is_fatal=True,
)
TDX_2_0 = replace(
    TDX_1_5_28,
    name="2.0",
    accept_samples_leaf_before_lock=False,
    accept_removed_is_free=True,
    guest_locks_before_host_priority=False,
)
NBR = replace(TDX_1_5_28, name="nbr", resize_unblocked=True)
"""Planned non-blocking resize, announced for KVM; everything else as 1.5.28 (assumed)."""

PROFILES = {profile.name: profile for profile in (TDX_1_0, TDX_1_5_01, TDX_1_5_28, TDX_2_0, NBR)}
"""By the name that scenarios and `tdsim seamcall` use."""


def profile_named(name: str) -> Profile:
    """The release of that name. Raises ValueError that lists the names there are."""
    try:
        return PROFILES[name]
    except KeyError:
        raise ValueError(f"no module release {name!r}; there are {', '.join(PROFILES)}") from None
