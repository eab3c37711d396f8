"""The guest's side: what runs inside TDH.VP.ENTER, entered by registers, while a host and other vCPUs work on the same page.

Guests are small programs (`Guest`): they touch a page as the CPU does (walk, keep the translation, use it), take #VE or leave, accept,
fetch VE_INFO, call the host. A translation that is used must be to a page of the TD (invariant 1 of `tdx.module.invariants`). Each
scene is one world, searched to the end with `dpor`; an outcome is what every entry returned and what the guest saw in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sim import Cell, Kernel, Steps
from tdx.module import (
    Access,
    ExitReason,
    SeptState,
    TdExit,
    TdxModule,
    interrupt_exit,
)
from tdx.module.exits import VeInfo
from tdx.module.objects import NO_RBP_MOD
from tdx.module.operands import VCPU_HINT, VCPU_RESUME_L1
from tdx.module.profile import TDX_1_0, TDX_1_5_01, TDX_1_5_28, TDX_2_0, Profile
from tdx.module.septe import TDHP
from tdx.module.stepping import STEPPING_BYTES, STEPS_MAX
from tests.pairwise.explored import Exploration, Explored, Fill, Outcome
from tests.pairwise.guests import (
    ACCEPT,
    RIP,
    VEINFO_GET,
    VMCALL,
    Guest,
    Guests,
    accepter,
    by_registers,
    careless,
    hypercall,
    idle,
    killer,
    large_accepter,
    reader,
    stuck,
    tells_rax,
    triple_faulter,
)
from tests.pairwise.states import Age, State
from tests.pairwise.world import GFN
from vcpu.addresses import PG_LEVEL_2M, PG_LEVEL_4K, Gpa, gpa_of

S = SeptState
SEEDS_MAX = 1000
NO_LEAF = 0x3FFF
GHCI_MASK = 0xFC00
FREE = State(PG_LEVEL_4K, "RUNNABLE", S.NL_MAPPED, entry=S.FREE, rest=S.FREE)
PENDING = FREE._replace(entry=S.PENDING)
MAPPED = FREE._replace(entry=S.MAPPED)
LARGE = State(PG_LEVEL_4K, "RUNNABLE", S.MAPPED)
TRACKED = FREE._replace(entry=S.BLOCKED, entry_age=Age.PREVIOUS)
RELEASES = (TDX_1_0, TDX_1_5_01, TDX_1_5_28, TDX_2_0)
TAKE_AWAY = ("RANGE.BLOCK at entry", "TRACK at TD", "PAGE.REMOVE at entry")
LARGE_TAKE_AWAY = ("RANGE.BLOCK at parent", "TRACK at TD", "PAGE.REMOVE at parent")


# Scenes: each fills a kernel.


def touching(profile: Profile, state: State, program: Guest, *, ve: bool, host: Sequence[str]) -> Fill:
    """A guest and a host, and a second vCPU that accepts if the host makes no calls."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Guests(kernel, profile, state)
        scene.world.tdcs.pending_ve_disable = not ve
        scene.runs("guest", program)
        if host:
            scene.calls("a", *host)
        else:
            scene.runs("b", accepter)
        return scene.fill

    return fill


def stepping_in_place(
    profile: Profile,
    state: State,
    host: Sequence[str],
    *,
    ve: bool = False,
    notify: bool = False,
    unfetched: bool = False,
) -> Fill:
    """A vCPU whose seventh violation at one place comes now, entered three times; the host mends what is missing, sooner or later.

    `unfetched`: the guest has not fetched what an earlier #VE was about, and so cannot be told.
    """

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Guests(kernel, profile, state)
        scene.world.tdcs.pending_ve_disable = not ve
        scene.world.tdcs.notify_enables = int(notify)
        vcpu = scene.vcpu("guest")
        vcpu.rip = vcpu.entry_rip = RIP
        vcpu.possibly_epf_stepping = 6
        vcpu.ve_info = VeInfo(ExitReason.EPT_VIOLATION, Access.READ, 0, Gpa(0)) if unfetched else None
        scene.runs("guest", stuck, stuck, stuck)
        scene.calls("a", *host)
        return scene.fill

    return fill


def priority(profile: Profile, timeout_ns: int, *, hint: bool) -> Fill:
    """A host call has lost before; the guest keeps off until that is too long, and is entered again with the hint or without."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Guests(kernel, profile, PENDING)
        scene.world.tdcs.hp_lock_timeout_ns = timeout_ns
        _entry_cell(scene).v |= TDHP
        flags = (0, VCPU_HINT if hint else 0)
        scene.runs("guest", accepter, tells_rax, flags=flags)
        scene.calls("a", "SEPT.RD at entry")
        return scene.fill

    return fill


def _entry_cell(scene: Guests) -> Cell[int]:
    page = scene.module.sept_pages[max(scene.module.sept_pages)]
    return page.septe(scene.world.gfn)


def accepting_large(profile: Profile, host: Sequence[str]) -> Fill:
    """A vCPU accepts a 2M page and is interrupted in the middle."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Guests(kernel, profile, LARGE._replace(parent=S.PENDING))
        scene.runs("guest", large_accepter, large_accepter)
        scene.calls("a", *host)
        return scene.fill

    return fill


def with_flags(flags: int) -> Fill:
    """An entry with flags that are not allowed, against TRACK: refused after the vCPU was associated."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Guests(kernel, TDX_1_5_01, MAPPED)
        scene.runs("guest", idle, idle, flags=(flags, 0))
        scene.calls("a", "TRACK at TD")
        return scene.fill

    return fill


def beside(other: Guest, program: Guest, state: State = PENDING) -> Fill:
    """One vCPU comes to a bad end while another runs; both are entered again."""

    def fill(kernel: Kernel) -> tuple[TdxModule, Outcome]:
        scene = Guests(kernel, TDX_1_5_01, state)
        scene.world.tdcs.config_flags |= NO_RBP_MOD
        scene.vcpu("a").rip = RIP
        scene.runs("guest", program, idle)
        scene.runs("a", other, idle)
        return scene.fill

    return fill


# The single-step defence: all draws, not all interleavings.


def held_back() -> Explored:
    """An interrupt comes where the vCPU was entered: how many instructions it is held back for, seed by seed until all numbers are drawn."""
    drawn: set[int] = set()
    seeds = 0
    while len(drawn) < STEPS_MAX and seeds < SEEDS_MAX:
        drawn.add(_instructions(seeds, RIP))
        seeds += 1
    outcomes = [f"{number} instructions" for number in sorted(drawn)]
    missing = set(range(1, STEPS_MAX + 1)) - drawn
    alarms = tuple(f"never held back for {number} instructions" for number in sorted(missing))
    outside = tuple(f"held back for {number}" for number in sorted(drawn - set(range(1, STEPS_MAX + 1))))
    return Explored("an interrupt right after entry", seeds, True, tuple(outcomes), (), alarms + outside)


def let_out() -> Explored:
    """Interrupts that leave at once: the guest has come far, or run long, or nobody knows where it stands."""
    cases = {
        "far behind": (RIP - STEPPING_BYTES - 1, 0),
        "far ahead": (RIP + STEPPING_BYTES + 1, 0),
        "long after": (RIP, 10_000),
        "somewhere": (None, 0),
    }
    found = {name: _instructions(1, rip, after_ns) for name, (rip, after_ns) in cases.items()}
    alarms = tuple(f"{name}: held back" for name, number in found.items() if number)
    outcomes = tuple(f"{name}: leaves at once" for name in found)
    return Explored("an interrupt that is no step", len(cases), True, outcomes, (), alarms)


def not_by_mtf() -> Explored:
    """While the guest is stepped NMIs come instead of the module's own MTF: they count as much, and the last one leaves."""
    by_mtf = _instructions(1, RIP)
    by_nmi = _instructions(1, RIP, stepped_by=ExitReason.EXCEPTION_NMI)
    alarms = () if by_nmi == by_mtf else (f"{by_nmi} instructions instead of {by_mtf}",)
    return Explored("NMIs while the guest is stepped", 2, True, (f"{by_nmi} instructions",), (), alarms)


def _instructions(
    seed: int, rip: int | None, after_ns: int = 0, stepped_by: ExitReason = ExitReason.MTF
) -> int:
    """How many instructions the guest executes, instruction by instruction, before an interrupt leaves."""
    kernel = Kernel(seed=seed)
    scene = Guests(kernel, TDX_1_5_28, FREE)
    vcpu, lp = scene.vcpu("guest"), scene.world.lps["guest"]
    vcpu.rip = RIP
    executed: list[int] = []

    def program(_scene: Guests, _who: str) -> Steps[TdExit]:
        kernel.spend(after_ns)
        yield scene.module.state.read_once()
        at = rip
        left = interrupt_exit(scene.module, vcpu, lp, TdExit.external_interrupt(at))
        while left is None:
            reason = stepped_by if lp.single_step.stepping else ExitReason.EXTERNAL_INTERRUPT
            if lp.single_step.stepping and at is not None:
                at += 1
                executed.append(at)
            yield scene.module.state.read_once()
            left = interrupt_exit(scene.module, vcpu, lp, TdExit(reason, rip=at))
        return left

    scene.runs("guest", program, idle)
    kernel.run()
    assert not kernel.findings
    return len(executed)


BAD_MASKS = {"RAX": 1, "RCX": 2, "RSP": 1 << 4, "RBP": 1 << 5, "bit 32": 1 << 32}
PROGRAMS: dict[str, Guest] = {
    "a touch": reader,
    "VMCALL": by_registers(VMCALL, rcx=GHCI_MASK, r10=1),
    **{f"VMCALL with {name}": by_registers(VMCALL, rcx=mask) for name, mask in BAD_MASKS.items()},
    "plain VMCALL": hypercall(GHCI_MASK),
    "plain VMCALL with RAX": hypercall(1),
    "VEINFO.GET": by_registers(VEINFO_GET),
    "a TDCALL that is none": by_registers(NO_LEAF),
    "a TDCALL of version 1": by_registers(ACCEPT | 1 << 16),
    "ACCEPT": accepter,
}
BOTH = (reader, careless)
HOSTS: dict[str, tuple[State, tuple[str, ...], tuple[Guest, ...]]] = {
    "AUG": (FREE, ("PAGE.AUG at entry",), BOTH),
    "BLOCK of a pending page": (PENDING, ("RANGE.BLOCK at entry",), BOTH),
    "BLOCK, TRACK, REMOVE": (MAPPED, TAKE_AWAY, (reader,)),
    "BLOCK, TRACK, REMOVE of a pending page": (PENDING, TAKE_AWAY, (careless,)),
    "REMOVE": (TRACKED, ("PAGE.REMOVE at entry",), (reader,)),
    "BLOCK, TRACK, REMOVE of a 2M page": (LARGE, LARGE_TAKE_AWAY, (reader,)),
    "ACCEPT of another vCPU": (PENDING, (), BOTH),
}
"""What the host does, to which page, and beside whom; a reader that accepts beside all of TAKE_AWAY is 8000 executions a release."""


def explorations() -> Iterator[Exploration]:
    """All of them."""
    for profile in RELEASES:
        for ve in (True, False):
            told = "#VE" if ve else "no #VE"
            for host, (state, keys, programs) in HOSTS.items():
                for program in programs:
                    name = f"{profile.name}: a {program.__name__} ({told}) and {host}"
                    yield Exploration(name, touching(profile, state, program, ve=ve, host=keys))
    for profile in (TDX_1_5_01, TDX_1_5_28):
        for notify in (False, True):
            told = "told" if notify else "not told"
            for host, state in (("UNBLOCK", TRACKED), ("AUG", FREE)):
                name = f"{profile.name}: zero-step, {told}, and {host}"
                keys = (f"{'RANGE.UNBLOCK' if host == 'UNBLOCK' else 'PAGE.AUG'} at entry",)
                yield Exploration(name, stepping_in_place(profile, state, keys, ve=True, notify=notify))
        name = f"{profile.name}: zero-step, a #VE not fetched, and UNBLOCK"
        fill = stepping_in_place(profile, TRACKED, ("RANGE.UNBLOCK at entry",), notify=True, unfetched=True)
        yield Exploration(name, fill)
        for timeout_ns in (0, 1_000_000):
            for hint in (True, False):
                with_it = "with" if hint else "without"
                name = f"{profile.name}: host priority for {timeout_ns} ns, entered again {with_it} the hint"
                yield Exploration(name, priority(profile, timeout_ns, hint=hint))
        for key in ("RANGE.BLOCK at parent", "SEPT.RD at parent"):
            name = f"{profile.name}: an interrupted ACCEPT of 2M and {key}"
            yield Exploration(name, accepting_large(profile, (key,)))
    for name, flags in (("the hint", VCPU_HINT), ("RESUME_L1", VCPU_RESUME_L1), ("a reserved bit", 1 << 54)):
        yield Exploration(f"VP.ENTER with {name} after no trap", with_flags(flags))
    for name, program in PROGRAMS.items():
        yield Exploration(f"{name} beside the end of the TD", beside(killer, program))
        yield Exploration(f"{name} beside a triple fault", beside(triple_faulter, program))
    accepting = by_registers(ACCEPT, rcx=gpa_of(GFN[PG_LEVEL_4K]) | PG_LEVEL_2M.tdx)
    pending = LARGE._replace(parent=S.PENDING)
    yield Exploration("ACCEPT of 2M beside the end of the TD", beside(killer, accepting, pending))


def explored() -> list[Explored]:
    """All of it."""
    return [*(exploration.run() for exploration in explorations()), held_back(), let_out(), not_by_mtf()]
